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
from typing import TYPE_CHECKING, Any, TextIO

from qraf.cli import wrong_settings
from qraf.cli.access import LocalKey, check_listening, check_somebody_can_enter, local_key
from qraf.cli.output import console, errors, guarded, print_json
from qraf.client.credentials import announce, withdraw
from qraf.errors import InvalidRequest, NotFound, QrafError

if TYPE_CHECKING:
    from qraf.network.topology import Topology
    from qraf.sessions.service import Service
    from qraf.settings import Settings

__all__ = [
    "Running",
    "find_topology",
    "installed",
    "make_data",
    "make_settings",
    "running",
    "serve_command",
    "stoppable",
]

log = logging.getLogger(__name__)

_PHASE_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    url: str
    settings: Settings
    topology: Topology
    service: Service
    key: LocalKey | None = None


def make_settings(
    *,
    topology: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    data: Path | None = None,
    runtime: str | None = None,
    generator_url: str | None = None,
    generator_model: str | None = None,
    auth: str | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    behind_proxy: bool | None = None,
) -> Settings:
    """The settings of these choices, of `QRAF_...` variables where there is no choice, and of defaults.

    Raises:
        InvalidRequest: a value that the settings do not allow; says which, and what was needed.
    """
    with installed():
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from qraf.settings import Settings

    chosen: dict[str, Any] = {"topology": topology, "data": data}
    chosen["gateway"] = _given(
        host=host, port=port, tls_cert=tls_cert, tls_key=tls_key, behind_proxy=behind_proxy or None
    )
    chosen["auth"] = _given(mode=auth)
    chosen["runtime"] = _given(kind=runtime)
    chosen["generator"] = _given(url=generator_url, model=generator_model)
    try:
        return Settings(**{key: value for key, value in chosen.items() if value})
    except ValidationError as error:
        raise InvalidRequest(wrong_settings.told(error, Settings)) from None
    except SettingsError as error:
        raise InvalidRequest(wrong_settings.unread(error)) from None


def make_data(settings: Settings) -> None:
    """Make the data directory for its owner alone, where it is missing.

    Raises:
        InvalidRequest: that cannot be, or nothing can be written there.
    """
    try:
        settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidRequest(f"the data directory '{settings.data}' cannot be made: {error.strerror}") from None
    if not os.access(settings.data, os.W_OK | os.X_OK):
        raise InvalidRequest(f"the data directory '{settings.data}' cannot be written to")


def find_topology(path: Path) -> Path:
    """The file itself, or the one of that name that came with this program.

    Raises:
        NotFound: neither is there.
    """
    import qraf

    package = Path(qraf.__file__).parent  # of a wheel it has the topologies; in a clone they lie beside it
    for candidate in (path, package / path, package.parent / path):
        if candidate.is_file():
            return candidate
    raise NotFound("topology file", str(path))


@contextlib.asynccontextmanager
async def running(settings: Settings, on_phase: Callable[[str], None]) -> AsyncIterator[Running]:
    """A server for the length of the block, in this process; `on_phase` is told what starts and what stops.

    Leaving the block drains it: running responses may end for `gateway.drain_s`, sockets get `goodbye`, hosts stop.
    Cancel: safe at any point, what was started is stopped.
    """
    on_phase("loading the server")
    load, journals, services = await asyncio.to_thread(_import_service)
    on_phase("reading the topology")
    topology = load(find_topology(settings.topology))
    on_phase("opening the journal")
    make_data(settings)
    async with contextlib.AsyncExitStack() as stack:
        journal = await asyncio.to_thread(_open_journal, journals, settings, on_phase)
        stack.callback(journal.close)
        await asyncio.to_thread(check_somebody_can_enter, settings, journal, time.time())
        runtime = await asyncio.to_thread(_runtime, settings, topology, journal)
        stateless = await asyncio.to_thread(_services, settings, topology, runtime)
        service = services(settings, topology, journal, runtime, services=stateless)
        stack.push_async_callback(service.close)

        async def open_gateway() -> Any:
            server = (await asyncio.to_thread(_import_gateway))(service, settings)
            stack.push_async_callback(server.stop)
            await server.start()
            return server

        # while hosts start, in processes of their own, this one loads its gateway, which tells that it is not ready yet
        gateway = asyncio.create_task(open_gateway())
        follow = asyncio.create_task(_follow(runtime, stateless, on_phase))
        try:
            await service.start()
        finally:
            follow.cancel()
            await asyncio.gather(follow, gateway, return_exceptions=True)
        on_phase("opening the gateway")
        key = await local_key(settings, journal)
        server = gateway.result()
        stack.push_async_callback(server.drain)
        if key is not None:
            announce(server.url, key.file)
            stack.callback(withdraw, server.url)
        stack.callback(on_phase, "draining")
        on_phase("ready")
        yield Running(url=server.url, settings=settings, topology=topology, service=service, key=key)


