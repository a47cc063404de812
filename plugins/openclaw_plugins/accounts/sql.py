"""The durable account of quotas in SQL: reserve, then commit with the work, or void, or expire.

It is the truth about what was used. Work of one moment travels in one transaction, so the database is not paid once
a request; it never answers from memory, and never grants what the stored usage does not leave free.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from prometheus_client import Counter
from sqlalchemy import Connection, delete
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
    Spread,
    Standing,
    Take,
    hookimpl,
    needs,
)
from openclaw_plugins.accounts import at_once, ledger, outbox, reading
from openclaw_plugins.accounts.at_once import AtOnce
from openclaw_plugins.accounts.lane import Lane, Works
from openclaw_plugins.accounts.ledger import RESOLVED, Ledger, row_key
from openclaw_plugins.accounts.outbox import Outbox
from openclaw_plugins.accounts.periods import seconds_left
from openclaw_plugins.accounts.tables import holds as holds_table
from openclaw_plugins.accounts.work import Key, Reservation, Settlement, key_of

_SWEEP = 500


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
        deliver_every: Annotated[
            Duration, Meta(description="How often quota events that another replica left are looked for.")
        ] = Duration(5)
        deliver_within: Annotated[
            Duration, Meta(description="After which a quota event that a replica took and did not deliver is free.")
        ] = Duration(30)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._database = host.get(config.database, Database)
        self._late = host.metric(Counter, "accounts_resolved_twice", "Commits of holds that were resolved before")
        self._expired = host.metric(
            Counter, "accounts_holds_expired", "Reservations and leases given back by the reaper"
        )
        batch = host.metric(
            Spread,
            "accounts_batch_size",
            "Reservations and settlements that shared a transaction",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
        )
        self._lane = Lane(self._transact, batch.labels().observe)
        self._outbox = Outbox(self._database, host, every=config.deliver_every, claim=config.deliver_within)

    async def reserve(self, organization: str, takes: Sequence[Take]) -> tuple[Sequence[Balance], Sequence[Hold]]:
        if not takes:
            return (), ()
        work = Reservation(organization, takes)
        await self._lane.through(work)
        return work.balances, work.holds

    async def commit(
        self,
        holds: Sequence[Hold],
        *,
        transaction: AsyncConnection | None = None,
        lives_until: datetime | None = None,
        holder: str | None = None,
    ) -> None:
        """Charge the holds; inside `transaction` they are charged if and only if it commits.

        There it raises Refused for one that was given back or charged before.
        """
        if not holds:
            return
        work = Settlement(holds, "committed", lives_until, holder, bound=transaction is not None)
        if transaction is None:
            await self._lane.through(work)
        else:
            self._worked(*await self._database.inside(transaction, partial(self._work_within, [work])))

    async def void(self, holds: Sequence[Hold]) -> None:
        if holds:
            await self._lane.through(Settlement(holds, "voided", None, None, bound=False))

    async def release(
        self, organization: str, meter: str, holder: str, *, transaction: AsyncConnection | None = None
    ) -> None:
        def end(connection: Connection) -> None:
            if book := self._locked(connection, lambda: reading.leases_of(connection, organization, meter, holder)):
                # looked up again, now under the lock: the reaper may have been here
                book.end(reading.leases_of(connection, organization, meter, holder), "voided")
                book.write()

        if transaction is not None:
            await self._database.inside(transaction, end)
            return
        await self._database.run(end, operation="update", table="openclaw_holds")

    async def disown(self, organization: str, reference: str) -> bool:
        def end(connection: Connection) -> bool:
            book = self._locked(connection, lambda: reading.referring(connection, organization, reference))
            if book is None:
                return False
            found = reading.referring(connection, organization, reference)
            if any(hold["state"] == "committed" for hold in found):
                return True
            book.end([hold for hold in found if hold["state"] in ("held", "expired")], "voided")
            book.write()
            return False

        return await self._database.run(end, operation="update", table="openclaw_holds")

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        def keys_at(now: datetime) -> list[Key]:
            return [key_of(organization, take, now) for take in takes]

        def look(connection: Connection) -> Sequence[Balance]:
            guess = self._guess()
            now, found = reading.standing(connection, keys_at(guess))
            now = now or ledger.clock(connection)
            if keys_at(now) != keys_at(guess):
                _, found = reading.standing(connection, keys_at(now))
            return [
                Balance(
                    limit=take.limit,
                    used=found.get(key, 0),
                    reset_after=seconds_left(take.limit, now),
                )
                for key, take in zip(keys_at(now), takes, strict=True)
            ]

        return await self._database.run(look, operation="select", table="openclaw_usage")

    async def standings(self) -> Sequence[Standing]:
        return await self._database.run(reading.present, operation="select", table="openclaw_usage")

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        reaper = asyncio.create_task(self._keep_reaping())
        try:
            async with self._outbox.running():
                yield
        finally:
            reaper.cancel()
            await asyncio.wait([reaper])
            await self._lane.ended()

    async def reap(self) -> int:
        """Give back what is past its time and forget what was resolved long ago; return how many were given back."""

        def sweep(connection: Connection) -> int:
            now = ledger.clock(connection)
            given_back = 0
            if book := self._locked(connection, lambda: reading.overdue(connection, now, _SWEEP)):
                found = [h for h in reading.overdue(connection, now, _SWEEP) if row_key(h) in book.rows]
                book.end(found, "expired")
                book.write()
                given_back = len(found)
            long_ago = now - timedelta(seconds=self._config.keep_resolved)
            connection.execute(delete(holds_table).where(RESOLVED, holds_table.c.expires_at < long_ago))
            outbox.forget(connection, now)
            return given_back

        count = await self._database.run(sweep, operation="sweep", table="openclaw_holds")
        self._expired.inc(count)
        return count

    def _locked(self, connection: Connection, find: Callable[[], Iterable[Any]]) -> Ledger | None:
        """Lock the usage rows of the holds that are found; None where there are none."""
        keys = [row_key(hold) for hold in find()]
        if not keys:
            return None
        book = Ledger(connection)
        book.lock(lambda _: keys, self._guess())
        return book

    def _guess(self) -> datetime:
        return datetime.fromtimestamp(self._host.clock.now(), UTC)

    async def _transact(self, batch: Works) -> None:
        if self._database.shared and await self._is_usual(batch):
            return
        work = partial(self._work, batch)
        self._worked(*await self._database.run(work, operation="update", table="openclaw_usage"))

    async def _is_usual(self, batch: Works) -> bool:
        """Do a batch in one statement, if it is one that can be."""
        asked = AtOnce(batch, self._guess(), self._config.hold_ttl)
        return asked.possible and asked.answered(
            await self._database.statement(
                at_once.STATEMENT, asked.parameters, operation="update", table="openclaw_usage"
            )
        )

    def _work_within(self, batch: Works, connection: Connection) -> tuple[int, bool]:
        """As `_work`, in a transaction that stores more: one statement there too, if it can be."""
        if self._database.shared:
            asked = AtOnce(batch, self._guess(), self._config.hold_ttl)
            if asked.possible and asked.answered(connection.exec_driver_sql(at_once.STATEMENT, asked.parameters).all()):
                return 0, False
        return self._work(batch, connection)

    def _work(self, batch: Works, connection: Connection) -> tuple[int, bool]:
        """Do a batch; return how many holds had been resolved before, and whether there are events to tell."""
        book = Ledger(connection)
        book.lock(lambda now: [key for work in batch for key in work.keys(now)], self._guess())
        # Settlements first: what they give back is free for the reservations beside them.
        late = book.resolve((w for w in batch if isinstance(w, Settlement)), self._config.hold_ttl)
        for one in batch:
            if isinstance(one, Reservation):
                book.reserve(one, self._config.hold_ttl)
        book.write()
        return late, bool(book.events)

    def _worked(self, late: int, events: bool) -> None:
        if late:
            self._late.inc(late)
            self._host.logger.warning("holds had been resolved before", extra={"fields": {"holds": late}})
        if events:
            self._outbox.nudge()

    async def _keep_reaping(self) -> None:
        while True:
            await asyncio.sleep(self._config.reap_every)
            try:
                while await self.reap() == _SWEEP:
                    pass
            except GatewayError as error:
                self._host.logger.warning("reservations could not be reaped", exc_info=error)
