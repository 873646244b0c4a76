"""The client: asynchronous, and its synchronous twin. Needs neither torch nor Ray nor a web framework."""

from __future__ import annotations

from qraf.client.client import DEFAULT_URL, Client, connect
from qraf.client.items import new_id
from qraf.client.reconnect import Reconnect
from qraf.client.response import Response
from qraf.client.sync import SyncClient, connect_sync
from qraf.client.sync_parts import SyncResponse, SyncWriter
from qraf.client.writer import Writer

__all__ = [
    "DEFAULT_URL",
    "Client",
    "Reconnect",
    "Response",
    "SyncClient",
    "SyncResponse",
    "SyncWriter",
    "Writer",
    "connect",
    "connect_sync",
    "new_id",
]
