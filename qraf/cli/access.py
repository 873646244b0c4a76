"""How `qraf serve` lets people in: the key of this machine's own user, or the keys that were made before."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qraf.client.credentials import write_private
from qraf.client.urls import is_loopback
from qraf.errors import InvalidRequest, NotAllowed, NotAuthenticated

if TYPE_CHECKING:
    from qraf.settings import Settings
    from qraf.storage.journal import Journal

__all__ = ["KEY_FILE", "LocalKey", "check_listening", "check_somebody_can_enter", "local_key"]

KEY_FILE = "api-key"
"""In the data directory: the key of the user who runs the server."""


@dataclass(frozen=True, slots=True)
class LocalKey:
    """The key of this machine's own user; `text` where it was made just now."""

    file: Path
    text: str = ""


def is_local(settings: Settings) -> bool:
    """Whether the server listens on loopback alone."""
    host = settings.gateway.host
    return is_loopback(f"http://[{host}]" if ":" in host else f"http://{host}")


def check_listening(settings: Settings) -> None:
    """Refuse, before anything starts, to listen to the network without authentication and TLS.

    Raises:
        NotAllowed: says what is missing.
        InvalidRequest: half of a certificate, or one that cannot be used.
    """
    gateway = settings.gateway
    if (gateway.tls_cert is None) != (gateway.tls_key is None):
        raise InvalidRequest("--tls-cert and --tls-key go together")
    if gateway.tls_cert is not None and gateway.tls_key is not None:
        _check_certificate(gateway.tls_cert, gateway.tls_key)
    if is_local(settings):
        return
    what = f"listening on '{gateway.host}'"
    if settings.auth.mode == "off":
        raise NotAllowed(what, "without authentication the server listens on loopback alone")
    if gateway.tls_cert is None and not gateway.behind_proxy:
        raise NotAllowed(
            what, "give it TLS (--tls-cert and --tls-key), or say that a proxy in front has it (--behind-proxy)"
        )


def _check_certificate(cert: Path, key: Path) -> None:
    for option, file in (("--tls-cert", cert), ("--tls-key", key)):
        if not file.is_file():
            raise InvalidRequest(f"{option}: there is no file '{file}'")
    try:  # a key with a password would be asked for at the terminal, and a server has none
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=str)
    except (OSError, ValueError) as error:
        need = "PEM files of a certificate and its key, without a password"
        raise InvalidRequest(f"--tls-cert '{cert}' and --tls-key '{key}' must be {need}: {error}") from None


def check_somebody_can_enter(settings: Settings, journal: Journal, now: float) -> None:
    """Refuse to serve the network where no key opens anything and no tokens are taken; raises NotAllowed."""
    jwt = settings.auth.jwt
    takes_tokens = bool(jwt.secret.get_secret_value() or jwt.jwks_url or jwt.jwks_file)
    if is_local(settings) or takes_tokens or journal.keys.num_active(now):
        return
    why = f"there is no API key; make one: qraf keys create --role admin --data {settings.data}"
    raise NotAllowed(f"listening on '{settings.gateway.host}'", why)


async def local_key(settings: Settings, journal: Journal) -> LocalKey | None:
    """The key of this machine's own user, in the data directory; made where it is missing or opens nothing any more.

    None: the server listens to the network, or without authentication.
    """
    if settings.auth.mode == "off" or not is_local(settings):
        return None
    from qraf.clock import SystemClock
    from qraf.gateway.security.keys import Keys
    from qraf.tenants import DEFAULT_TENANT

    keys, file = Keys(journal.keys, SystemClock()), (settings.data / KEY_FILE).absolute()
    try:
        text = (await asyncio.to_thread(file.read_text)).strip()
        file.chmod(0o600)
        await keys.verify(text)
        return LocalKey(file)
    except (OSError, ValueError, NotAuthenticated):
        pass
    _, text = await keys.create(tenant=DEFAULT_TENANT, role="admin", name="of this machine", by="serve")
    await asyncio.to_thread(write_private, file, f"{text}\n".encode())
    return LocalKey(file, text)
