"""The durable account of quotas in SQL: reserve, then commit with the work, or void, or expire.

It is the truth about what was used. Work of one moment travels in one transaction, so the database is not paid once
a request; it never answers from memory, and never grants what the stored usage does not leave free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from prometheus_client import Counter, Histogram
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import (
    Balance,
    Database,
    Duration,
    Fact,
    GatewayError,
    Hold,
    Host,
    PluginConfig,
    StoreBusy,
    StoreUnavailable,
    Take,
    hookimpl,
    needs,
)
from openclaw_plugins.accounts import ledger, reading
from openclaw_plugins.accounts.ledger import COUNTS, Key, Ledger, key_of, row_key
from openclaw_plugins.accounts.periods import seconds_left
from openclaw_plugins.accounts.tables import holds as holds_table
from openclaw_plugins.accounts.work import Reservation, Settlement

#: reservations and settlements of one transaction at most
_BATCH = 256
_SWEEP = 500
#: how often work that met a lock of another replica is tried
_ATTEMPTS = 3


class SqlAccounts:
    """Quotas, and leases that live as long as something stored."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        database: Annotated[str, needs(Database), Meta(description="Where the account is kept.")] = "database"
        hold_ttl: Annotated[
            Duration,
            Meta(description="After which an unresolved reservation is given back; over the longest request."),
        ] = Duration(600)
        reap_every: Annotated[
            Duration, Meta(description="How often reservations of crashed replicas are looked for.")
        ] = Duration(15)
        keep_resolved: Annotated[
            Duration, Meta(description="How long a resolved reservation is kept, to recognise a second resolution.")
        ] = Duration(3600)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._database = host.get(config.database, Database)
        self._known: set[Key] = set()
        self._waiting: list[Reservation | Settlement] = []
        self._lane: asyncio.Task[None] | None = None
        self._late = Counter(
            "accounts_resolved_twice", "Commits of holds that were resolved before", registry=host.registry
        )
        self._expired = Counter(
            "accounts_holds_expired", "Reservations and leases given back by the reaper", registry=host.registry
        )
        self._batch = Histogram(
            "accounts_batch_size",
            "Reservations and settlements that shared a transaction",
            registry=host.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )

    async def reserve(self, organization: str, takes: Sequence[Take]) -> tuple[Sequence[Balance], Sequence[Hold]]:
        if not takes:
            return (), ()
        work = Reservation(organization, takes)
        await self._through(work)
        return work.balances, work.holds

    async def commit(
        self,
        holds: Sequence[Hold],
        *,
        transaction: AsyncConnection | None = None,
        lives_until: datetime | None = None,
        holder: str | None = None,
    ) -> None:
        """Charge the holds; inside `transaction` they are charged if and only if it commits."""
        if not holds:
            return
        work = Settlement(holds, "committed", lives_until, holder)
        if transaction is None:
            await self._through(work)
        else:
            await self._apply(transaction, [work])

    async def void(self, holds: Sequence[Hold]) -> None:
        if holds:
            await self._through(Settlement(holds, "voided", None, None))

    async def release(
        self, organization: str, meter: str, holder: str, *, transaction: AsyncConnection | None = None
    ) -> None:
        if transaction is None:
            async with self._database.transaction(None, operation="update", table="openclaw_holds") as own:
                await self.release(organization, meter, holder, transaction=own)
            return
        found = await reading.leases_of(transaction, organization, meter, holder)
        if not found:
            return
        book = Ledger(transaction, await ledger.clock(transaction))
        await book.lock(map(row_key, found), self._known)
        # looked up again, now under the lock: the reaper may have been here
        await book.release(await reading.leases_of(transaction, organization, meter, holder))
        await book.write()

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        async with self._database.transaction(None, operation="select", table="openclaw_usage") as connection:
            now = await ledger.clock(connection)
            keys = [key_of(organization, take, now) for take in takes]
            rows = await reading.standing(connection, keys) if keys else {}
        return [
            Balance(
                limit=take.limit,
                used=rows[key].used + rows[key].held if key in rows else 0,
                reset_after=seconds_left(take.limit, now),
            )
            for key, take in zip(keys, takes, strict=True)
        ]

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        reaper = asyncio.create_task(self._keep_reaping())
        try:
            yield
        finally:
            reaper.cancel()
            await asyncio.wait([reaper])
            if self._lane is not None:
                await asyncio.wait([self._lane])

    async def reap(self) -> int:
        """Give back what is past its time and forget what was resolved long ago; return how many were given back."""
        async with self._database.transaction(None, operation="sweep", table="openclaw_holds") as connection:
            now = await ledger.clock(connection)
            found = await reading.overdue(connection, now, _SWEEP)
            if found:
                book = Ledger(connection, now)
                await book.lock(map(row_key, found), self._known)
                found = [hold for hold in await reading.overdue(connection, now, _SWEEP) if row_key(hold) in book.rows]
                await book.expire(found)
                await book.write()
                self._expired.inc(len(found))
            await connection.execute(
                delete(holds_table).where(
                    ~COUNTS, holds_table.c.expires_at < now - timedelta(seconds=self._config.keep_resolved)
                )
            )
        return len(found)

    # --- the lane: one transaction at a time, each with everything that came while the last one ran ---

    async def _through(self, work: Reservation | Settlement) -> None:
        self._enqueue(work)
        try:
            await work.done
        except asyncio.CancelledError:
            # What is on its way is not called back: a reservation that nobody waits for is given back.
            work.abandoned = True
            self._give_back(work)
            raise

    def _enqueue(self, work: Reservation | Settlement) -> None:
        self._waiting.append(work)
        if self._lane is None:
            self._lane = asyncio.create_task(self._flush())

    def _give_back(self, work: Reservation | Settlement) -> None:
        if isinstance(work, Reservation) and work.holds:
            self._enqueue(Settlement(work.holds, "voided", None, None))

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._settle(batch)
                for work in batch:
                    if work.abandoned:
                        self._give_back(work)
        finally:
            self._lane = None

    async def _settle(self, batch: Sequence[Reservation | Settlement]) -> None:
        batch = [work for work in batch if not work.abandoned or isinstance(work, Settlement)]
        if not batch:
            return
        self._batch.observe(len(batch))
        try:
            await self._attempt(batch)
        except StoreUnavailable as error:
            for work in batch:
                work.fail(error)
        except (GatewayError, ValueError) as error:
            # A value of one of them cannot be stored: that one fails alone.
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for work in batch:
                await self._settle([work])
        except BaseException as error:
            for work in batch:
                work.fail(error)
            raise
        else:
            for work in batch:
                work.succeed()

    async def _attempt(self, batch: Sequence[Reservation | Settlement]) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._database.transaction(None, operation="update", table="openclaw_usage") as connection:
                    await self._apply(connection, batch)
                return
            except StoreBusy:
                if attempt == _ATTEMPTS:
                    raise

    async def _apply(self, connection: AsyncConnection, batch: Sequence[Reservation | Settlement]) -> None:
        now = await ledger.clock(connection)
        book = Ledger(connection, now)
        await book.lock((key for work in batch for key in work.keys(now)), self._known)
        # Settlements first: what they give back is free for the reservations beside them.
        for work in batch:
            if isinstance(work, Settlement):
                await self._resolve(book, work)
        for work in batch:
            if isinstance(work, Reservation):
                work.balances, work.holds = await book.reserve(work.organization, work.takes, self._config.hold_ttl)
        await book.write()

    async def _resolve(self, book: Ledger, work: Settlement) -> None:
        late = await book.resolve(
            work.holds,
            work.how,
            lives_until=work.lives_until,
            holder=work.holder,
            lease_ttl=self._config.hold_ttl,
        )
        if late:
            self._late.inc(late)
            self._host.logger.warning("holds had been resolved before", extra={"fields": {"holds": late}})

    async def _keep_reaping(self) -> None:
        while True:
            await asyncio.sleep(self._config.reap_every)
            try:
                while await self.reap() == _SWEEP:
                    pass
            except GatewayError as error:
                self._host.logger.warning("reservations could not be reaped", exc_info=error)
