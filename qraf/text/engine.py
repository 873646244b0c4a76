"""The embedded engine: llama.cpp's own server, in this process, on loopback, behind the same protocol as a remote one.

`python -m qraf.text.engine` prepares the weights ahead of the first start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from qraf.errors import EngineFailed
from qraf.settings import GeneratorSettings
from qraf.text.generator import Endpoint
from qraf.text.weights import find_weights, q8_0_weights

__all__ = ["EmbeddedEngine"]

DEFAULT_MODEL = "smollm2-135m-instruct"

_BATCH_TOKENS = 256  # of one prefill step: how long other streams, and a cancel, wait for it
_PROMPT_CACHE_MIB = 256  # prompts whose slot was taken come back from here; llama.cpp's default is 8 GiB
_SPARE_HTTP_THREADS = 4  # for health checks and requests that wait for a slot
_HEALTH_TIMEOUT_S = 2.0
_ERRORS = 1
_HANG_UP_TRIES = 200


class EmbeddedEngine:
    """One model in this process: `settings.slots` streams at once, batched together, on `settings.threads` threads.

    Every method blocks; call them from a thread where there is an event loop. Safe to call from several threads.
    """

    def __init__(self, settings: GeneratorSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._server: Any = None
        self._endpoint: Endpoint | None = None

    def start(self) -> Endpoint:
        """Load the model and serve it on a free loopback port, under a key that is made for this run.

        Twice: the second call returns the first one's endpoint.

        Raises:
            EngineFailed: a package or the weights are missing (says what to install), or they do not load.
        """
        with self._lock:
            if self._endpoint is None:
                self._server, self._endpoint = _serve(self._settings)
            return self._endpoint

    def stop(self) -> None:
        """Stop serving: running streams end, the port and all threads are free on return. Twice: nothing more."""
        with self._lock:
            endpoint, self._endpoint = self._endpoint, None
            if endpoint is not None:
                _hang_up(int(endpoint.url.removesuffix("/v1").rsplit(":", 1)[1]))
            # the server's destructor stops it and waits for its threads; this is its only reference
            self._server = None

    def alive(self) -> bool:
        """Whether the server answers."""
        endpoint = self._endpoint
        if endpoint is None:
            return False
        try:
            url = endpoint.url.removesuffix("/v1") + "/health"
            with httpx.Client(trust_env=False, timeout=_HEALTH_TIMEOUT_S) as http:
                return http.get(url).status_code == 200
        except httpx.HTTPError:
            return False


def _serve(settings: GeneratorSettings) -> tuple[Any, Endpoint]:
    model = settings.model or (settings.gguf.stem if settings.gguf else DEFAULT_MODEL)
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineFailed(model, f"xllamacpp is not installed ({error}); `pip install 'qraf[local]'`") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(_weights(settings))
    params.model_alias = {model}
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context_tokens
    # llama.cpp's threads spin at barriers: on a busy machine more threads than free cores are a disaster
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings.threads
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.n_threads_http = settings.slots + _SPARE_HTTP_THREADS
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.verbosity = _ERRORS
    params.ui = params.endpoint_slots = False
    key = secrets.token_urlsafe()
    params.api_keys = [key]
    try:
        server = xllamacpp.Server(params)
        # llama.cpp says that it is ready before its main loop runs, and a stop that comes before the loop is forgotten:
        # one token proves that it runs, and that the model answers
        server.handle_completions({"prompt": "a", "n_predict": 1, "cache_prompt": False})
    except RuntimeError as error:
        raise EngineFailed(model, f"'{params.model.path}' does not load: {error}") from error
    return server, Endpoint(f"{server.listening_address}/v1", model, key)


def _hang_up(port: int) -> None:
    """Shut down this process's connections on `port`, and wait until the server has noticed.

    llama.cpp's destructor waits, with Python's lock held, for every stream whose client is still there; a client in
    this process could then never leave.
    """
    for _ in range(_HANG_UP_TRIES):
        is_quiet = True
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # not connected, or gone
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as end:
                    if end.family == socket.AF_INET and end.getsockname()[1] == port and end.getpeername():
                        is_quiet = False
                        end.shutdown(socket.SHUT_RDWR)
        if is_quiet:
            return
        time.sleep(0.01)


def _weights(settings: GeneratorSettings) -> Path:
    """The user's file as it is; the shipped one re-encoded, or as it is where there is no place for another."""
    source = find_weights(settings.gguf)
    if settings.gguf is not None:
        return source
    try:
        return q8_0_weights(source, settings.cache)
    except (OSError, ValueError):
        return source


def _main() -> None:
    from rich.progress import Progress

    from qraf.settings import Settings

    settings = Settings().generator
    with Progress() as progress:
        task = progress.add_task("weights", total=1.0)
        path = q8_0_weights(find_weights(None), settings.cache, lambda share: progress.update(task, completed=share))
        progress.update(task, completed=1.0)
    print(path)  # noqa: T201


if __name__ == "__main__":
    _main()
