"""`qraf.v1` on the server's side, without I/O: messages in, commands and refusals out; frames in, messages out.

One WebSocket message is one frame. Every message that is fed gives exactly one `Event`; every command is answered once,
and `settle` frees its id for reuse. What cannot be read at all ends the connection with a close code; whatever names
itself (a map whose `id` can be found) is refused with an `error` frame and the connection goes on.
"""

from __future__ import annotations

import difflib
import json
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from qraf.errors import (
    DuplicateId,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    ProtocolError,
    QrafError,
    QuotaExceeded,
    RateExceeded,
)
from qraf.frames import ClientFrame, ErrorBody, ErrorFrame, Hello, ServerFrame
from qraf.gateway.commands import MAX_ID, check_command
from qraf.gateway.problems import decoding_fault, error_body, holds_long_integer, unusable
from qraf.settings import LimitSettings

__all__ = [
    "CLOSE_CODES",
    "JSON",
    "MSGPACK",
    "SUBPROTOCOLS",
    "Close",
    "Connection",
    "Event",
    "Refusal",
    "choose_subprotocol",
    "close_of",
]

MSGPACK, JSON = "qraf.v1+msgpack", "qraf.v1"
SUBPROTOCOLS = (MSGPACK, JSON)

_TYPES = tuple(str(kind.__struct_config__.tag) for kind in get_args(ClientFrame))


class Close:
    """Close codes that this version sends."""

    GOING_AWAY = 1001
    INTERNAL = 1011
    OVERLOAD = 1013
    SLOW_READER = 4008
    SUPERSEDED = 4009
    TOKEN_EXPIRED = 4010
    MALFORMED = 4400
    NOT_AUTHENTICATED = 4401
    FORBIDDEN = 4403
    NO_PROTOCOL = 4406
    HELLO_TIMEOUT = 4408
    REVOKED = 4411
    TICKET = 4412
    TOO_LARGE = 4413
    MISDIRECTED = 4421
    ALGORITHM = 4422
    TOO_EARLY = 4425
    LIMITED = 4429


CLOSE_CODES = {
    Close.GOING_AWAY: "the server stops; connect again",
    1009: f"a message so large that it was not read to its end; see {Close.TOO_LARGE}",
    Close.INTERNAL: "an internal error, or no sign of life from the client",
    Close.OVERLOAD: "too many connections; try again later",
    Close.SLOW_READER: "the client reads too slowly; its responses can be resumed",
    Close.SUPERSEDED: "a newer connection, or a reader over HTTP, went on with a response of this one",
    Close.TOKEN_EXPIRED: "the credential has expired; `auth.refresh` in time keeps a connection open",
    Close.NOT_AUTHENTICATED: "no credential (`not_authenticated`), or a wrong one (`credential_invalid`)",
    Close.FORBIDDEN: "a frame that this role may not send (`not_allowed`), or a page that may not (`origin_refused`)",
    Close.REVOKED: "the API key was revoked",
    Close.TICKET: "a ticket that was used (`ticket_used`) or is none (`ticket_invalid`); ask for another",
    Close.MISDIRECTED: "a token for another audience or of another issuer: get one for this server",
    Close.ALGORITHM: "a token by an algorithm that this server does not take, such as `none`",
    Close.TOO_EARLY: "a token whose time has not come; the same again, later",
    Close.MALFORMED: "a message that is no frame, is of the wrong kind, or comes before `hello`",
    Close.NO_PROTOCOL: "no common subprotocol",
    Close.HELLO_TIMEOUT: "no `hello` in time",
    Close.TOO_LARGE: "a frame over `max_frame_bytes`",
    Close.LIMITED: "too many sockets of a key or tenant, or a client that goes on though a rate or a quota refuses it",
}
"""Every close code that this version sends, and why."""


_OF_CODE = {
    "credential_expired": Close.TOKEN_EXPIRED,
    "credential_revoked": Close.REVOKED,
    "ticket_invalid": Close.TICKET,
    "ticket_used": Close.TICKET,
    "token_algorithm_refused": Close.ALGORITHM,
    "token_audience_wrong": Close.MISDIRECTED,
    "token_issuer_wrong": Close.MISDIRECTED,
    "token_not_yet_valid": Close.TOO_EARLY,
}


def close_of(error: QrafError) -> int:
    """The close code of an error that ends a connection."""
    match error:
        case _ if error.code in _OF_CODE:
            return _OF_CODE[error.code]
        case NotAuthenticated():
            return Close.NOT_AUTHENTICATED
        case NotAllowed():
            return Close.FORBIDDEN
        case RateExceeded() | QuotaExceeded():
            return Close.LIMITED
        case ProtocolError(close=int(code)):
            return code
    return Close.OVERLOAD if error.retryable else Close.INTERNAL


class Refusal(NamedTuple):
    """An error to send; with `close`, the connection ends with this code after it."""

    frame: ErrorFrame
    close: int | None = None


Event = ClientFrame | Refusal


class _Envelope(msgspec.Struct):
    type: Any = None
    id: Any = None


_json = msgspec.json.Decoder(ClientFrame)
_msgpack = msgspec.msgpack.Decoder(ClientFrame)
_json_envelope = msgspec.json.Decoder(_Envelope)
_msgpack_envelope = msgspec.msgpack.Decoder(_Envelope)
_to_json = msgspec.json.Encoder().encode
_to_msgpack = msgspec.msgpack.Encoder().encode


