"""Settings of a server, read once and passed down in slices. Nothing below `cli.py` reads the environment.

Every field can be set by an environment variable with the prefix `QRAF_`, nested fields with `__`
(`QRAF_GATEWAY__PORT=9000`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = [
    "Allowance",
    "AuthSettings",
    "EncoderSettings",
    "GatewaySettings",
    "GeneratorSettings",
    "JwtSettings",
    "LimitSettings",
    "LogSettings",
    "OnSecret",
    "QuotaSettings",
    "RepeatSettings",
    "RuntimeSettings",
    "SealSettings",
    "ServiceSettings",
    "Settings",
    "SnapshotSettings",
    "StateSettings",
    "WriteSettings",
]


class _Slice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _rate(text: str) -> str:
    if re.fullmatch(r"[1-9][0-9]{0,14}/(second|minute|hour|day)", text) is None:
        raise ValueError("must be a rate: N/second, N/minute, N/hour or N/day")
    return text


def _origin(text: str) -> str:
    if re.fullmatch(r"https?://[^/?#\s@]+", text) is None or text != text.lower():
        raise ValueError("must be an origin as pages send it: `https://app.example`, in lower case, without a path")
    return text


Rate = Annotated[str, AfterValidator(_rate)]
Origin = Annotated[str, AfterValidator(_origin)]


class LimitSettings(_Slice):
    """Every limit a client can meet; all are told in docs/protocol.md and in the error that names them."""

    max_frame_bytes: int = Field(1024 * 1024, ge=1024, description="longest frame or request body")
    max_items_per_write: int = Field(512, ge=1)
    max_item_bytes: int = Field(256 * 1024, ge=16, description="longest text of one item, UTF-8")
    max_prompt_bytes: int = Field(32 * 1024, ge=16)
    max_inflight_writes: int = Field(64, ge=1, description="writes of one connection not answered yet")
    max_write_bytes_in_flight: int = Field(8 * 1024 * 1024, ge=1024, description="over all connections of a gateway")
    max_queued_write_bytes: int = Field(32 * 1024 * 1024, ge=0, description="of writes that wait for that room")
    max_incoming_bytes: int = Field(
        256 * 1024 * 1024, ge=1024, description="of a gateway: bodies not answered, messages not whole"
    )
    write_wait_ms: int = Field(2000, ge=0, description="how long a write waits for room before it is refused")
    max_responses: int = Field(16, ge=1, description="running responses of one connection")
    max_running_responses: int = Field(512, ge=1, description="running responses of a gateway")
    max_connections: int = Field(10_000, ge=1)
    max_watches: int = Field(16, ge=1)
    max_k: int = Field(200, ge=1)
    max_tokens: int = Field(2048, ge=1)
    outbox_frames: int = Field(1024, ge=16, description="frames that wait for a slow reader before it is let go (4008)")
    outbox_bytes: int = Field(8 * 1024 * 1024, ge=65536)
    hello_timeout_s: float = Field(5.0, gt=0)
    send_timeout_s: float = Field(10.0, gt=0)
    idle_timeout_s: float = Field(75.0, gt=0, description="silence, pings included, after which a socket is closed")
    kept_responses: int = Field(1000, ge=1, description="ended responses kept for GET /v1/responses")
    kept_response_s: float = Field(120.0, gt=0)
    response_grace_s: float = Field(60.0, ge=0, description="how long a response runs on that nobody reads")
    max_unread_responses: int = Field(256, ge=0, description="responses of a gateway that run on unread")
    ring_frames: int = Field(2000, ge=1, description="last frames of a response that a reader may still ask for")
    ring_session_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="in the rings of one session or connection")
    ring_tenant_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="in all rings of one tenant")
    ring_bytes: int = Field(128 * 1024 * 1024, ge=1024, description="in all rings of a gateway")
    kept_text_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="texts of ended responses")
    max_metadata_bytes: int = Field(4096, ge=0)
    max_inflight_commands: int = Field(64, ge=1, description="recalls and session.opens of one connection not answered")
    max_decoders: int = Field(8, ge=0, description="open decoders of one connection")
    max_open_decoders: int = Field(256, ge=0, description="open decoders of a gateway")
    max_open_decode_bytes: int = Field(1024**3, ge=1024, description="graphs and windows of a gateway's decoders")
    # the graph of such a code holds the interpreter for some 0.2 s when it is first built
    max_decode_detectors: int = Field(10_000, ge=1, description="of one decoder's code or model")
    max_decode_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="rounds of one connection not answered yet")
    max_decode_state_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="window of one decoder, all its shots")


class GatewaySettings(_Slice):
    """Where the gateway listens: loopback, or elsewhere with authentication and TLS (its own, or a proxy's)."""

    host: str = "127.0.0.1"
    port: int = Field(8642, ge=0, le=65535, description="0: any free port")
    heartbeat_ms: int = Field(20_000, ge=1000)
    coalesce_ms: int = Field(15, ge=0, le=100)
    origins: tuple[Origin, ...] = Field(
        (), description="origins whose pages may use this server, as `https://app.example`"
    )
    tls_cert: Path | None = Field(None, description="certificate chain, PEM")
    tls_key: Path | None = Field(None, description="its private key, PEM")
    behind_proxy: bool = Field(False, description="a proxy in front ends TLS")
    drain_s: float = Field(15.0, ge=0, description="how long running responses may go on once the server stops")
    trusted_proxies: str = Field("127.0.0.1", description="addresses whose X-Forwarded-For is believed")


class RepeatSettings(_Slice):
    """Answers kept for requests that come again with the same `Idempotency-Key`."""

    kept_s: float = Field(86_400.0, gt=0, description="how long an answer is kept")
    max_answers: int = Field(100_000, ge=1, description="of one tenant; beyond it the oldest go")
    max_answer_bytes: int = Field(1024 * 1024, ge=1024, description="a longer answer is not told again")
    lease_s: float = Field(60.0, gt=0, description="a request not answered for so long was lost with its gateway")


class JwtSettings(_Slice):
    """Tokens that somebody else signs. Empty: none are taken."""

    secret: SecretStr = Field(SecretStr(""), description="for HS256; 32 bytes at least")
    jwks_url: str = Field("", description="public keys for RS256 and ES256")
    jwks_file: Path | None = None
    jwks_cache_s: float = Field(300.0, gt=0)
    audience: str = ""
    issuer: str = ""
    tenant_claim: str = "tenant"
    role_claim: str = "role"
    leeway_s: float = Field(5.0, ge=0, le=60)


class AuthSettings(_Slice):
    """Who may come in. `off` (on loopback alone): everybody on this machine may do everything."""

    mode: Literal["on", "off"] = "on"
    jwt: JwtSettings = JwtSettings()
    ticket_s: float = Field(60.0, gt=0, description="how long a ticket for a socket is good")


class Allowance(_Slice):
    """How much one key, or all of a tenant's together, may do and hold. Days are those of UTC."""

    requests: Rate = Field("120000/minute", description="HTTP requests")
    frames: Rate = Field("1200000/minute", description="frames that come in over sockets")
    write_bytes: Rate = Field("8000000000/minute", description="texts, metadata and amplitudes that are written")
    tokens: Rate = Field("10000000/minute", description="generated tokens")
    tokens_per_day: int = Field(2_000_000_000, ge=0, description="generated tokens")
    items: int = Field(50_000_000, ge=0, description="items held")
    bytes: int = Field(256 * 1024**3, ge=0, description="texts, metadata and amplitudes held; packets of states, too")
    responses: int = Field(512, ge=0, description="running at once in a gateway")
    sockets: int = Field(10_000, ge=0, description="open at once in a gateway")


class QuotaSettings(_Slice):
    """What keys and tenants may use. The narrower of a key's allowance and its tenant's counts.

    `roles` change some of `key` for the keys and tokens of a role, `keys` for one (the id of a key, or a token's
    subject as `TENANT sub:NAME`), and `tenants` some of `tenant` for one tenant.
    """

    storage: str = Field(
        "memory",
        description="where rates, sockets and responses are counted: `memory`, or `redis://...` for all gateways",
    )
    storage_timeout_s: float = Field(0.25, gt=0, description="a Redis that takes longer counts as away")
    tenant: Allowance = Allowance()
    key: Allowance = Allowance()
    roles: dict[Literal["viewer", "client", "operator", "admin"], dict[str, Any]] = {}
    tenants: dict[str, dict[str, Any]] = {}
    keys: dict[str, dict[str, Any]] = {}
    warn_ratio: float = Field(0.2, ge=0, le=1, description="a socket is told when less of a rate than this is left")

    @model_validator(mode="after")
    def _is_known(self) -> QuotaSettings:
        for kind in ("roles", "tenants", "keys"):
            for name, changes in getattr(self, kind).items():
                try:
                    Allowance(**changes)
                except ValidationError as error:
                    faults = (f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors(include_input=False))
                    raise ValueError(f"{kind}.{name}.{'; '.join(faults)}") from None
        return self

    def of_tenant(self, tenant: str) -> Allowance:
        """What all of a tenant's keys together may."""
        return Allowance(**self.tenant.model_dump() | self.tenants.get(tenant, {}))

    def of_key(self, tenant: str, key: str, role: str) -> Allowance:
        """What one key may, or the subject of a token."""
        own = self.keys.get(key) or self.keys.get(f"{tenant} {key}") or {}
        roles = {str(name): changes for name, changes in self.roles.items()}
        return Allowance(**self.key.model_dump() | roles.get(role, {}) | own)


class EncoderSettings(_Slice):
    """Which encoder, and how many threads it may use (0: half of the cores, at least one)."""

    name: Literal["minilm", "wordllama"] = "minilm"
    threads: int = Field(0, ge=0)
    max_batch: int = Field(64, ge=1)


class GeneratorSettings(_Slice):
    """The language model of generator nodes that name no URL of their own."""

    url: str = Field("", description="an OpenAI-compatible server; empty: the embedded engine")
    model: str = Field("", description="the model's name at that server")
    api_key: SecretStr = SecretStr("")
    gguf: Path | None = Field(None, description="weights for the embedded engine; default: SmolLM2-135M-Instruct")
    threads: int = Field(1, ge=1)
    slots: int = Field(8, ge=1, description="streams that the embedded engine runs at once")
    context_tokens: int = Field(2048, ge=256, description="context of one slot")
    max_waiting: int = Field(64, ge=0, description="requests that may wait for a slot; more are refused")
    first_token_timeout_s: float = Field(120.0, gt=0)
    token_timeout_s: float = Field(60.0, gt=0)
    cache: Path = Field(Path("~/.cache/qraf"), description="where re-encoded weights are kept")


class RuntimeSettings(_Slice):
    """Where nodes run: `ray` (actors) or `local` (in this process, for tests and small machines)."""

    kind: Literal["ray", "local"] = "ray"
    address: str = Field("", description="a running Ray cluster; empty: start one here")
    namespace: str = "qraf"
    call_timeout_s: float = Field(30.0, gt=0)
    probe_every_s: float = Field(1.0, gt=0)
    probe_timeout_s: float = Field(3.0, gt=0)
    object_store_bytes: int = Field(96 * 1024 * 1024, ge=80 * 1024 * 1024)
    batch_window_ms: float = Field(0.0, ge=0, description="waited for company; calls join while others are out anyway")
    max_batch: int = Field(64, ge=1)
    max_waiting: int = Field(4096, ge=1, description="calls that may wait for one host; more are refused")
    spare_hosts: int = Field(1, ge=0, le=1, description="a loaded process that takes over from a host that died")


class LogSettings(_Slice):
    """What the server tells on standard error. No line holds texts, prompts or keys, whatever the level."""

    format: Literal["readable", "json"] = "readable"
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="`info`: a line for each request")


