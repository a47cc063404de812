"""Recognises JSON Web Tokens by keys and algorithms that configuration alone decides.

Nothing in a token chooses an algorithm, names a file or causes a fetch, and no answer echoes a token.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Literal

import jwt
from msgspec import Meta
from uuid_utils import uuid7

from openclaw_gateway.api import (
    Duration,
    Exchange,
    Fact,
    GatewayError,
    HealthCheck,
    Host,
    PluginConfig,
    Principal,
    Refusal,
    Secret,
    hookimpl,
    unauthorized,
)
from openclaw_plugins.auth.cache import Verified, fingerprint
from openclaw_plugins.auth.claims import Claims, principal_of
from openclaw_plugins.auth.credentials import bearer, token_parameter
from openclaw_plugins.auth.grants import check_grant
from openclaw_plugins.auth.kept_secret import kept_secret
from openclaw_plugins.auth.key_source import KeySet, KeySource
from openclaw_plugins.auth.token_keys import HMAC_BYTES, Keys, check_keys, public_keys

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

_MAX_TOKEN = 8192
#: types under which access tokens travel (RFC 9068); anything else, a logout token say, is no credential
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_three_parts = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch

_REFUSED = unauthorized("the token is not valid")
_TOO_LONG = unauthorized(f"the token is longer than {_MAX_TOKEN} bytes")
_NOT_A_TOKEN = unauthorized("the parameter `token` takes a JWT and nothing else")


class JsonWebTokens:
    """Verifies bearer tokens of three parts, and remembers verified ones until they expire."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        algorithms: Annotated[
            tuple[Algorithm, ...],
            Meta(min_length=1, description="Algorithms that are accepted; HMAC and public-key ones never together."),
        ] = ("HS256",)
        secret: Annotated[
            Secret | None,
            Meta(description="The shared secret of HS256, 32 bytes or more; by default one made in data_dir."),
        ] = None
        public_key_file: Annotated[
            str | None,
            Meta(description="Public key (PEM) or keys (a JSON Web Key Set), relative to this file."),
        ] = None
        jwks: Annotated[KeySet | None, Meta(description="Public keys that the issuer serves.")] = None
        issuer: Annotated[
            Annotated[str, Meta(min_length=1)] | None, Meta(description="What `iss` must be; unchecked by default.")
        ] = None
        audience: Annotated[
            Annotated[str, Meta(min_length=1)] | None, Meta(description="What `aud` must hold; unchecked by default.")
        ] = None
        leeway: Annotated[Duration, Meta(description="How far the issuer's clock may differ.")] = Duration(30)
        claims: Annotated[Claims, Meta(description="Names of the claims.")] = Claims()
        cache_size: Annotated[int, Meta(ge=1, description="How many verified tokens are remembered.")] = 10_000

    def __init__(self, config: Config, host: Host) -> None:
        secret = config.secret.reveal() if config.secret is not None else None
        check_keys(
            config.algorithms,
            secret=secret,
            public_key_file=config.public_key_file,
            jwks=config.jwks is not None,
        )
        self._config = config
        self._host = host
        self._clock = host.clock
        self._algorithms = list(config.algorithms)
        self._verified = Verified(config.cache_size)
        self._keys: Keys = {}
        self._source: KeySource | None = None
        if config.jwks is not None:
            self._source = KeySource(config.jwks, self._algorithms, host, field="jwks", changed=self._verified.clear)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        if self._source is not None:
            async with self._source.opened():
                yield
            return
        self._keys = self._load()
        yield

    @hookimpl
    def notices(self) -> list[str]:
        config = self._config
        unset = [name for name in ("issuer", "audience") if getattr(config, name) is None]
        # A shared secret is the gateway's own; whoever has a private key signs for other services too.
        if not unset or config.algorithms[0] in HMAC_BYTES:
            return []
        return [
            f"plugins.{self._host.id}: {' and '.join(unset)} not set: a token that these keys verify is good here, "
            "whichever service it was made for"
        ]

    @hookimpl
    def health(self) -> list[HealthCheck]:
        return [HealthCheck(f"{self._host.id}_keys", self._source.probe)] if self._source is not None else []

    async def authenticate(self, x: Exchange) -> Principal | Refusal | None:
        token = bearer(x)
        if token is None:
            token = token_parameter(x)
            if token is None:
                return None
            if token.count(b".") != 2:
                return _NOT_A_TOKEN
        elif token.count(b".") != 2:
            return None
        if len(token) > _MAX_TOKEN:
            return _TOO_LONG
        now = self._clock.now()
        key = fingerprint(token)
        known = self._verified.get(key, now)
        if known is not None:
            return known
        found = await self._verify(token, now)
        if isinstance(found, Principal):
            assert found.expires_at is not None
            self._verified.put(key, found, found.expires_at)
        return found

    def mint(self, *, organization: str, user: str, tier: str, scopes: Iterable[str] = (), ttl: float = 3600) -> str:
        """Return a development token. Raises NotGrantable, and NoSecret where only public keys are configured."""
        scopes = tuple(scopes)
        check_grant(self._host.tiers, organization=organization, user=user, tier=tier, scopes=scopes)
        algorithm = self._algorithms[0]
        if algorithm not in HMAC_BYTES:
            raise NoSecret(
                f"plugin {self._host.id!r} verifies {algorithm} with a public key: its tokens are made by their issuer"
            )
        config, now = self._config, int(self._clock.now())
        names = config.claims
        payload: dict[str, Any] = {
            "iat": now,
            "exp": now + math.ceil(ttl),
            "jti": str(uuid7()),
            names.organization: organization,
            names.user: user,
            names.tier: tier,
            names.scopes: " ".join(scopes),
        }
        if config.issuer is not None:
            payload["iss"] = config.issuer
        if config.audience is not None:
            payload["aud"] = config.audience
        return jwt.encode(payload, self._keys[None], algorithm=algorithm)

    async def _verify(self, token: bytes, now: float) -> Principal | Refusal:
        if not _three_parts(token):
            return _REFUSED
        try:
            header = jwt.get_unverified_header(token)
            key = await self._key_of(header)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return _REFUSED
        if key is None or "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
            return _REFUSED
        config = self._config
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                issuer=config.issuer,
                audience=config.audience,
                # Times are checked below, by the gateway's clock.
                options={
                    "require": ["exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": config.audience is not None,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
            return _REFUSED
        return principal_of(
            claims, config.claims, now=now, leeway=config.leeway, method="jwt", credential=None, must_expire=True
        )

    async def _key_of(self, header: Mapping[str, Any]) -> Any:
        """Return the key that the token's `kid` names among ours; nothing else of its header is followed."""
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in self._algorithms or not (kid is None or isinstance(kid, str)):
            return None
        if self._source is not None:
            return await self._source.key(kid, algorithm)
        return self._keys.get(None) or self._keys.get(kid)

    def _load(self) -> Keys:
        config = self._config
        if config.public_key_file is not None:
            shown = f"plugins.{self._host.id}.public_key_file: {config.public_key_file}"
            return public_keys(self._host.config_dir / config.public_key_file, self._algorithms, shown)
        if config.secret is not None:
            return {None: config.secret.reveal().encode()}
        return {None: kept_secret(self._host.data_dir / "jwt.secret", self._host.logger)}


class NoSecret(GatewayError):
    """A development token was asked of a configuration that can only verify."""
