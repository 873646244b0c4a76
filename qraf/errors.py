"""Every error that QRAF raises on purpose, in one short tree.

Facts are attributes and are passed to `super().__init__` in order, so that an error crosses a process
boundary (pickle) as itself. Prose is made in `__str__`. Each class also inherits the builtin that it resembles.
`code`, `status` and `retryable` are what a client may see; `qraf.gateway.problems` alone turns them into answers.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "CannotConnect",
    "CannotListen",
    "ConnectionLost",
    "CredentialExpired",
    "CredentialInvalid",
    "CredentialRevoked",
    "DuplicateId",
    "EngineFailed",
    "GatewayLost",
    "InvalidRequest",
    "InvalidState",
    "InvalidTopology",
    "KeyInUse",
    "KeyReused",
    "KeysMissing",
    "LimitExceeded",
    "NoRoute",
    "NodeDown",
    "NotAllowed",
    "NotAuthenticated",
    "NotAvailable",
    "NotFound",
    "NotReady",
    "OriginRefused",
    "ProtocolError",
    "QrafError",
    "QuotaExceeded",
    "RateExceeded",
    "RecalledNotAbsorbed",
    "ReplayGone",
    "RunsElsewhere",
    "SealBroken",
    "ServerError",
    "SessionClosed",
    "SessionNotFound",
    "StorageFailed",
    "Superseded",
    "TicketInvalid",
    "TicketUsed",
    "TimedOut",
    "TokenAlgorithmRefused",
    "TokenAudienceWrong",
    "TokenIssuerWrong",
    "TokenNotYetValid",
    "TopologyFault",
    "VersionConflict",
]


class QrafError(Exception):
    """The root of the tree."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: bool = False


class InvalidState(QrafError, ValueError):
    """Numbers that are no quantum state, or shapes that do not fit: what was needed, what came."""

    code, title, status = "invalid_state", "Not a valid state", 422

    def __init__(self, name: str, need: str, got: str = "") -> None:
        super().__init__(name, need, got)
        self.name, self.need, self.got = name, need, got

    def __str__(self) -> str:
        return f"`{self.name}` must {self.need}" + (f", but {self.got}" if self.got else "")


class InvalidRequest(QrafError, ValueError):
    """A request that is understood but cannot be served as written; `pointer` is a JSON pointer to the fault."""

    code, title, status = "invalid_request", "Invalid request", 422

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail, pointer)
        self.detail, self.pointer = detail, pointer

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}" if self.pointer else self.detail


class KeyReused(InvalidRequest):
    """An `Idempotency-Key` that came with another request before."""

    code, title = "idempotency_key_reused", "Idempotency key used for another request"


class KeyInUse(QrafError, RuntimeError):
    """The request that first came with this `Idempotency-Key` is still being carried out."""

    code, title, status, retryable = "idempotency_key_in_use", "Idempotency key in use", 409, True

    def __init__(self, retry_after_ms: int = 1000) -> None:
        super().__init__(retry_after_ms)
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return "the first request with this `Idempotency-Key` is not answered yet"


class RecalledNotAbsorbed(InvalidRequest):
    """Recalled text was to be written; a memory that learnt what it said would drown in itself."""

    code, title = "recalled_not_absorbed", "Recalled text is not absorbed"


class ProtocolError(QrafError, ValueError):
    """A frame that breaks `qraf.v1`. `close` is the close code when the connection cannot go on."""

    code, title, status = "protocol", "Protocol error", 400

    def __init__(self, detail: str, pointer: str = "", close: int | None = None) -> None:
        super().__init__(detail, pointer, close)
        self.detail, self.pointer, self.close = detail, pointer, close

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}" if self.pointer else self.detail


class DuplicateId(ProtocolError):
    """A command id that is still in use on this connection."""

    code, title, status = "duplicate_id", "Duplicate id", 409

    def __init__(self, id: str) -> None:
        QrafError.__init__(self, id)
        self.id = id
        self.detail, self.pointer, self.close = f"command id '{id}' is still in use", "/id", None

    def __str__(self) -> str:
        return self.detail


class TopologyFault:
    """One fault of a topology file: where, what, why, and the nearest right name."""

    __slots__ = ("column", "file", "hint", "line", "what")

    def __init__(self, file: str, line: int, column: int, what: str, hint: str = "") -> None:
        self.file, self.line, self.column, self.what, self.hint = file, line, column, what, hint

    def __reduce__(self) -> tuple[type[TopologyFault], tuple[str, int, int, str, str]]:
        return TopologyFault, (self.file, self.line, self.column, self.what, self.hint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopologyFault) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__()[1])

    def __repr__(self) -> str:
        return f"TopologyFault({str(self)!r})"

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.what}"
        return f"{text}; {self.hint}" if self.hint else text


