"""Which API key a client shows, and how one on the same machine finds the key of its server unasked.

A server on loopback keeps a key in its data directory and, while it runs, says where in a small file that only its user
can read, named for its port. The file holds the path of the key, never the key.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from qraf.client.urls import base_url, is_loopback

__all__ = ["announce", "find_key", "withdraw", "write_private"]

_MOST = 4096


class _Notice(msgspec.Struct):
    pid: int
    key_file: str


def find_key(url: str, api_key: str | None = None) -> str | None:
    """The key for a server: the one given, `QRAF_API_KEY`, or that of a server which this user runs on this machine."""
    given = api_key if api_key is not None else os.environ.get("QRAF_API_KEY")
    if given is not None:
        return given.strip() or None
    base = base_url(url)
    if not is_loopback(base):
        return None
    try:
        notice = msgspec.json.decode(_read_private(_notice(base)), type=_Notice)
        os.kill(notice.pid, 0)  # whoever else listens at that port now must not get the key
        return _read_private(Path(notice.key_file)).decode().strip() or None
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def announce(url: str, key_file: Path) -> None:
    """Say where the key of the server at this URL is; `withdraw` takes it back."""
    path = _notice(base_url(url))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, msgspec.json.encode(_Notice(os.getpid(), str(key_file.absolute()))))


def withdraw(url: str) -> None:
    """Forget the server at this URL, if this process announced it. Twice is harmless."""
    path = _notice(base_url(url))
    with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
        if msgspec.json.decode(path.read_bytes(), type=_Notice).pid == os.getpid():
            path.unlink()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that nobody else can read, whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    aside.replace(path)


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        is_ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
        if not is_ours or (os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077):
            raise PermissionError(f"{path} can be read or written by others")
        return file.read(_MOST)


def _notice(base: str) -> Path:
    parts = urlsplit(base)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) if runtime and Path(runtime).is_dir() else Path("~/.cache").expanduser()
    return folder / "qraf" / "servers" / f"{port}.json"
