"""Settings of a server, read once and passed down in slices. Nothing below `cli.py` reads the environment.

Every field can be set by an environment variable with the prefix `QRAF_`, nested fields with `__`
(`QRAF_GATEWAY__PORT=9000`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = [
    "EncoderSettings",
    "GatewaySettings",
    "GeneratorSettings",
    "LimitSettings",
    "RuntimeSettings",
    "Settings",
]


class _Slice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitSettings(_Slice):
    """Every limit a client can meet; all are told in docs/protocol.md and in the error that names them."""

    max_frame_bytes: int = Field(1024 * 1024, ge=1024, description="longest frame or request body")
    max_items_per_write: int = Field(512, ge=1)
    max_item_bytes: int = Field(256 * 1024, ge=16, description="longest text of one item, UTF-8")
    max_prompt_bytes: int = Field(32 * 1024, ge=16)
    max_inflight_writes: int = Field(64, ge=1, description="writes of one connection not answered yet")
    max_write_bytes_in_flight: int = Field(8 * 1024 * 1024, ge=1024, description="over all connections of a gateway")
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
    max_metadata_bytes: int = Field(4096, ge=0)
    max_inflight_commands: int = Field(64, ge=1, description="recalls and session.opens of one connection not answered")


class GatewaySettings(_Slice):
    """Where the gateway listens. Only loopback until there is authentication."""

    host: str = "127.0.0.1"
    port: int = Field(8642, ge=0, le=65535, description="0: any free port")
    heartbeat_ms: int = Field(20_000, ge=1000)
    coalesce_ms: int = Field(15, ge=0, le=100)


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


class Settings(BaseSettings):
    """Everything a server needs to know."""

    model_config = SettingsConfigDict(
        env_prefix="QRAF_", env_nested_delimiter="__", frozen=True, extra="forbid", env_file=None
    )

    topology: Path = Path("topologies/library.yaml")
    data: Path = Field(Path(".qraf"), description="directory of the journal")
    journal_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data directory")
    gateway: GatewaySettings = GatewaySettings()
    limits: LimitSettings = LimitSettings()
    encoder: EncoderSettings = EncoderSettings()
    generator: GeneratorSettings = GeneratorSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    def journal(self) -> str:
        """The journal's URL, with the default filled in."""
        return self.journal_url or f"sqlite:///{(self.data / 'journal.db').absolute()}"
