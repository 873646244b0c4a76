"""The frames of `qraf.v1`, both directions, as frozen records; docs/protocol.md tells them in prose.

Both framings (msgpack and JSON) carry the same flat maps with `type` first. Client frames refuse unknown fields.
Server frames carry every field; clients ignore fields and types that they do not know.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qraf.decode_frames import DecodeClose, DecodeCommitted, DecodeDone, DecodeOpen, DecodeOpened, DecodeRounds
from qraf.records import Figures, Filter, Terms
from qraf.state_frames import StateCommand, StateDone

__all__ = [
    "Ack",
    "AuthRefresh",
    "Cancel",
    "ClientFrame",
    "ClientInfo",
    "Enhance",
    "ErrorBody",
    "ErrorFrame",
    "EvidenceChoice",
    "EvidenceOut",
    "GenerateChoice",
    "Goodbye",
    "Hello",
    "Hop",
    "ItemWarning",
    "Limits",
    "LinkOut",
    "Metrics",
    "MetricsChoice",
    "NetworkDelta",
    "NetworkSnapshot",
    "NodeView",
    "Ping",
    "Pong",
    "RateLimit",
    "RateLimits",
    "Recall",
    "RecallDone",
    "Rejected",
    "ResponseCreated",
    "ResponseDelta",
    "ResponseDone",
    "ResponseEvidence",
    "ResponseHop",
    "ResponseMetrics",
    "ResponseRoute",
    "Resume",
    "Resumed",
    "RouteChoice",
    "RouteOut",
    "ServerFrame",
    "ServerInfo",
    "SessionOpen",
    "SessionOpened",
    "Unwatch",
    "Usage",
    "UsageFrame",
    "UsageToday",
    "Watch",
    "Welcome",
    "WireItem",
    "Write",
    "WriteDone",
]


# ---------------------------------------------------------------------------------------------- client to server
class _In(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", omit_defaults=True):
    pass


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class ClientInfo(_Part, frozen=True, kw_only=True):
    """Who speaks."""

    name: str = ""
    version: str = ""


class Resume(_Part, frozen=True, kw_only=True):
    """A stream to go on with: its name and epoch from `response.created`, and the last `seq` that was seen."""

    stream: str
    epoch: str
    after_seq: int = 0


class Hello(_In, tag="hello", frozen=True, kw_only=True):
    """The first frame, within 5 s. `coalesce_ms` (0-100): how long deltas are merged before they are sent.

    `resume`: responses of an earlier connection to go on with. `auth`: an API key or a token, where the request that
    opened the socket had none.
    """

    id: str = ""
    client: ClientInfo = ClientInfo()
    coalesce_ms: int = 15
    resume: tuple[Resume, ...] = ()
    auth: str | None = None


class SessionOpen(_In, tag="session.open", frozen=True, kw_only=True):
    """Open a session, or make one: without `session` a new id is made; `create=False` refuses to make a named one.

    `bits` (32, 8, 4, 2 or 1) is the precision of its memory's codes and `budget_bytes` the most that this memory may
    hold. Null: as the session has it, and a new one as its node says.
    """

    id: str
    session: str | None = None
    metadata: dict[str, Any] = {}
    ttl_s: float | None = None
    create: bool = True
    bits: int | None = None
    budget_bytes: int | None = None


class WireItem(_Part, frozen=True, kw_only=True):
    """One item to remember: text, or `amplitudes` that come from outside (d numbers).

    `at`: RFC 3339 or seconds since 1970; missing means now. The same `item_id` again changes nothing.
    `role: document` text is cut into passages; `role: recalled` is never absorbed.
    """

    item_id: str | None = None
    text: str | None = None
    amplitudes: tuple[float, ...] | None = None
    speaker: str | None = None
    role: Literal["user", "assistant", "tool", "document", "recalled"] = "user"
    at: str | float | None = None
    metadata: dict[str, Any] = {}
    ttl_s: float | None = None
    pin: bool = False


class Write(_In, tag="write", frozen=True, kw_only=True):
    """Text streams into states. Exactly one of `session` and `collection`."""

    id: str
    session: str | None = None
    collection: str | None = None
    items: tuple[WireItem, ...]


class Recall(_In, tag="recall", frozen=True, kw_only=True):
    """Evidence for a text, from a session, collections, or both."""

    id: str
    session: str | None = None
    collections: tuple[str, ...] = ()
    text: str
    k: int = 10
    token_budget: int | None = None
    filter: Filter | None = None
    as_of: str | float | None = None
    max_visits: int | None = None
    explain: bool = False


class RouteChoice(_Part, frozen=True, kw_only=True):
    """How to route."""

    max_visits: int | None = None
    deadline_ms: int | None = None
    explain: bool = False


class EvidenceChoice(_Part, frozen=True, kw_only=True):
    """How much evidence goes to the model.

    `min_probability` drops what is less likely, `min_share` what is less than this share as likely as the best.
    """

    k: int = 20
    token_budget: int = 512
    min_probability: float = 0.0
    min_share: float = 0.25
    filter: Filter | None = None
    as_of: str | float | None = None


class GenerateChoice(_Part, frozen=True, kw_only=True):
    """How to generate. `model` names a generator node or its model; none: the cheapest to reach."""

    model: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


class MetricsChoice(_Part, frozen=True, kw_only=True):
    """How often `response.metrics` come."""

    every_ms: int = 250


class Enhance(_In, tag="enhance", frozen=True, kw_only=True):
    """Prompt in, routed evidence and streamed text out. `generate: false` stops at the evidence.

    `collections: null` means every collection of the topology, `[]` none.
    `remember`: prompt and answer are written to the session afterwards (what was recalled never is).
    `key`: chosen anew for each prompt; the same command with the same key again leads to the same response.
    `again`: it was sent before, perhaps to another gateway, which is asked for then, too.
    """

    id: str
    session: str | None = None
    prompt: str
    collections: tuple[str, ...] | None = None
    route: RouteChoice = RouteChoice()
    evidence: EvidenceChoice = EvidenceChoice()
    generate: GenerateChoice | Literal[False] = GenerateChoice()
    remember: bool = False
    metrics: MetricsChoice | None = None
    key: str | None = None
    again: bool = False


class Cancel(_In, tag="cancel", frozen=True, kw_only=True):
    """Stop a response: `target` is its stream, its response id, its key, or the id of its command.

    Harmless when late.
    """

    id: str
    target: str


class Watch(_In, tag="watch", frozen=True, kw_only=True):
    """Follow a topic: `network`, `usage`, or `session:ID`."""

    id: str
    topic: str
    every_ms: int = 1000


class Unwatch(_In, tag="unwatch", frozen=True, kw_only=True):
    """Stop following."""

    id: str
    topic: str


class AuthRefresh(_In, tag="auth.refresh", frozen=True, kw_only=True):
    """A newer token of the same subject, before the old one ends; answered by `ack`."""

    id: str
    token: str = ""


class Ping(_In, tag="ping", frozen=True, kw_only=True):
    """Answered by `pong`."""

    id: str = ""


ClientFrame = (
    Hello
    | SessionOpen
    | Write
    | Recall
    | Enhance
    | Cancel
    | Watch
    | Unwatch
    | AuthRefresh
    | Ping
    | StateCommand
    | DecodeOpen
    | DecodeRounds
    | DecodeClose
)


# ---------------------------------------------------------------------------------------------- server to client
class _Out(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class _OutPart(msgspec.Struct, frozen=True, kw_only=True):
    pass


class ServerInfo(_OutPart, frozen=True, kw_only=True):
    """Who answers."""

    version: str


class Limits(_OutPart, frozen=True, kw_only=True):
    """Every limit of this connection."""

    max_frame_bytes: int
    max_items_per_write: int
    max_item_bytes: int
    max_inflight_writes: int
    max_write_bytes_in_flight: int
    max_responses: int
    max_prompt_bytes: int
    max_k: int
    max_tokens: int
    max_inflight_commands: int = 64
    max_watches: int = 16
    max_metadata_bytes: int = 4096
    max_decoders: int = 8
    max_decode_detectors: int = 10_000
    max_decode_bytes: int = 4 * 1024 * 1024
    max_decode_state_bytes: int = 16 * 1024 * 1024
    response_grace_s: float = 60.0
    kept_response_s: float = 120.0
    ring_frames: int = 2000


class Resumed(_OutPart, frozen=True, kw_only=True):
    """What became of a stream that `hello` named.

    `replayed`: what was missed follows, then what is new. `gap`: what was missed is no longer kept, what is new
    follows. `done`: it has ended and all of it was seen. `elsewhere`: another gateway runs it and tells nothing of it,
    so nothing follows here; it can be read by GET. `expired`: it is not known, or not any more.
    """

    stream: str
    result: Literal["replayed", "gap", "expired", "done", "elsewhere"]
    epoch: str = ""


class RateLimit(_OutPart, frozen=True, kw_only=True):
    """How a rate stands: of `limit` in `window_s` seconds `remaining` are left, and more in `reset_ms`.

    `policy`: `key.` or `tenant.`, whichever has less left, and `frames`, `write_bytes` or `tokens`.
    """

    policy: str
    limit: int
    remaining: int
    window_s: int
    reset_ms: int = 0


class Welcome(_Out, tag="welcome", frozen=True, kw_only=True):
    """The answer to `hello`."""

    id: str = ""
    connection: str
    server: ServerInfo
    heartbeat_ms: int
    limits: Limits
    topology: str = ""
    resumed: tuple[Resumed, ...] = ()
    auth_expires_at: str | None = None
    rate_limits: tuple[RateLimit, ...] = ()


class Ack(_Out, tag="ack", frozen=True, kw_only=True):
    """A command was taken. `queued` is no answer: a write waits for room, and its answer follows."""

    id: str
    status: Literal["accepted", "duplicate", "not_found", "queued"]


class SessionOpened(_Out, tag="session.opened", frozen=True, kw_only=True):
    """The session is there; `created` tells whether it is new."""

    id: str
    session: str
    created: bool = False
    node: str = ""
    epoch: int = 0
    state: Figures


class ErrorBody(_OutPart, frozen=True, kw_only=True):
    """What went wrong: the same codes as problem+json."""

    code: str
    title: str
    detail: str
    pointer: str = ""
    retryable: bool = False
    retry_after_ms: int | None = None


class Rejected(_OutPart, frozen=True, kw_only=True):
    """An item that was not written, and why. `index` is its place in the command."""

    index: int
    item_id: str = ""
    error: ErrorBody


class ItemWarning(_OutPart, frozen=True, kw_only=True):
    """An obvious secret in an item: an `api_key`, `aws_key`, `card_number`, `jwt` or `private_key`.

    `item_id`: as the item was given, without the numbers of its passages. `is_masked`: it was written without it.
    """

    item_id: str
    kind: str
    is_masked: bool = False


class WriteDone(_Out, tag="write.done", frozen=True, kw_only=True):
    """Sent when durable and absorbed. `item_ids` are the ids of what was accepted, passages included, in order."""

    id: str
    accepted: int
    duplicates: int = 0
    rejected: tuple[Rejected, ...] = ()
    item_ids: tuple[str, ...] = ()
    state_version: int = 0
    state: Figures
    warnings: tuple[ItemWarning, ...] = ()


class EvidenceOut(_OutPart, frozen=True, kw_only=True):
    """An item with its probability, as it goes out."""

    rank: int
    item_id: str
    node: str
    probability: float
    score: float
    text: str = ""
    session: str | None = None
    collection: str | None = None
    speaker: str | None = None
    role: str = "user"
    at: str = ""
    metadata: dict[str, Any] = {}
    terms: Terms | None = None


class Hop(_OutPart, frozen=True, kw_only=True):
    """One node of the network as the router saw it for this prompt.

    `measured` tells whether it was asked. `relevance` minus `price` is what the router maximises; `why` is a sentence;
    `path` the nodes from the ingress; `terms` every term of the score when explained.
    """

    node: str
    host: str = ""
    relevance: float = 0.0
    price: float = 0.0
    measured: bool = False
    path: tuple[str, ...] = ()
    why: str = ""
    terms: dict[str, float] = {}


class RouteOut(_OutPart, frozen=True, kw_only=True):
    """Which nodes, by which paths, and why."""

    hops: tuple[Hop, ...]
    predicted_ms: float = 0.0
    generator: str = ""
    not_visited: dict[str, str] = {}


class LinkOut(_OutPart, frozen=True, kw_only=True):
    """What a noisy link did to the prompt's state when it crossed.

    `errors` is the Pauli string that happened, one letter a qubit; `fidelity` that of what arrived to what left;
    `lost` the share that leaked out of the state's dimensions. `corrections` is how many errors a protecting code
    corrects on one such crossing, on average, all qubits together; `w` the link's Werner parameter.
    """

    source: str
    target: str
    errors: str
    fidelity: float
    lost: float = 0.0
    corrections: float = 0.0
    w: float = 1.0


class RecallDone(_Out, tag="recall.done", frozen=True, kw_only=True):
    """Evidence by falling probability. `coverage` is the probability that the evidence holds together.

    `links` has every noisy link that the state crossed. `evicted`: items that a byte budget has moved out of the
    memories that answered. Probabilities and `coverage` do not count them; a `filter` finds the newest of them.
    """

    id: str
    evidence: tuple[EvidenceOut, ...]
    coverage: float = 0.0
    route: RouteOut
    state: Figures
    ms: float = 0.0
    links: tuple[LinkOut, ...] = ()
    evicted: int = 0


class _Stamped(_Out, frozen=True, kw_only=True):
    stream: str
    seq: int


class ResponseCreated(_Stamped, tag="response.created", frozen=True, kw_only=True):
    """The response has a name."""

    id: str
    response: str
    model: str = ""
    epoch: str = ""


class ResponseRoute(_Stamped, tag="response.route", frozen=True, kw_only=True):
    """Where the prompt goes."""

    hops: tuple[Hop, ...]
    predicted_ms: float = 0.0
    generator: str = ""
    not_visited: dict[str, str] = {}


class ResponseHop(_Stamped, tag="response.hop", frozen=True, kw_only=True):
    """A node answered.

    `links` has the noisy links that the prompt's state crossed on its way there, in order; `arrived` is the fidelity of
    the state that the node measured to the one that was sent, 1 where no link is noisy.
    """

    node: str
    memory: str = ""
    ms: float
    items_scanned: int = 0
    state: Figures
    error: str = ""
    links: tuple[LinkOut, ...] = ()
    arrived: float = 1.0


class ResponseEvidence(_Stamped, tag="response.evidence", frozen=True, kw_only=True):
    """What goes to the model, by falling probability."""

    items: tuple[EvidenceOut, ...]
    coverage: float = 0.0


class ResponseDelta(_Stamped, tag="response.delta", frozen=True, kw_only=True):
    """A piece of generated text; `tokens` is how many tokens it holds (deltas are merged)."""

    text: str
    tokens: int = 1


class ResponseMetrics(_Stamped, tag="response.metrics", frozen=True, kw_only=True):
    """While it runs: speed of the model, and the state of the evidence measured so far."""

    tokens: int = 0
    tokens_per_s: float = 0.0
    time_to_first_token_ms: float | None = None
    coherence_bits: float = 0.0
    entropy_bits: float = 0.0
    purity: float = 0.0
    compression_ratio: float = 0.0


class Usage(_OutPart, frozen=True, kw_only=True):
    """What a response used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    evidence_items: int = 0
    evidence_tokens: int = 0
    items_scanned: int = 0
    nodes_visited: int = 0
    time_to_first_token_ms: float | None = None
    total_ms: float = 0.0