OnSecret = Literal["warn", "refuse", "mask", "off"]


class WriteSettings(_Slice):
    """What becomes of items in which an obvious secret stands: a key, a token, a private key, a card number."""

    secrets: OnSecret = Field(
        "warn", description="`warn` writes and says so, `mask` writes without it, `refuse` does not write the item"
    )


class SealSettings(_Slice):
    """What the journal is sealed with. The first master key wraps, the others still open what they wrapped.

    At most one of `key_file`, `key` and `command`; with none of them it is `master.key` in the data directory, made at
    the first start.
    """

    mode: Literal["on", "off"] = Field("on", description="off: nothing new is sealed")
    key_file: Path | None = Field(None, description="master keys: the base64 of 32 bytes, one a line; # comments")
    key: SecretStr = Field(SecretStr(""), description="the same, separated by spaces")
    command: str = Field("", description="a program and its arguments that prints the same; no shell")


class SnapshotSettings(_Slice):
    """Snapshots of memories, which make a start quicker. The journal has everything without them."""

    mode: Literal["on", "off"] = "on"
    url: str = Field("", description="a directory, or what fsspec takes (s3://bucket/x); empty: in the data directory")
    every_items: int = Field(2000, ge=1, description="items that came or went since the last one, or an eighth of all")
    every_s: float = Field(300.0, gt=0, description="a memory that changed has a new one after so long")
    keep: int = Field(2, ge=1, description="of each memory")
    min_items: int = Field(512, ge=1, description="smaller memories are as quickly read from the journal")
    max_bytes: int = Field(1024**3, ge=1024, description="of larger memories none are made")
    drain_s: float = Field(5.0, ge=0, le=8, description="for the last ones, when a host stops")
    restore_s: float = Field(30.0, gt=0, description="a memory waits so long for its own; then it reads the journal")