def choose_subprotocol(offered: list[str]) -> str | None:
    """The first of the client's subprotocols that is known; None when there is none."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)


class Connection:
    """The state of one connection: which framing, whether hello was said, which command ids are in use.

    >>> connection = Connection(JSON, LimitSettings())
    >>> connection.feed('{"type": "hello"}')
    Hello(id='', client=ClientInfo(name='', version=''), coalesce_ms=15, resume=(), auth=None)
    >>> connection.feed('{"type": "ping", "id": "1", "now": true}').frame.error.pointer
    '/now'
    """

    def __init__(self, subprotocol: str, limits: LimitSettings) -> None:
        self.is_binary = subprotocol == MSGPACK
        self.state: Literal["hello", "open", "closed"] = "hello"
        self.in_use: set[str] = set()
        self._limits = limits

    def feed(self, message: bytes | str) -> Event:
        """The command in a message, or its refusal. A command's id is in use from here until `settle`.

        After a refusal that closes, nothing more may be fed.
        """
        assert self.state != "closed", "a closed connection was fed"
        try:
            data = self._bytes(message)
            frame = self._decode(data)
        except ProtocolError as error:
            return self._fatal(error)
        if isinstance(frame, Refusal):
            return frame
        return self._take(frame)

    def settle(self, id: str) -> None:
        """The command was answered; its id is free again."""
        self.in_use.discard(id)

    def encode(self, frame: ServerFrame) -> bytes | str:
        """A frame as a message."""
        return _to_msgpack(frame) if self.is_binary else _to_json(frame).decode()

    # -------------------------------------------------------------------------------------------------- inside
    def _bytes(self, message: bytes | str) -> bytes:
        if isinstance(message, str) == self.is_binary:
            need, got = ("binary", "text") if self.is_binary else ("text", "binary")
            raise ProtocolError(f"this subprotocol has {need} messages, but a {got} one came", close=Close.MALFORMED)
        # a str may hold lone surrogates only if somebody made it by hand; they are refused as bad UTF-8 below
        data = message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message
        if len(data) > self._limits.max_frame_bytes:
            detail = f"a frame may have {self._limits.max_frame_bytes} bytes, but has {len(data)}"
            raise ProtocolError(detail, close=Close.TOO_LARGE)
        return data

    def _decode(self, data: bytes) -> ClientFrame | Refusal:
        try:
            frame: ClientFrame = (_msgpack if self.is_binary else _json).decode(data)
            if not self.is_binary and holds_long_integer(data) and (found := unusable(data)) is not None:
                return _refuse(InvalidRequest(*found), frame.id)
            return frame
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            envelope = self._envelope(data)
            if envelope is None:
                detail = "nested too deep" if isinstance(error, RecursionError) else str(error)
                raise ProtocolError(f"not a frame: {detail}", close=Close.MALFORMED) from None
            return _refuse(_fault(error, envelope, data), envelope.id)

    def _envelope(self, data: bytes) -> _Envelope | None:
        """`type` and `id` of a map whose rest is wrong; None when it is no map, or cut, or not decodable."""
        try:
            envelope: _Envelope = (_msgpack_envelope if self.is_binary else _json_envelope).decode(data)
            return envelope
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if self.is_binary:
                return None
        try:  # json.loads also reads NaN and lone surrogates, which other encoders write: refused, but by name
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return _Envelope(found.get("type"), found.get("id")) if isinstance(found, dict) else None

    def _take(self, frame: ClientFrame) -> Event:
        is_hello = isinstance(frame, Hello)
        if self.state == "hello" and not is_hello:
            return self._fatal(ProtocolError("the first frame must be `hello`", "/type", Close.MALFORMED))
        if frame.id in self.in_use:
            return _refuse(DuplicateId(frame.id), frame.id)
        try:
            if self.state == "open" and is_hello:
                raise ProtocolError("hello was said already", "/type")
            check_command(frame, self._limits)
        except QrafError as error:
            return _refuse(error, frame.id)
        if is_hello:
            self.state = "open"
        elif frame.id:
            self.in_use.add(frame.id)
        return frame

    def _fatal(self, error: ProtocolError) -> Refusal:
        self.state = "closed"
        code = "too_large" if error.close == Close.TOO_LARGE else error.code
        title = "Too large" if error.close == Close.TOO_LARGE else error.title
        body = ErrorBody(code=code, title=title, detail=error.detail, pointer=error.pointer)
        return Refusal(ErrorFrame(error=body), error.close)


def _refuse(error: QrafError, id: Any) -> Refusal:
    can_echo = isinstance(id, str) and len(id) <= MAX_ID and not any("\ud800" <= char <= "\udfff" for char in id)
    return Refusal(ErrorFrame(id=id if can_echo else "", error=error_body(error)))


def _fault(error: Exception, envelope: _Envelope, data: bytes) -> QrafError:
    if isinstance(error, RecursionError):
        return InvalidRequest("is nested too deep")
    if isinstance(error, msgspec.ValidationError) and isinstance(envelope.type, str) and envelope.type not in _TYPES:
        near = difflib.get_close_matches(envelope.type[:64], _TYPES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(_TYPES)}"
        return InvalidRequest(f"unknown frame type {envelope.type[:64]!a}{hint}", "/type")
    detail, pointer = decoding_fault(error)
    if not isinstance(error, msgspec.ValidationError):
        found = unusable(data)
        if found is not None:
            return InvalidRequest(*found)
        detail = f"no valid JSON (half a surrogate pair?): {detail}"
    return InvalidRequest(detail, pointer)
