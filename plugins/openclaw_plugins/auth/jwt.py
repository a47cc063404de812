"""Recognises JSON Web Tokens by keys and algorithms that configuration alone decides.

Nothing in a token chooses an algorithm, names a file or causes a fetch, and no answer echoes a token.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
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
    StartFailed,
    hookimpl,
    unauthorized,
)
from openclaw_plugins.auth.cache import Verified, fingerprint
from openclaw_plugins.auth.credentials import bearer, token_parameter
from openclaw_plugins.auth.grants import check_grant, is_name
from openclaw_plugins.auth.kept_secret import kept_secret

Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]

#: RFC 7518 3.2: a key as long as the hash; never less than 256 bits
_HMAC_BYTES: Mapping[str, int] = {"HS256": 32, "HS384": 48, "HS512": 64}
_MAX_TOKEN = 8192
#: types under which access tokens travel (RFC 9068); anything else, a logout token say, is no credential
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_three_parts = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_key_text = re.compile(r'-----BEGIN |^\s*(ssh-|ecdsa-)|"kty"').search

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
        issuer: Annotated[str | None, Meta(min_length=1, description="What `iss` must be; unchecked by default.")] = None
        audience: Annotated[
            str | None, Meta(min_length=1, description="What `aud` must hold; unchecked by default.")
        ] = None
        leeway: Annotated[Duration, Meta(description="How far the issuer's clock may differ.")] = Duration(30)
        claims: Annotated[Claims, Meta(description="Names of the claims.")] = Claims()
        cache_size: Annotated[int, Meta(ge=1, description="How many verified tokens are remembered.")] = 10_000

        def __post_init__(self) -> None:
            hmac = [a for a in self.algorithms if a in _HMAC_BYTES]
            if hmac and len(hmac) != len(self.algorithms):
                raise ValueError("algorithms: HMAC and public-key algorithms cannot be accepted together")
            if not hmac:
                if self.public_key_file is None:
                    raise ValueError(f"public_key_file: missing; {self.algorithms[0]} is verified with a public key")
                if self.secret is not None:
                    raise ValueError("secret: these algorithms are verified with public_key_file, not with a secret")
                return
            if self.public_key_file is not None:
                raise ValueError("public_key_file: HMAC algorithms are verified with a secret, not with a public key")
            if self.secret is not None:
                value = self.secret.reveal()
                if _key_text(value):
                    raise ValueError("secret: this is the text of a key pair; an HMAC secret must be random bytes")
                least = max(_HMAC_BYTES[a] for a in hmac)
                if len(value.encode()) < least:
                    raise ValueError(f"secret: shorter than the {least} bytes that {', '.join(hmac)} needs")

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._clock = host.clock
        self._algorithms = list(config.algorithms)
        self._verified = Verified(config.cache_size)
        #: by `kid`; None is the key of tokens that name none, or that names need not be told apart for
        self._keys: dict[str | None, Any] = {}

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
        if algorithm not in _HMAC_BYTES:
            raise NoSecret(
                f"plugin {self._host.id!r} verifies {algorithm} with a public key: its tokens are made by their issuer"
            )
        if not self._keys:
            self._keys = self._load()
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
        if not _three_parts(token) or not _canonical(token[token.rindex(b".") + 1 :]):
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

    def _load(self) -> dict[str | None, Any]:
        config = self._config
        if config.public_key_file is not None:
            return self._public_keys(config.public_key_file)
        if config.secret is not None:
            return {None: config.secret.reveal().encode()}
        return {None: kept_secret(self._host.data_dir / "jwt.secret", self._host.logger)}

    def _public_keys(self, name: str) -> dict[str | None, Any]:
        shown = f"plugins.{self._host.id}.public_key_file: {name}"
        try:
            text = (self._host.config_dir / name).read_bytes()
        except OSError as error:
            raise StartFailed(f"{shown} cannot be read: {error.strerror}") from None
        try:
            keys = _key_set(text) if text.lstrip()[:1] == b"{" else {None: load_pem_public_key(text)}
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise StartFailed(f"{shown} holds no public key (PEM) or key set: {error}") from None
        for key in keys.values():
            if isinstance(key, RSAPublicKey) and key.key_size < 2048:
                raise StartFailed(f"{shown} holds an RSA key of {key.key_size} bits; expected 2048 or more")
            if not self._usable(key):
                raise StartFailed(f"{shown} holds a key that none of {', '.join(self._algorithms)} can use")
        return keys

    def _usable(self, key: Any) -> bool:
        for name in self._algorithms:
            try:
                jwt.get_algorithm_by_name(name).prepare_key(key)
            except (jwt.PyJWTError, TypeError, ValueError):
                continue
            return True
        return False


class NoSecret(GatewayError):
    """A development token was asked of a configuration that can only verify."""


def _key_set(text: bytes) -> dict[str | None, Any]:
    keys = jwt.PyJWKSet.from_json(text.decode()).keys
    if any(key.key_type == "oct" for key in keys):
        raise ValueError("a symmetric key does not belong into a set of public keys")
    if any(not hasattr(key.key, "public_bytes") for key in keys):
        raise ValueError("a private key does not belong into a set of public keys")
    if len(keys) == 1:
        return {None: keys[0].key}
    found: dict[str | None, Any] = {key.key_id: key.key for key in keys}
    if None in found or len(found) != len(keys):
        raise ValueError("several keys need a `kid` each")
    return found


def _canonical(signature: bytes) -> bool:
    """Say whether base64url text is the only one for its bytes: the unused bits of its last character must be 0."""
    try:
        raw = base64.urlsafe_b64decode(signature + b"=" * (-len(signature) % 4))
    except binascii.Error:
        return False
    return base64.urlsafe_b64encode(raw).rstrip(b"=") == signature


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