class ResponseDone(_Stamped, tag="response.done", frozen=True, kw_only=True):
    """The end; exactly one per response."""

    status: Literal["completed", "cancelled", "incomplete", "failed"]
    finish_reason: str = ""
    usage: Usage = Usage()
    state: Figures = Figures()
    error: ErrorBody | None = None


class NodeView(_OutPart, frozen=True, kw_only=True):
    """A node as watchers see it."""

    node: str
    role: str
    host: str = ""
    up: bool = True
    epoch: int = 0
    memories: int = 0
    items: int = 0
    bytes: int = 0
    load: float = 0.0
    latency_ms: float = 0.0
    state: Figures = Figures()
    corrected: int = 0
    stopped: int = 0


class NetworkSnapshot(_Stamped, tag="network.snapshot", frozen=True, kw_only=True):
    """The whole network, first frame of a watch."""

    topology: str
    nodes: tuple[NodeView, ...]
    links: tuple[dict[str, Any], ...] = ()


class NetworkDelta(_Stamped, tag="network.delta", frozen=True, kw_only=True):
    """The nodes that changed; `skipped` counts the deltas left out for a slow reader."""

    nodes: tuple[NodeView, ...]
    skipped: int = 0


class Metrics(_Stamped, tag="metrics", frozen=True, kw_only=True):
    """Figures of a watched session."""

    session: str
    state: Figures
    skipped: int = 0


