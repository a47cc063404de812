"""Lets pages of named origins call the gateway from a browser; without it, no page can read an answer.

It decides what browsers let pages see, and nothing else: whoever calls must still say who they are.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    Duration,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    Reply,
    ResponseHead,
    Route,
    hookimpl,
)

_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
_VARY = b"origin, access-control-request-method, access-control-request-headers"


class Cors:
    """Answers preflights and names the origin on answers, by the protocol of the Fetch standard (section 3.2)."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        origins: Annotated[
            tuple[str, ...],
            Meta(description='Origins whose pages may call, "https://app.example.com"; "*" for all.'),
        ]
        credentials: Annotated[
            bool, Meta(description="Let pages send cookies and certificates of the browser; not with origin `*`.")
        ] = False
        methods: Annotated[tuple[str, ...], Meta(description="Methods that pages may use.")] = (
            "GET",
            "POST",
            "PUT",
            "PATCH",
            "DELETE",
        )
        headers: Annotated[tuple[str, ...], Meta(description="Headers that pages may send.")] = (
            "authorization",
            "content-type",
            "idempotency-key",
            "x-api-key",
        )
        expose: Annotated[tuple[str, ...], Meta(description="Headers of answers that pages may read.")] = (
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "x-quota-warning",
            "x-request-id",
        )
        max_age: Annotated[Duration, Meta(description="How long browsers remember the answer to a preflight.")] = (
            Duration(600)
        )

    def __init__(self, config: Config, host: Host) -> None:
        if not config.origins:
            raise ValueError("origins is empty: take the step out of the pipeline, or name who may call")
        self._all = "*" in config.origins
        if self._all and (config.credentials or len(config.origins) > 1):
            raise ValueError('origins = ["*"] stands alone, and without credentials: else any page could act for users')
        for origin in () if self._all else config.origins:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError(f"{origin!r} is no origin; expected scheme, host and port alone, in lower case")
        self._refuse_late_place(host)
        self._origins = frozenset(origin.encode() for origin in config.origins)
        self._methods = frozenset(method.upper().encode() for method in config.methods)
        self._headers = frozenset(name.lower().encode() for name in config.headers)
        self._credentials = ((b"access-control-allow-credentials", b"true"),) if config.credentials else ()
        self._exposed = (b"access-control-expose-headers", ", ".join(config.expose).encode())
        self._preflight = (
            (b"access-control-allow-methods", b", ".join(sorted(self._methods))),
            (b"access-control-allow-headers", b", ".join(sorted(self._headers))),
            (b"access-control-max-age", str(int(config.max_age)).encode()),
            (b"vary", _VARY),
        )

    @hookimpl
    def applies(self, route: Route) -> bool:
        # A handshake is no subject of this: realtime looks at its origin.
        return route.methods != ("WEBSOCKET",)

    @hookimpl
    def on_request(self, x: Exchange) -> Reply | None:
        if x.method != "OPTIONS":
            return None
        method = x.header(b"access-control-request-method")
        if method is None or self._allowed(x) is None or method not in self._methods:
            return None  # no preflight, or one that is to fail: the answer has none of our headers that let it pass
        asked = {name.strip().lower() for name in (x.header(b"access-control-request-headers") or b"").split(b",")}
        if not asked - {b""} <= self._headers:
            return None
        return Reply(status=204, headers=self._preflight)

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        if not self._all and not any(name == b"vary" and b"origin" in value for name, value in head.headers):
            vary = next((value + b", origin" for name, value in head.headers if name == b"vary"), b"origin")
            head.set(b"vary", vary)
        allowed = self._allowed(x)
        if allowed is None:
            return
        head.set(b"access-control-allow-origin", allowed)
        for name, value in self._credentials:
            head.set(name, value)
        if x.method != "OPTIONS":
            head.set(*self._exposed)

    def _allowed(self, x: Exchange) -> bytes | None:
        """What `Access-Control-Allow-Origin` says, or None."""
        origin = x.header(b"origin")
        if origin is None:
            return None
        if self._all:
            return b"*"
        return origin if origin in self._origins else None

    def _refuse_late_place(self, host: Host) -> None:
        classes = {definition.id: definition.cls for definition in host.gateway.definitions}
        pipeline = host.settings.pipeline
        for id in pipeline[: pipeline.index(host.id)] if host.id in pipeline else ():
            if PRINCIPAL in getattr(classes.get(id), "provides", ()):
                raise ValueError(
                    f"a preflight carries no credential: put {host.id!r} before {id!r} in gateway.pipeline"
                )
