"""QRAF: a memory for text generation that lives in a network of quantum states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qraf.errors import QrafError

if TYPE_CHECKING:
    from qraf.client import SyncClient, connect, connect_sync

__all__ = ["QrafError", "SyncClient", "__version__", "connect", "connect_sync"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # the client is loaded at first use, so that a host that imports qraf.states pays nothing for it
    if name in ("connect", "connect_sync", "SyncClient"):
        from qraf import client

        return getattr(client, name)
    raise AttributeError(f"module 'qraf' has no attribute '{name}'")
