"""The step that looks for an `Idempotency-Key`. A request without one costs a look at its headers, and no more."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import (
    PRINCIPAL,
    ChargeReferences,
    Database,
    Duration,
    Exchange,
    Fact,
    GatewayError,
    Host,
    Outcome,
    PluginConfig,
    Refusal,
    Route,
    Size,
    bad_request,
    hookimpl,
    needs,
)
from openclaw_plugins.idempotency.claims import Claims
from openclaw_plugins.idempotency.keeper import Keeper

_HEADER = b"idempotency-key"
_KEY = re.compile(rb"[\x20-\x7e]{1,255}")
_BAD_KEY = bad_request("Idempotency-Key: expected one, of 1 to 255 printable ASCII characters", param="Idempotency-Key")


class Idempotency:
    """Lets each `Idempotency-Key` of an organisation and a route take effect once."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL,)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.idempotency]`"""

        database: Annotated[str, needs(Database), Meta(description="Where keys and answers are kept.")] = "database"
        accounts: Annotated[
            str,
            needs(ChargeReferences),
            Meta(description="The durable account, which tells whether a request of a crashed replica was charged."),
        ] = "accounts"
        retention: Annotated[Duration, Meta(description="How long an answer can be repeated.")] = Duration(86_400)
        lease: Annotated[
            Duration,
            Meta(description="After which a request whose replica is silent is taken for dead; a retry then goes on."),
        ] = Duration(30)
        max_answer: Annotated[
            Size, Meta(description="Largest answer that is kept; a larger one cannot be repeated.")
        ] = Size(1_000_000)
        sweep_every: Annotated[Duration, Meta(description="How often outdated keys are looked for.")] = Duration(60)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._claims = Claims(
            host.get(config.database, Database),
            host.get(config.accounts, ChargeReferences),
            lease=config.lease,
            retention=config.retention,
        )
        self._live: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._requests = host.metric(
            Counter, "idempotent_requests", "Requests with an Idempotency-Key, by what was found.", ("outcome",)
        )

    @hookimpl
    def applies(self, route: Route) -> bool:
        return "POST" in route.methods and route.access == "authenticated" and bool(route.meters)

    @hookimpl
    def on_request(self, x: Exchange) -> Refusal | None:
        key = x.header(_HEADER)
        if key is None:
            return None
        if _KEY.fullmatch(key) is None or len(x.headers(_HEADER)) > 1:
            return _BAD_KEY
        x.guard = Keeper(
            x,
            key.decode("ascii"),
            claims=self._claims,
            live=self._live,
            max_body=self._host.settings.max_body,
            max_kept=self._config.max_answer,
            note=self._note,
            logger=self._host.logger,
        )
        return None

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        keeper = x.guard
        if isinstance(keeper, Keeper) and keeper.unfinished:
            task = asyncio.create_task(keeper.cut())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._keep_renewing()), asyncio.create_task(self._keep_sweeping())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait([*tasks, *self._ending], timeout=5)

    def _note(self, outcome: str) -> None:
        self._requests.labels(outcome).inc()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease / 3)
            if self._live:
                try:
                    await self._claims.renew(frozenset(self._live))
                except GatewayError as error:
                    self._host.logger.warning("claims of idempotent requests could not be renewed", exc_info=error)

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self._config.sweep_every)
            try:
                await self._claims.sweep()
            except GatewayError as error:
                self._host.logger.warning("outdated idempotency keys could not be swept", exc_info=error)
