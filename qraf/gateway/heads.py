"""What uvicorn leaves open over HTTP: how large the head of a request may be, and how long to wait for a request.

The parser glues a long header together from what comes, anew with every read, so that one without an end takes the
whole loop; and a connection whose request is not whole counts nowhere as idle.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedHttp"]

_MAX_HEAD_BYTES = 64 * 1024  # of a head, or of what follows a body, beyond one read
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """Refuses a head of more than 64 KiB with 431, and closes a connection whose request does not come.

    A head may take `timeout_keep_alive` seconds in all, and a body may be silent for as long.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_whole, self._goes_on, self._idle_bytes = True, False, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what brings a request no further."""
        self._goes_on = False
        super().data_received(data)
        if self._goes_on:
            self._idle_bytes = 0
        elif not self._is_whole:
            self._idle_bytes += len(data)
            if self._idle_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
        elif self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._wait()  # empty lines between requests, say

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_whole, self._goes_on = False, True
        if self._timer is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """Its head is whole; then comes the body, if there is one."""
        self._goes_on = True
        self._wait()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of its body came."""
        super().on_body(body)
        self._goes_on = True
        if not self.cycle.response_complete:  # else nobody waits for it
            self._wait()

    def on_message_complete(self) -> None:
        """It is whole."""
        self._is_whole = True
        self._wait_no_more()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to the WebSocket's own bounds."""
        self._wait_no_more()
        super().handle_websocket_upgrade()

    def _wait(self) -> None:
        self._wait_no_more()
        self._timer = self.loop.call_later(max(1, self.timeout_keep_alive), self._late)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # it is the server that is slow
            self._wait()
        elif not self.transport.is_closing():
            self.transport.close()