class StateSettings(_Slice):
    """Bounds of stored states; every one is named by the error that meets it. d is at most 4096 in any case."""

    max_states: int = Field(10_000, ge=1, description="states in the journal")
    max_bytes: int = Field(
        288 * 1024 * 1024, ge=1024, description="packet of one state; 12 qubits of full rank: 257 MiB"
    )
    max_total_bytes: int = Field(4 * 1024**3, ge=1024, description="packets of all states in the journal")
    max_batch: int = Field(256, ge=1, description="states, or pairs of states, in one call")
    max_steps: int = Field(1024, ge=1, description="steps of one evolution")
    max_vectors: int = Field(4096, ge=1, description="vectors of one measurement")
    max_shots: int = Field(1_000_000, ge=1)
    max_paulis: int = Field(4096, ge=1, description="Pauli strings of one observable")
    max_text_bytes: int = Field(32 * 1024, ge=16, description="text of one preparation")
    max_call_bytes: int = Field(512 * 1024 * 1024, ge=1024, description="factors that one call loads or makes")
    max_call_s: float = Field(20.0, gt=0, description="one call in its host; below runtime.call_timeout_s")
    max_operation_s: float = Field(600.0, gt=0, description="one that was ordered as an operation")
    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="longest body of a request under /v1/state")
    cache_bytes: int = Field(256 * 1024 * 1024, ge=0, description="decoded states that a host keeps, oldest let go")


