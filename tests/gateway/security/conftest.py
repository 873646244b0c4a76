"""A server that asks who comes in: keys of two tenants, and tokens by a shared secret and by a key set."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from qraf.actors.runtime import LocalRuntime
from qraf.gateway.security.keys import Keys
from qraf.gateway.server import Server
from qraf.sessions.service import Service
from qraf.settings import AuthSettings, GatewaySettings, JwtSettings, QuotaSettings, Settings
from qraf.storage.journal import Journal
from tests.encoders import HashEncoder
from tests.gateway.conftest import topology
from tests.openai_server import OpenAIServer

SECRET = "a secret of thirty-two bytes, at the very least"
ORIGIN = "https://app.example"


@dataclass
class Signer:
    """Whoever signs tokens: an RSA key `r1` and a P-256 key `e1` in the key set, and the shared secret."""

    rsa: rsa.RSAPrivateKey
    ec: ec.EllipticCurvePrivateKey

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = time.time()
        claims = {"sub": "ann", "aud": "qraf", "iss": "https://id.example", "exp": now + 300, "tenant": "acme"}
        return {key: value for key, value in (claims | {"role": "client"} | changes).items() if value is not None}

    def token(self, algorithm: str = "RS256", key: Any = None, kid: str | None = None, **changes: Any) -> str:
        keys = {"RS256": (self.rsa, "r1"), "ES256": (self.ec, "e1"), "HS256": (SECRET, None)}
        own, own_kid = keys.get(algorithm, (None, None))
        kid = kid or own_kid
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**changes), key or own, algorithm=algorithm, headers=headers)

    def key_set(self) -> dict[str, Any]:
        rsa_key = json.loads(RSAAlgorithm.to_jwk(self.rsa.public_key())) | {"kid": "r1", "use": "sig"}
        ec_key = json.loads(ECAlgorithm.to_jwk(self.ec.public_key())) | {"kid": "e1", "use": "sig"}
        return {"keys": [rsa_key, ec_key]}


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer(rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1()))


@dataclass
class Place:
    """A running server, its journal, and keys: by `TENANT ROLE`."""

    server: Server
    journal: Journal
    keys: dict[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def bearer(self, who: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys.get(who, who)}"}

    @contextlib.asynccontextmanager
    async def http(self, who: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
        headers = {} if who is None else self.bearer(who)
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False, timeout=10) as client:
            yield client

    async def audited(self, **wanted: str) -> dict[str, Any]:
        """The newest audit line that has these values, waited for."""
        import asyncio

        async with asyncio.timeout(15), self.http("default admin") as http:
            while True:
                for line in (await http.get("/v1/audit?limit=200")).json()["data"]:
                    if all(line[name] == value for name, value in wanted.items()):
                        return dict(line)
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def guarded(
    model: OpenAIServer, data: Path, signer: Signer, quotas: QuotaSettings | None = None, **auth: Any
) -> AsyncIterator[Place]:
    """A server with authentication on, over a journal in a file that a second one may share."""
    key_set = data / "jwks.json"
    key_set.write_text(json.dumps(signer.key_set()))
    tokens = JwtSettings(jwks_file=key_set, secret=SECRET, audience="qraf", issuer="https://id.example", leeway_s=0)  # type: ignore[arg-type]
    settings = Settings(
        data=data,
        gateway=GatewaySettings(port=0, origins=(ORIGIN,)),
        auth=AuthSettings(jwt=tokens, **auth),
        quotas=quotas or QuotaSettings(),
    )
    journal = Journal.open(settings.journal())
    network = topology()
    runtime = LocalRuntime(
        network, settings, journal, encoder=lambda: HashEncoder(network.dim), endpoint=model.endpoint
    )
    service = Service(settings, network, journal, runtime)
    await service.start()
    server = Server(service, settings)
    ring, keys = Keys(journal.keys, service.clock), {}
    for tenant in ("default", "acme", "brook"):
        for role in ("viewer", "client", "operator", "admin"):
            _, keys[f"{tenant} {role}"] = await ring.create(tenant=tenant, role=role)
    try:
        await server.start()
        yield Place(server, journal, keys)
    finally:
        await server.stop()
        await service.close()
        journal.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(models: OpenAIServer, tmp_path_factory: pytest.TempPathFactory, signer: Signer) -> AsyncIterator[Place]:
    async with guarded(models, tmp_path_factory.mktemp("guarded"), signer) as place:
        yield place