class UsageToday(_OutPart, frozen=True, kw_only=True):
    """What the key of this connection has used on this day (UTC), over all gateways, and what it holds."""

    day: str
    requests: int = 0
    frames: int = 0
    items: int = 0
    bytes: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    held_items: int = 0
    held_bytes: int = 0


class UsageFrame(_Stamped, tag="usage", frozen=True, kw_only=True):
    """Counts since the connection opened, and those of the key's day."""

    written_items: int = 0
    recalls: int = 0
    responses: int = 0
    tokens: int = 0
    skipped: int = 0
    today: UsageToday | None = None


class RateLimits(_Out, tag="rate_limits", frozen=True, kw_only=True):
    """Little is left of a rate: how all of them stand. Once a second at most, while it is so."""

    limits: tuple[RateLimit, ...]


class ErrorFrame(_Out, tag="error", frozen=True, kw_only=True):
    """A command that could not be carried out, or a fault of the connection."""

    id: str = ""
    stream: str = ""
    error: ErrorBody


class Pong(_Out, tag="pong", frozen=True, kw_only=True):
    """The answer to `ping`."""

    id: str = ""


class Goodbye(_Out, tag="goodbye", frozen=True, kw_only=True):
    """Before a planned close."""

    reason: str
    reconnect_after_ms: int = 0


ServerFrame = (
    Welcome
    | Ack
    | SessionOpened
    | WriteDone
    | RecallDone
    | StateDone
    | DecodeOpened
    | DecodeCommitted
    | DecodeDone
    | ResponseCreated
    | ResponseRoute
    | ResponseHop
    | ResponseEvidence
    | ResponseDelta
    | ResponseMetrics
    | ResponseDone
    | NetworkSnapshot
    | NetworkDelta
    | Metrics
    | UsageFrame
    | RateLimits
    | ErrorFrame
    | Pong
    | Goodbye
)
