"""JSON Web Tokens (RFC 7519) that somebody else signs: checked as RFC 8725 says.

The algorithm is not the token's to choose: HS256 goes with the shared secret and nothing else, RS256 with RSA keys and
ES256 with P-256 keys of the key set (JWKS, RFC 7517), so that a public key is never taken for a secret.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec

from qraf.clock import Clock
from qraf.errors import (
    CredentialExpired,
    CredentialInvalid,
    InvalidRequest,
    StorageFailed,
    TokenAlgorithmRefused,
    TokenAudienceWrong,
    TokenIssuerWrong,
    TokenNotYetValid,
)
from qraf.gateway.loopback import is_loopback
from qraf.gateway.security.principal import ROLES, Principal, Role, check_role, scopes_of
from qraf.settings import JwtSettings
from qraf.tenants import check_tenant

__all__ = ["KeySet", "Tokens"]

log = logging.getLogger(__name__)

_MAX_BYTES = 8192  # of a token
_MAX_SET_BYTES = 1024 * 1024
_FETCH_S = 5.0
_AGAIN_S = 10.0  # a key that is not known makes us look again, but not more often than this
_MIN_SECRET_BYTES = 32  # RFC 7518, section 3.2
_MAX_SUBJECT = 256  # as wide as the journal's columns; cut shorter, two subjects could be one
_LAST_S = 253_402_300_800 - 86_400  # what datetime can still say, with every leeway
_OF_TYPE = {"RS256": ("RSA", None), "ES256": ("EC", "P-256")}
_UNSIGNED = "the token's signature is by no key of ours"  # the same for a key id that is not known


class KeySet:
    """The public keys of whoever signs, from a URL or a file, read again when they are old or one is missing."""

    def __init__(self, settings: JwtSettings, clock: Clock) -> None:
        self._url, self._file, self._fresh_s = settings.jwks_url, settings.jwks_file, settings.jwks_cache_s
        self._clock = clock
        self._keys: list[dict[str, Any]] = []
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        if self._url:
            parts = httpx.URL(self._url)
            if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.host)):
                raise InvalidRequest("a key set is fetched by https alone, but for loopback", "/auth/jwt/jwks_url")

    async def find(self, algorithm: str, kid: str | None) -> jwt.PyJWK:
        """The key that goes with an algorithm and a key id.

        Raises:
            CredentialInvalid: there is none. StorageFailed: the set cannot be read.
        """
        found = await self._look(algorithm, kid, self._fresh_s)
        if found is None:
            found = await self._look(algorithm, kid, _AGAIN_S)
        if found is None:
            raise CredentialInvalid(_UNSIGNED)
        return found

    async def _look(self, algorithm: str, kid: str | None, fresh_s: float) -> jwt.PyJWK | None:
        await self._refresh(min(fresh_s, self._fresh_s))
        kty, curve = _OF_TYPE[algorithm]
        fitting = [
            key
            for key in self._keys
            if key.get("kty") == kty
            and (curve is None or key.get("crv") == curve)
            and key.get("use", "sig") == "sig"
            and key.get("alg", algorithm) == algorithm
            and (kid is None or key.get("kid") == kid)
        ]
        if len(fitting) != 1:  # without a key id only where there is no choice
            return None
        try:
            return jwt.PyJWK(fitting[0], algorithm)
        except jwt.PyJWTError as error:
            log.warning("a key of the key set cannot be used: %s", error)
            return None

    async def _refresh(self, fresh_s: float) -> None:
        async with self._reading:
            now = self._clock.monotonic()
            if self._read_at is not None and now - self._read_at < fresh_s:
                return
            try:
                self._keys = _parsed(await self._bytes())
            except (OSError, httpx.HTTPError, msgspec.MsgspecError, ValueError) as error:
                if self._read_at is None:
                    raise StorageFailed("reading the key set", type(error).__name__, 1000) from None
                log.warning("the key set cannot be read again, the old one goes on: %s", type(error).__name__)
            self._read_at = now

    async def _bytes(self) -> bytes:
        if self._url:
            async with (
                httpx.AsyncClient(timeout=_FETCH_S, follow_redirects=False) as http,
                http.stream("GET", self._url, headers={"accept": "application/json"}) as response,
            ):
                response.raise_for_status()
                data = b""
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > _MAX_SET_BYTES:
                        raise ValueError("the key set is too long")
                return data
        assert self._file is not None
        return await asyncio.to_thread(Path(self._file).read_bytes)


class Tokens:
    """The tokens that a server takes; none where its settings name no way to check one."""

    def __init__(self, settings: JwtSettings, clock: Clock) -> None:
        self._settings = settings
        self._secret = settings.secret.get_secret_value().encode()
        has_set = bool(settings.jwks_url or settings.jwks_file)
        self._set = KeySet(settings, clock) if has_set else None
        self.is_configured = bool(self._secret) or has_set
        if not self.is_configured:
            return
        if not settings.audience or not settings.issuer:
            raise InvalidRequest("tokens are taken only for an `audience` and from an `issuer`", "/auth/jwt")
        if settings.jwks_url and settings.jwks_file:
            raise InvalidRequest("give `jwks_url` or `jwks_file`, not both", "/auth/jwt")
        if settings.jwks_file and not settings.jwks_file.is_file():
            raise InvalidRequest(f"there is no file '{settings.jwks_file}'", "/auth/jwt/jwks_file")
        if self._secret and len(self._secret) < _MIN_SECRET_BYTES:
            raise InvalidRequest(f"must have {_MIN_SECRET_BYTES} bytes at least", "/auth/jwt/secret")

    async def verify(self, text: str) -> Principal:
        """Whose a token is. What its claims say is looked at, and told, after its signature.

        Raises:
            CredentialInvalid: says what of it is wrong. CredentialExpired: its time is over.
            TokenAlgorithmRefused, TokenAudienceWrong, TokenIssuerWrong, TokenNotYetValid: as their names say.
            StorageFailed: the key set cannot be read.
        """
        if not self.is_configured:
            raise CredentialInvalid("this server takes API keys (`qraf_...`) alone")
        if len(text) > _MAX_BYTES:
            raise CredentialInvalid(f"a token may have {_MAX_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(text)
        except jwt.PyJWTError:
            raise CredentialInvalid("neither an API key nor a token") from None
        algorithm = header.get("alg")
        kid = header.get("kid")
        key: Any
        if algorithm == "HS256" and self._secret:
            key = self._secret
        elif isinstance(algorithm, str) and algorithm in _OF_TYPE and self._set is not None:
            key = await self._set.find(algorithm, kid if isinstance(kid, str) else None)
        else:
            allowed = (["HS256"] if self._secret else []) + ([*_OF_TYPE] if self._set else [])
            need = " or ".join(allowed)
            raise TokenAlgorithmRefused(f"the token's algorithm must be {need}, but is {algorithm!r:.40}")
        return self._principal(self._claims(text, key, algorithm))

    def _claims(self, text: str, key: Any, algorithm: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                text,
                key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=self._settings.leeway_s,
                options={"require": ["exp", "aud", "iss", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise CredentialExpired("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise TokenNotYetValid("the token is not valid yet (`nbf` or `iat`)") from None
        except jwt.InvalidAudienceError:
            raise TokenAudienceWrong("the token is for another audience (`aud`)") from None
        except jwt.InvalidIssuerError:
            raise TokenIssuerWrong("the token is from another issuer (`iss`)") from None
        except jwt.MissingRequiredClaimError as error:
            raise CredentialInvalid(f"the token has no `{error.claim}`") from None
        except jwt.InvalidSignatureError:
            raise CredentialInvalid(_UNSIGNED) from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise CredentialInvalid("the token cannot be read") from None

    def _principal(self, claims: dict[str, Any]) -> Principal:
        names = self._settings.tenant_claim, self._settings.role_claim
        tenant, role = (claims.get(name) for name in names)
        try:
            known = check_role(str(role))
            tenant = check_tenant(tenant if isinstance(tenant, str) else "")
        except InvalidRequest:
            need = f"`{names[0]}` a tenant's name and `{names[1]}` one of {', '.join(ROLES)}"
            raise CredentialInvalid(f"the token's claims must say who it is for: {need}") from None
        subject, expires_at = f"sub:{claims['sub']}", claims["exp"]
        if not claims["sub"] or len(subject) > _MAX_SUBJECT or not subject.isprintable():
            raise CredentialInvalid(f"`sub` must have 1 to {_MAX_SUBJECT - 4} printable characters")
        if not 0 < expires_at < _LAST_S:
            raise CredentialInvalid("`exp` must be a time before the year 10000")
        return Principal(
            tenant=tenant,
            subject=subject,
            role=known,
            scopes=_narrowed(known, claims.get("scope")),
            expires_at=float(expires_at) + self._settings.leeway_s,
        )


def _narrowed(role: Role, scope: object) -> frozenset[str]:
    """What a role may with this claim; one that is there never widens, and one that cannot be read lets nobody in."""
    if scope is None:
        return scopes_of(role)
    only = scope.split() if isinstance(scope, str) else scope
    if not isinstance(only, list) or not all(isinstance(one, str) for one in only):
        raise CredentialInvalid("`scope` must be names with spaces between them, or a list of names")
    return scopes_of(role) & frozenset(only)


def _parsed(data: bytes) -> list[dict[str, Any]]:
    keys = msgspec.json.decode(data)["keys"]
    if not isinstance(keys, list):
        raise ValueError("no key set")
    return [key for key in keys if isinstance(key, dict)]
