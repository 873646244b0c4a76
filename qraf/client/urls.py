"""The forms of a server's address."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from qraf.errors import InvalidRequest

__all__ = ["base_url", "is_loopback", "socket_url"]


def base_url(url: str) -> str:
    """The server's http base of any form of its address.

    >>> base_url("ws://127.0.0.1:8642"), base_url("https://host/qraf/v1/ws"), base_url("localhost:8642")
    ('http://127.0.0.1:8642', 'https://host/qraf', 'http://localhost:8642')
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "http", "ws": "http", "https": "https", "wss": "https"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise InvalidRequest(f"a server's address starts with ws, wss, http or https and names a host, but is '{url}'")
    path = parts.path.rstrip("/").removesuffix("/v1/ws").removesuffix("/v1")
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def socket_url(url: str) -> str:
    """The address of the WebSocket.

    >>> socket_url("http://127.0.0.1:8642")
    'ws://127.0.0.1:8642/v1/ws'
    """
    return base_url(url).replace("http", "ws", 1) + "/v1/ws"


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine, so that no proxy may stand between."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