def serve_command(
    *,
    topology: Path | None,
    host: str | None,
    port: int | None,
    data: Path | None,
    runtime: str | None,
    generator_url: str | None,
    generator_model: str | None,
    no_auth: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    behind_proxy: bool,
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
            auth="off" if no_auth else None,
            tls_cert=tls_cert,
            tls_key=tls_key,
            behind_proxy=behind_proxy,
        )
        check_listening(settings)
        _log_to(settings)
        for line in wrong_settings.unknown(type(settings)):
            log.warning("%s", line)
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
    begun, output = time.monotonic(), sys.stdout if as_json else None

    def on_phase(phase: str) -> None:
        seconds = time.monotonic() - begun
        if output is not None:
            print_json({"phase": phase, "seconds": round(seconds, 3)}, output)
        elif settings.log.format == "json":
            log.info("%s", phase)
        else:
            errors.print(f"{seconds:6.1f} s  {phase}", style="dim", markup=False)

    stop = asyncio.Event()
    # Ray prints on standard output what it has to say of dead workers, which is no JSON
    with stoppable(stop), contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        serving = asyncio.create_task(_until_cancelled(settings, on_phase, output))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


async def _until_cancelled(settings: Settings, on_phase: Callable[[str], None], output: TextIO | None) -> None:
    async with running(settings, on_phase) as server:
        if output is not None:
            told = {"url": server.url, "topology": server.topology.name, "pid": os.getpid()}
            if server.key is not None:
                told |= {"key_file": str(server.key.file)}
            print_json(told, output)
        else:
            console.print(
                f"QRAF serves network '{server.topology.name}' at {server.url}; Ctrl-C stops it", markup=False
            )
            console.print(f"journal: {_shown(settings.journal())}", style="dim", markup=False)
            if server.key is not None and server.key.text:
                console.print(f"API key: {server.key.text}", markup=False, soft_wrap=True)
            if server.key is not None:
                note = f"kept in {server.key.file}, where programs of this user find it by themselves"
                console.print(note, style="dim", markup=False, soft_wrap=True)
        await asyncio.Event().wait()


def _log_to(settings: Settings) -> None:
    from qraf.logs import log_to

    log_to(settings.log)


def _open_journal(journals: Any, settings: Settings, on_phase: Callable[[str], None]) -> Any:
    """The journal, sealed throughout unless that is off."""
    from qraf.storage.seal import MasterKeys

    masters = MasterKeys(settings.seal, settings.master_key_file())
    journal = journals.open(settings.journal(), None, masters)
    try:
        if masters.was_made:
            on_phase(f"made the master key {masters.file}; keep a copy apart from the data, what is sealed needs it")
        elif not masters.is_on:
            on_phase("sealing is off: what is written can be read by whoever reads the database")
        journal.seal_plain(lambda done, rows: on_phase(f"sealing what was there ({done} of {rows} rows)"))
    except BaseException:
        journal.close()
        raise
    return journal


def _shown(url: str) -> str:
    from qraf.storage.database import shown_url

    return str(shown_url(url))


async def _follow(runtime: Any, services: Any, on_phase: Callable[[str], None]) -> None:
    last = "new"  # nothing has begun: nothing to tell
    while True:
        phase = getattr(services, "phase", "ready") if runtime.phase == "ready" else runtime.phase
        if phase != last:
            last = phase
            on_phase(last)
        await asyncio.sleep(_PHASE_EVERY_S)


def _import_service() -> tuple[Any, Any, Any]:
    """A second of imports, off the event loop.

    Raises:
        QrafError: the server's packages are not there.
    """
    with installed():
        from qraf.network.loader import load
        from qraf.sessions.service import Service
        from qraf.storage.journal import Journal
    return load, Journal, Service


def _import_gateway() -> Any:
    """Another second."""
    with installed():
        from qraf.gateway.server import Server
    return Server


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Turn the lack of a package into an error that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qraf"):
            raise
        what = f"package '{error.name}' is missing; install the server: pip install 'qraf[server,local]'"
        raise QrafError(what) from None


def _runtime(settings: Settings, topology: Topology, journal: Any) -> Any:
    with installed():
        if settings.runtime.kind == "local":
            from qraf.actors.runtime import LocalRuntime

            return LocalRuntime(topology, settings, journal)
        from qraf.actors.ray_runtime import RayRuntime

        return RayRuntime(topology, settings)


def _services(settings: Settings, topology: Topology, runtime: Any) -> Any:
    """The services that the topology names, on Ray Serve, the others in a host; None: in threads of this process."""
    if settings.runtime.kind == "local":
        if topology.services:
            names = ", ".join(spec.name for spec in topology.services)
            log.warning("without Ray there are no replicas: %s run inside the server", names)
        return None
    with installed():
        from qraf.actors.services import InlineServices

        rest = InlineServices(settings.services, send=runtime.work)
        if not topology.services:
            return rest
        from qraf.actors.hosted import GenerateElsewhere
        from qraf.actors.ray_services import RayServices

        encoder = settings.encoder.model_copy(update={"name": topology.encoder})
        made = RayServices(topology.services, settings, rest=rest, encoder=encoder)
        if made.encodes:
            runtime.encoder = made.encode
        if made.streams:
            runtime.generator = GenerateElsewhere(made.lease, made.streams)
        return made


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
