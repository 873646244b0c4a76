"""`qraf serve`: settings, topology, journal, runtime, service and gateway, put together, run, and taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qraf.cli.output import console, errors, guarded, print_json
from qraf.client.urls import is_loopback
from qraf.errors import InvalidRequest, NotAllowed, NotFound, QrafError

if TYPE_CHECKING:
    from qraf.network.topology import Topology
    from qraf.sessions.service import Service
    from qraf.settings import Settings

__all__ = ["Running", "find_topology", "make_settings", "running", "serve_command", "stoppable"]

_PHASE_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    settings: Settings
    topology: Topology
    service: Service


def make_settings(
    *,
    topology: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    data: Path | None = None,
    runtime: str | None = None,
    generator_url: str | None = None,
    generator_model: str | None = None,
) -> Settings:
    """The settings of these choices, of `QRAF_...` variables where there is no choice, and of defaults.

    Raises:
        InvalidRequest: a value that the settings do not allow; says which, and what was needed.
    """
    with _installed():
        from pydantic import ValidationError

        from qraf.settings import Settings

    chosen: dict[str, Any] = {"topology": topology, "data": data}
    chosen["gateway"] = _given(host=host, port=port)
    chosen["runtime"] = _given(kind=runtime)
    chosen["generator"] = _given(url=generator_url, model=generator_model)
    try:
        return Settings(**{key: value for key, value in chosen.items() if value})
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise InvalidRequest("; ".join(faults)) from None


def find_topology(path: Path) -> Path:
    """The file itself, or the one of that name that came with this program.

    Raises:
        NotFound: neither is there.
    """
    import qraf

    shipped = Path(qraf.__file__).parent.parent / path
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    raise NotFound("topology file", str(path))


@contextlib.asynccontextmanager
async def running(settings: Settings, on_phase: Callable[[str], None]) -> AsyncIterator[Running]:
    """A server for the length of the block, in this process; `on_phase` is told what starts and what stops.

    Leaving the block drains it: running responses end as cancelled, sockets get `goodbye`, hosts stop. Cancel: safe at
    any point, what was started is stopped.
    """
    on_phase("loading the server")
    load, journals, services = await asyncio.to_thread(_import_service)
    on_phase("reading the topology")
    topology = load(find_topology(settings.topology))
    on_phase("opening the journal")
    settings.data.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        journal = await asyncio.to_thread(journals.open, settings.journal())
        stack.callback(journal.close)
        runtime = await asyncio.to_thread(_runtime, settings, topology, journal)
        service = services(settings, topology, journal, runtime)
        stack.push_async_callback(service.close)
        # while hosts start, in processes of their own, this one loads its gateway
        gateway = asyncio.create_task(asyncio.to_thread(_import_gateway))
        follow = asyncio.create_task(_follow(runtime, on_phase))
        try:
            await service.start()
        finally:
            follow.cancel()
            await asyncio.gather(follow, gateway, return_exceptions=True)
        on_phase("opening the gateway")
        server = gateway.result()(service, settings)
        stack.push_async_callback(server.stop)
        await server.start()
        stack.callback(on_phase, "draining")
        on_phase("ready")
        yield Running(url=server.url, settings=settings, topology=topology, service=service)


def serve_command(
    *,
    topology: Path | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    runtime: str | None,
    generator_url: str | None,
    generator_model: str | None,
    as_json: bool,
) -> None:
    """Run a server until it is told to stop. With JSON: a line for each phase, and one with `url` when it answers."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    with guarded(as_json):
        settings = make_settings(
            topology=topology,
            host=host,
            port=port,
            data=data,
            runtime=runtime,
            generator_url=generator_url,
            generator_model=generator_model,
        )
        listen = settings.gateway.host
        if not is_loopback(f"http://[{listen}]" if ":" in listen else f"http://{listen}"):  # before anything starts
            raise NotAllowed(f"listening on '{listen}'", "without authentication the server listens on loopback alone")
        run_loop(_serve(settings, as_json))


def run_loop(work: Any) -> Any:
    """Run a coroutine on the quickest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@contextlib.contextmanager
def stoppable(stop: asyncio.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop`; a second one, while we are stopping, ends the process at once."""

    def on_signal() -> None:
        if stop.is_set():
            sys.stderr.write("stopped at once\n")
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _serve(settings: Settings, as_json: bool) -> None:
    begun = time.monotonic()

    def on_phase(phase: str) -> None:
        seconds = time.monotonic() - begun
        if as_json:
            print_json({"phase": phase, "seconds": round(seconds, 3)})
        else:
            errors.print(f"{seconds:6.1f} s  {phase}", style="dim", markup=False)

    stop = asyncio.Event()
    with stoppable(stop):
        serving = asyncio.create_task(_until_cancelled(settings, on_phase, as_json))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _until_cancelled(settings: Settings, on_phase: Callable[[str], None], as_json: bool) -> None:
    async with running(settings, on_phase) as server:
        if as_json:
            print_json({"url": server.url, "topology": server.topology.name, "pid": os.getpid()})
        else:
            console.print(
                f"QRAF serves network '{server.topology.name}' at {server.url}; Ctrl-C stops it", markup=False
            )
            console.print(f"journal: {settings.journal()}", style="dim", markup=False)
        await asyncio.Event().wait()


async def _follow(runtime: Any, on_phase: Callable[[str], None]) -> None:
    last = ""
    while True:
        if runtime.phase != last:
            last = runtime.phase
            on_phase(last)
        await asyncio.sleep(_PHASE_EVERY_S)


def _import_service() -> tuple[Any, Any, Any]:
    """A second of imports, off the event loop.

    Raises:
        QrafError: the server's packages are not there.
    """
    with _installed():
        from qraf.network.loader import load
        from qraf.sessions.service import Service
        from qraf.storage.journal import Journal
    return load, Journal, Service


def _import_gateway() -> Any:
    """Another second."""
    with _installed():
        from qraf.gateway.server import Server
    return Server


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qraf"):
            raise
        what = f"package '{error.name}' is missing; install the server: pip install 'qraf[server,local]'"
        raise QrafError(what) from None


def _runtime(settings: Settings, topology: Topology, journal: Any) -> Any:
    with _installed():
        if settings.runtime.kind == "local":
            from qraf.actors.runtime import LocalRuntime

            return LocalRuntime(topology, settings, journal)
        from qraf.actors.ray_runtime import RayRuntime

        return RayRuntime(topology, settings)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
