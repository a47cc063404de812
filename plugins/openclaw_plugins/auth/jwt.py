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
    Host,
    PluginConfig,
    Principal,
    Refusal,
    Secret,
    hookimpl,
    unauthorized,
)
from openclaw_plugins.auth.cache import Verified, fingerprint
from openclaw_plugins.auth.credentials import bearer, token_parameter
from openclaw_plugins.auth.grants import check_grant, is_name
from openclaw_plugins.auth.kept_secret import kept_secret
from openclaw_plugins.auth.token_keys import HMAC_BYTES, Keys, check_keys, public_keys

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

_MAX_TOKEN = 8192
#: types under which access tokens travel (RFC 9068); anything else, a logout token say, is no credential
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_three_parts = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch

_REFUSED = unauthorized("the token is not valid")
_EXPIRED = unauthorized("the token has expired")
_EARLY = unauthorized("the token is not valid yet")
_TOO_LONG = unauthorized(f"the token is longer than {_MAX_TOKEN} bytes")
_NOT_A_TOKEN = unauthorized("the parameter `token` takes a JWT and nothing else")
_CLAIMS = unauthorized("the token lacks a claim that this gateway needs, or holds one that it cannot use")


class Claims(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.<id>.claims]`: under which names an issuer states who the caller is."""

    organization: Annotated[str, Meta(min_length=1, description="Claim of the organisation.")] = "org_id"
    user: Annotated[str, Meta(min_length=1, description="Claim of the user.")] = "sub"
    tier: Annotated[str, Meta(min_length=1, description="Claim of the tier.")] = "tier"
    scopes: Annotated[
        str, Meta(min_length=1, description="Claim of the scopes: words in a text, or a list of words.")
    ] = "scope"


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
        check_keys(config.algorithms, secret=secret, public_key_file=config.public_key_file)
        self._config = config
        self._host = host
        self._clock = host.clock
        self._algorithms = list(config.algorithms)
        self._verified = Verified(config.cache_size)
        self._keys: Keys = {}

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._keys = self._load()
        yield

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
        found = self._verify(token, now)
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

    def _verify(self, token: bytes, now: float) -> Principal | Refusal:
        if not _three_parts(token):
            return _REFUSED
        config = self._config
        try:
            decoded = jwt.decode_complete(
                token,
                self._key_of(token),
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
        header = decoded["header"]
        if "crit" in header or str(header.get("typ", "JWT")).lower() not in _TYPES:
            return _REFUSED
        return self._principal(decoded["payload"], now)

    def _principal(self, claims: Mapping[str, Any], now: float) -> Principal | Refusal:
        leeway, names = self._config.leeway, self._config.claims
        expires, begins = claims["exp"], claims.get("nbf", 0)
        if not _is_time(expires) or not _is_time(begins):
            return _CLAIMS
        if expires + leeway <= now:
            return _EXPIRED
        if begins - leeway > now:
            return _EARLY
        organization, user = claims.get(names.organization), claims.get(names.user)
        # A token without a tier is a whole credential with a tier that no file names: the tier step refuses it.
        tier = claims.get(names.tier, "")
        scopes = claims.get(names.scopes, "")
        if isinstance(scopes, str):
            scopes = scopes.split()
        if (
            not is_name(organization)
            or not is_name(user)
            or not (tier == "" or is_name(tier))
            or not isinstance(scopes, list)
            or not all(is_name(scope) for scope in scopes)
        ):
            return _CLAIMS
        token_id = claims.get("jti")
        return Principal(
            organization=organization,
            user=user,
            tier=tier,
            scopes=frozenset(scopes),
            method="jwt",
            credential=token_id if is_name(token_id) else user,
            expires_at=float(expires + leeway),
        )

    def _key_of(self, token: bytes) -> Any:
        keys = self._keys
        if None in keys:
            return keys[None]
        kid = jwt.get_unverified_header(token).get("kid")
        return keys[kid if isinstance(kid, str) else None]

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


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