class ServiceSettings(_Slice):
    """The stateless services (quantize, optimize, correct), inline or on Ray Serve, and their long jobs."""

    threads: int = Field(1, ge=1, description="inline: threads of each service")
    max_batch: int = Field(64, ge=1, description="orders that go to a service together")
    max_waiting: int = Field(1024, ge=1, description="orders that may wait for one service; more are refused")
    call_timeout_s: float = Field(120.0, gt=0)
    replica_threads: int = Field(1, ge=1, description="of torch, in a replica")
    upscale_delay_s: float = Field(2.0, ge=0, description="load must last so long before replicas are added")
    downscale_delay_s: float = Field(60.0, ge=0)
    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="longest body of an order")
    long_order_s: float = Field(2.0, gt=0, description="an order estimated at more, on one core, becomes a job")
    part_s: float = Field(0.25, gt=0, description="a job is cut into parts of about this; it can be cancelled between")
    max_operations: int = Field(64, ge=1, description="jobs that run or wait; more are refused")
    max_operation_bytes: int = Field(512 * 1024**2, ge=1024, description="of open jobs, and of the results kept")
    kept_operation_s: float = Field(600.0, gt=0, description="how long the result of a job is kept")


class Settings(BaseSettings):
    """Everything a server needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="QRAF_", env_nested_delimiter="__", frozen=True, extra="forbid", env_file=None
    )

    topology: Path = Path("topologies/library.yaml")
    data: Path = Field(Path(".qraf"), description="directory of the journal")
    journal_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data directory")
    gateway: GatewaySettings = GatewaySettings()
    repeats: RepeatSettings = RepeatSettings()
    auth: AuthSettings = AuthSettings()
    limits: LimitSettings = LimitSettings()
    quotas: QuotaSettings = QuotaSettings()
    encoder: EncoderSettings = EncoderSettings()
    generator: GeneratorSettings = GeneratorSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    seal: SealSettings = SealSettings()
    snapshots: SnapshotSettings = SnapshotSettings()
    log: LogSettings = LogSettings()
    write: WriteSettings = WriteSettings()
    states: StateSettings = StateSettings()
    services: ServiceSettings = ServiceSettings()

    @model_validator(mode="after")
    def _is_shared(self) -> Settings:
        if self.runtime.kind == "ray" and self.snapshots.url.startswith("memory:"):
            raise ValueError("snapshots.url: memory: is one process's own, and hosts are others; name a directory")
        return self

    def master_key_file(self) -> Path:
        """The file of the master keys where none is named."""
        return (self.data / "master.key").absolute()

    def snapshots_here(self) -> SnapshotSettings | None:
        """The settings of snapshots with the default place filled in; None where they are off."""
        if self.snapshots.mode == "off":
            return None
        url = self.snapshots.url or str((self.data / "snapshots").absolute())
        return self.snapshots.model_copy(update={"url": url})

    def journal(self) -> str:
        """The journal's URL, with the default filled in."""
        return self.journal_url or f"sqlite:///{(self.data / 'journal.db').absolute()}"
