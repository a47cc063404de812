"""Tells a caller where every limit of the tier stands: the same numbers as headers and refusals say."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import Request, Response, get
from litestar.params import FromQuery
from msgspec import Meta

from openclaw_gateway.api import PRINCIPAL, TIER, Exchange, Fact, Host, PluginConfig, declared, hookimpl


class LimitRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where one limit stands. `resetsAt` is null for what does not reset by time."""

    name: Annotated[str, Meta(description="The plugin and the table of the tier file: `ratelimit.requests`.")]
    kind: Annotated[str, Meta(description="rate, quota or lease.")]
    scope: Annotated[str, Meta(description="Who shares the limit.")]
    used: Annotated[int, Meta(description="What is used up, this request included.")]
    limit: Annotated[int, Meta(description="The limit.")]
    remaining: Annotated[int, Meta(description="What is left.")]
    resets_at: Annotated[datetime | None, Meta(description="When the whole limit is free again.")]
    warning: Annotated[bool, Meta(description="Whether a quota has reached its warning threshold.")]


class UsageAnswer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer of `GET /api/v1/usage`."""

    limits: Annotated[list[LimitRow], Meta(description="One row for each limit of the caller's tier.")]


class Usage:
    """Serves `GET /api/v1/usage`. It looks and charges nothing but the request itself."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """No settings."""

    def __init__(self, config: Config, host: Host) -> None:
        self._host = host

    @hookimpl
    def routes(self) -> list[Any]:
        @get(
            "/api/v1/usage",
            **declared(
                access="authenticated",
                summary="Where the caller's limits stand",
                query={"sessionId": str},
                answer=UsageAnswer,
                errors=(401, 429, 503),
            ),
        )
        async def usage(request: Request[Any, Any, Any], sessionId: FromQuery[str | None] = None) -> Response[bytes]:
            x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
            return await self._answer(x, sessionId)

        return [usage]

    async def _answer(self, x: Exchange, session: str | None) -> Response[bytes]:
        now = self._host.clock.now()
        balances = await self._host.gateway.admission.usage(x, session=session)
        rows = [{**balance.report(now), "warning": balance.warning} for balance in balances]
        return Response(content=msgspec.json.encode({"limits": rows}), media_type="application/json", status_code=200)
