"""Recognises opaque tokens by asking the service that issued them (RFC 7662).

Its answers are remembered shortly, under the hash of the whole token. A service that does not answer is an outage:
the caller is then neither let in nor told that his token is bad.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import quote_plus, urlencode

import msgspec
from msgspec import Meta

from openclaw_gateway.api import (
    Duration,
    Exchange,
    Fact,
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
from openclaw_plugins.auth.credentials import KEY_PREFIX, bearer
from openclaw_plugins.auth.remote import Remote, check_url
from openclaw_plugins.auth.single_flight import SingleFlight

_MAX_TOKEN: Final = 8192
_LARGEST: Final = 65_536
_LONGEST_TTL: Final = 60
#: RFC 6750 2.1
_shape = re.compile(rb"[A-Za-z0-9._~+/-]+=*").fullmatch

#: one text for unknown, expired and revoked
_REFUSED = unauthorized("the token is not valid")


class Introspection:
    """Asks an authorisation server whether a bearer token is active, and for whom."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        url: Annotated[
            str,
            Meta(pattern="^https?://", description="The introspection endpoint; http on a loopback address only."),
        ]
        client_id: Annotated[str, Meta(min_length=1, description="Who the gateway is to the service.")]
        client_secret: Annotated[Secret, Meta(description="Its secret there, sent by HTTP Basic.")]
        cache_ttl: Annotated[
            Duration,
            Meta(description='How long an active token is remembered, and so outlives its end; at most "60s".'),
        ] = Duration(30)
        inactive_ttl: Annotated[
            Duration, Meta(description='How long an inactive token is remembered; at most "60s".')
        ] = Duration(5)
        cache_size: Annotated[int, Meta(ge=1, description="How many tokens of each kind are remembered.")] = 10_000
        timeout: Annotated[
            Duration, Meta(description="For one question; shorter than the time-out of the step that waits for it.")
        ] = Duration(3)
        max_connections: Annotated[int, Meta(ge=1, le=1000, description="Questions at the same time.")] = 20
        issuer: Annotated[
            Annotated[str, Meta(min_length=1)] | None, Meta(description="What `iss` must be; unchecked by default.")
        ] = None
        audience: Annotated[
            Annotated[str, Meta(min_length=1)] | None, Meta(description="What `aud` must hold; unchecked by default.")
        ] = None
        claims: Annotated[Claims, Meta(description="Names of the members of the answer.")] = Claims()

    def __init__(self, config: Config, host: Host) -> None:
        check_url("url", config.url)
        for field in ("cache_ttl", "inactive_ttl"):
            if getattr(config, field) > _LONGEST_TTL:
                raise ValueError(f'{field}: longer than "60s", so what the service has changed would hold too late')
        self._config = config
        self._clock = host.clock
        self._active = Verified(config.cache_size)
        #: apart from the active ones, so that invented tokens never push those out
        self._inactive: OrderedDict[bytes, tuple[float, Refusal]] = OrderedDict()
        self._flights: SingleFlight[Principal | Refusal] = SingleFlight()
        self._remote = Remote(
            config.url,
            host,
            name="introspection service",
            operation="introspect",
            timeout=config.timeout,
            max_bytes=_LARGEST,
            connections=config.max_connections,
        )
        # RFC 6749 2.3.1: both halves are form-encoded before they are joined.
        pair = f"{quote_plus(config.client_id)}:{quote_plus(config.client_secret.reveal())}"
        self._headers = {
            "Authorization": "Basic " + b64encode(pair.encode()).decode("ascii"),
            "Content-Type": "application/x-www-form-urlencoded",
        }

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._remote.opened():
            yield

    async def authenticate(self, x: Exchange) -> Principal | Refusal | None:
        token = bearer(x)
        if token is None or token.startswith(KEY_PREFIX):
            return None
        if len(token) > _MAX_TOKEN or not _shape(token):
            return _REFUSED
        mark = fingerprint(token)
        found = self._remembered(mark)
        if found is None:
            found = await self._flights.join(mark, lambda: self._asked(mark, token))
        if isinstance(found, Principal) and found.expires_at is not None and found.expires_at <= self._clock.now():
            return _REFUSED
        return found

    def _remembered(self, mark: bytes) -> Principal | Refusal | None:
        now = self._clock.monotonic()
        known = self._inactive.get(mark)
        if known is not None:
            if known[0] > now:
                return known[1]
            del self._inactive[mark]
        return self._active.get(mark, now)

    async def _asked(self, mark: bytes, token: bytes) -> Principal | Refusal:
        # Measured from the question: what is remembered is never older than it says.
        asked = self._clock.monotonic()
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        answer = await self._remote.ask("POST", form=form, headers=self._headers)
        try:
            stated = msgspec.json.decode(answer, type=dict[str, Any])
            active = stated["active"]
            if not isinstance(active, bool):
                raise TypeError
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
            raise self._remote.failed("unreadable", "its answer is no introspection response") from None
        found = self._judged(stated, mark) if active else _REFUSED
        if isinstance(found, Principal):
            self._active.put(mark, found, asked + self._config.cache_ttl)
        else:
            self._inactive[mark] = (asked + self._config.inactive_ttl, found)
            if len(self._inactive) > self._config.cache_size:
                self._inactive.popitem(last=False)
        return found

    def _judged(self, stated: Mapping[str, Any], mark: bytes) -> Principal | Refusal:
        config = self._config
        audience = stated.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if config.issuer is not None and stated.get("iss") != config.issuer:
            return _REFUSED
        if config.audience is not None and config.audience not in audiences:
            return _REFUSED
        return principal_of(
            stated,
            config.claims,
            now=self._clock.now(),
            leeway=0.0,  # whether it has expired is the service's word, by the service's clock
            method="introspection",
            credential=mark.hex()[:16],
            must_expire=False,
        )