class InvalidTopology(QrafError, ValueError):
    """A topology with faults, all of them at once."""

    code, title, status = "invalid_topology", "Invalid topology", 422

    def __init__(self, faults: tuple[TopologyFault, ...]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class NotFound(QrafError, LookupError):
    """A thing that is not there, by kind and name."""

    code, title, status = "not_found", "Not found", 404

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"no {self.kind} '{self.name}'"


class SessionNotFound(NotFound):
    """No such session."""

    code, title = "session_not_found", "No such session"

    def __init__(self, session: str) -> None:
        QrafError.__init__(self, session)
        self.kind, self.name = "session", session
        self.session = session


class SessionClosed(QrafError, RuntimeError):
    """The session was deleted, expired or paused; `reason` says which."""

    code, title, status = "session_closed", "Session closed", 409

    def __init__(self, session: str, reason: str) -> None:
        super().__init__(session, reason)
        self.session, self.reason = session, reason

    def __str__(self) -> str:
        return f"session '{self.session}' is closed: {self.reason}"


class VersionConflict(QrafError, RuntimeError):
    """A thing was to be changed in a version that it no longer has; read it again, then decide. Nothing was changed.

    `wanted` 0: it was to be made.
    """

    code, title, status = "version_conflict", "Version conflict", 412

    def __init__(self, kind: str, name: str, wanted: int, now: int) -> None:
        super().__init__(kind, name, wanted, now)
        self.kind, self.name, self.wanted, self.now = kind, name, wanted, now

    def __str__(self) -> str:
        if not self.wanted:
            return f"{self.kind} '{self.name}' is there already, in version {self.now}, and is another one"
        return f"{self.kind} '{self.name}' has version {self.now}, not {self.wanted}"


class NoRoute(QrafError, LookupError):
    """No path joins two nodes under the current costs."""

    code, title, status, retryable = "no_route", "No route", 503, True

    def __init__(self, source: str, target: str, down: tuple[str, ...] = ()) -> None:
        super().__init__(source, target, down)
        self.source, self.target, self.down = source, target, down

    def __str__(self) -> str:
        text = f"no route from '{self.source}' to '{self.target}'"
        return f"{text}; nodes down: {', '.join(self.down)}" if self.down else text


class NodeDown(QrafError, ConnectionError):
    """A node, or the host that runs it, does not answer. It is restarted; the same call may succeed later."""

    code, title, status, retryable = "node_down", "Node down", 503, True

    def __init__(self, node: str, reason: str = "") -> None:
        super().__init__(node, reason)
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return f"node '{self.node}' is down" + (f": {self.reason}" if self.reason else "")


class EngineFailed(QrafError, ConnectionError):
    """The language model's server refused, failed, or went away in the middle of an answer.

    Not retryable where the server found fault with the prompt itself (`is_final`): that stays so.
    """

    code, title, status = "engine_failed", "Generator failed", 502

    def __init__(self, model: str, reason: str, is_final: bool = False) -> None:
        super().__init__(model, reason, is_final)
        self.model, self.reason = model, reason
        self.retryable = not is_final

    def __str__(self) -> str:
        return f"generator '{self.model}' failed: {self.reason}"


class LimitExceeded(QrafError, RuntimeError):
    """A stated limit was reached: which, how much is allowed, how much came, and when to try again.

    Retryable only where `retry_after_ms` says when: a text that is too long stays too long.
    """

    code, title, status = "limit_exceeded", "Limit exceeded", 429

    def __init__(self, limit: str, allowed: int, got: int | None = None, retry_after_ms: int | None = None) -> None:
        super().__init__(limit, allowed, got, retry_after_ms)
        self.limit, self.allowed, self.got, self.retry_after_ms = limit, allowed, got, retry_after_ms
        self.retryable = retry_after_ms is not None

    def __str__(self) -> str:
        text = f"`{self.limit}` allows {self.allowed}"
        return text if self.got is None else f"{text}, but {self.got} came"


class RateExceeded(LimitExceeded):
    """Too much in too short a time: `key.requests` allows so many in a window; `retry_after_ms` says when again."""

    code, title = "rate_limited", "Too many in too short a time"

    def __init__(self, limit: str, allowed: int, window_s: int, retry_after_ms: int) -> None:
        QrafError.__init__(self, limit, allowed, window_s, retry_after_ms)
        self.limit, self.allowed, self.window_s, self.retry_after_ms = limit, allowed, window_s, retry_after_ms
        self.retryable = True

    def __str__(self) -> str:
        return f"`{self.limit}` allows {self.allowed} in {self.window_s} s"


class QuotaExceeded(LimitExceeded):
    """A key or its tenant has all that it may have: items, bytes, tokens of a day, sockets, running responses.

    Retryable only where it passes within a minute by itself; `retry_after_ms` may be longer.
    """

    code, title = "quota_exceeded", "Quota used up"

    def __init__(self, limit: str, allowed: int, retry_after_ms: int | None = None) -> None:
        QrafError.__init__(self, limit, allowed, retry_after_ms)
        self.limit, self.allowed, self.retry_after_ms = limit, allowed, retry_after_ms
        self.retryable = retry_after_ms is not None and retry_after_ms <= 60_000

    def __str__(self) -> str:
        return f"the quota `{self.limit}` of {self.allowed} is used up"


class ReplayGone(QrafError, LookupError):
    """The frames right after the last one that a reader saw are no longer kept; the response has its whole text."""

    code, title, status = "replay_gone", "No longer kept", 410

    def __init__(self, response: str, after_seq: int) -> None:
        super().__init__(response, after_seq)
        self.response, self.after_seq = response, after_seq

    def __str__(self) -> str:
        where = f"GET /v1/responses/{self.response} has the whole text"
        return f"what response '{self.response}' emitted after seq {self.after_seq} is no longer kept; {where}"


class RunsElsewhere(QrafError, RuntimeError):
    """A response that another gateway runs, which tells nothing of it. Once it has ended every gateway has it."""

    code, title, status, retryable = "runs_elsewhere", "Runs on another gateway", 503, True

    def __init__(self, response: str, gateway: str, retry_after_ms: int = 500) -> None:
        super().__init__(response, gateway, retry_after_ms)
        self.response, self.gateway, self.retry_after_ms = response, gateway, retry_after_ms

    def __str__(self) -> str:
        return f"response '{self.response}' runs on gateway '{self.gateway}'; here it can be read when it has ended"


class GatewayLost(QrafError, ConnectionError):
    """The gateway that ran a response died; the same prompt may be sent again."""

    code, title, status, retryable = "gateway_lost", "Its gateway died", 503, True

    def __init__(self, response: str) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"the gateway that ran response '{self.response}' died before its end; send the prompt again"


class Superseded(QrafError, RuntimeError):
    """A newer reader took the stream over; a response has one reader at a time."""

    code, title, status = "superseded", "Superseded", 409

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream

    def __str__(self) -> str:
        return f"a newer reader took stream '{self.stream}' over"


class NotAllowed(QrafError, PermissionError):
    """The caller may not do this."""

    code, title, status = "not_allowed", "Not allowed", 403

    def __init__(self, what: str, why: str = "") -> None:
        super().__init__(what, why)
        self.what, self.why = what, why

    @property
    def detail(self) -> str:
        """What, and why: for those who are told the code beside it."""
        return f"{self.what}; {self.why}" if self.why else self.what

    def __str__(self) -> str:
        return f"not allowed: {self.detail}"


class OriginRefused(NotAllowed):
    """A page of an origin that may not: one that the settings do not name, or that did not ask for this ticket."""

    code, title = "origin_refused", "Origin refused"


class NotAuthenticated(QrafError, PermissionError):
    """Nobody said who asks: an API key or a token is needed."""

    code, title, status = "not_authenticated", "Not authenticated", 401

    def __init__(self, detail: str = "say who you are: `Authorization: Bearer` with an API key or a token") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class CredentialInvalid(NotAuthenticated):
    """A key or token that is unknown, malformed or wrongly signed, or whose claims do not say who it is for.

    Those below it are told apart where whoever asks has to do something else.
    """

    code, title = "credential_invalid", "Invalid credential"


class TokenAlgorithmRefused(CredentialInvalid):
    """A token by an algorithm that this server does not take, `none` among them."""

    code, title = "token_algorithm_refused", "Algorithm refused"


class TokenAudienceWrong(CredentialInvalid):
    """A token that is rightly signed, but for another audience."""

    code, title = "token_audience_wrong", "Token for another audience"


class TokenIssuerWrong(CredentialInvalid):
    """A token that is rightly signed, but says that another issuer made it."""

    code, title = "token_issuer_wrong", "Token from another issuer"


class TokenNotYetValid(CredentialInvalid):
    """A token that is rightly signed, but whose time has not come; the same again, later."""

    code, title, retryable = "token_not_yet_valid", "Token not yet valid", True


class TicketInvalid(CredentialInvalid):
    """A ticket that is none of ours, or that is shown where none is taken; ask for another."""

    code, title = "ticket_invalid", "Invalid ticket"


class TicketUsed(TicketInvalid):
    """A ticket that has opened a socket already; ask for another."""

    code, title = "ticket_used", "Used ticket"


class CredentialExpired(NotAuthenticated):
    """A key, token or ticket whose time is over."""

    code, title = "credential_expired", "Expired credential"


class CredentialRevoked(NotAuthenticated):
    """An API key that was revoked."""

    code, title = "credential_revoked", "Revoked credential"


class NotAvailable(QrafError, NotImplementedError):
    """Something that the interface names but this version does not have."""

    code, title, status = "not_available", "Not available yet", 501

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is not available yet"


class NotReady(QrafError, RuntimeError):
    """The server is starting or stopping: the same again, here or at another server, after a while."""

    code, title, status, retryable = "not_ready", "Not ready", 503, True

    def __init__(self, state: str, retry_after_ms: int = 1000) -> None:
        super().__init__(state, retry_after_ms)
        self.state, self.retry_after_ms = state, retry_after_ms

    def __str__(self) -> str:
        return f"the server is {self.state}; try again in {self.retry_after_ms / 1000:g} s"


class StorageFailed(QrafError, OSError):
    """The journal could not read or write; nothing that was not acknowledged is promised.

    `retry_after_ms` where it is known to pass: a database server that is away, a lock that others hold.
    """

    code, title, status, retryable = "storage_failed", "Storage failed", 503, True

    def __init__(self, what: str, reason: str, retry_after_ms: int | None = None) -> None:
        super().__init__(what, reason, retry_after_ms)
        self.what, self.reason, self.retry_after_ms = what, reason, retry_after_ms

    def __str__(self) -> str:
        return f"{self.what} failed: {self.reason}"


class SealBroken(QrafError, RuntimeError):
    """Sealed bytes that do not open: changed, moved from elsewhere, put back from an older copy, or without their key.

    Their memory stops here, because what it holds cannot be trusted; others go on.
    """

    code, title, status = "seal_broken", "Seal broken", 500

    def __init__(self, tenant: str, memory: str, seq: int | str, what: str) -> None:
        super().__init__(tenant, memory, seq, what)
        self.tenant, self.memory, self.seq, self.what = tenant, memory, seq, what

    def __str__(self) -> str:
        return f"the seal is broken: tenant '{self.tenant}', memory '{self.memory}', {self.seq}: {self.what}"


class KeysMissing(QrafError, RuntimeError):
    """The master keys that a sealed journal needs are not there, or cannot be read."""

    code, title, status = "keys_missing", "Master key missing", 503

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class ServerError(QrafError, RuntimeError):
    """What a client raises when the server answered with an error: the server's own code, detail and advice."""

    def __init__(
        self,
        error_code: str,
        detail: str,
        pointer: str = "",
        can_retry: bool = False,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(error_code, detail, pointer, can_retry, retry_after_ms)
        self.error_code, self.detail, self.pointer = error_code, detail, pointer
        self.can_retry, self.retry_after_ms = can_retry, retry_after_ms

    def __str__(self) -> str:
        where = f" at {self.pointer}" if self.pointer else ""
        return f"{self.error_code}{where}: {self.detail}"


class ConnectionLost(QrafError, ConnectionError):
    """What a client raises in every waiting call when its connection ends: the url, why, and the close code."""

    code, title, status, retryable = "connection_lost", "Connection lost", 503, True

    def __init__(self, url: str, reason: str, close: int | None = None) -> None:
        super().__init__(url, reason, close)
        self.url, self.reason, self.close = url, reason, close

    def __str__(self) -> str:
        text = f"connection to {self.url} is lost: {self.reason}"
        return f"{text} (close code {self.close})" if self.close else text


class CannotConnect(ConnectionLost):
    """What a client raises when no server answers, or none that speaks `qraf.v1`."""

    code, title = "cannot_connect", "Cannot connect"

    def __str__(self) -> str:
        return f"no server at {self.url}: {self.reason}"


class TimedOut(QrafError, TimeoutError):
    """What a client raises when an answer does not come in the time that it was given."""

    code, title, status, retryable = "timed_out", "Timed out", 504, True

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(what, timeout_s)
        self.what, self.timeout_s = what, timeout_s

    def __str__(self) -> str:
        return f"{self.what} took longer than {self.timeout_s:g} s"


class CannotListen(QrafError, OSError):
    """A server cannot listen there: the port is taken, or may not be used."""

    code, title, status = "cannot_listen", "Cannot listen", 500

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(host, port, reason)
        self.host, self.port, self.reason = host, port, reason

    def __str__(self) -> str:
        return f"cannot listen on {self.host}:{self.port}: {self.reason}"
