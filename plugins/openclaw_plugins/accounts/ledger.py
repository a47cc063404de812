"""One transaction of the durable account: rows locked in one order, decided in memory, written once.

Every change of a hold happens under the lock of its usage row, so a hold is resolved exactly once. Nothing here
begins or ends a transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import RowMapping, bindparam, insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from openclaw_gateway.api import Balance, Hold, Take
from openclaw_plugins.accounts.periods import period_of, seconds_left
from openclaw_plugins.accounts.tables import holds, now, usage

#: organisation, subject, limit name, period
Key = tuple[str, str, str, str]
Resolution = Literal["committed", "voided"]

_KEY = (usage.c.organization_id, usage.c.subject, usage.c.limit_name, usage.c.period)
_HOLD_KEY = (holds.c.organization_id, holds.c.subject, holds.c.limit_name, holds.c.period)
_NOW = select(now())
PEEK = select(*_KEY, usage.c.used, usage.c.held).where(tuple_(*_KEY).in_(bindparam("keys", expanding=True)))
_LOCK = PEEK.order_by(*_KEY).with_for_update()
_WRITE = (
    update(usage)
    .where(*(column == bindparam(f"key_{column.name}") for column in _KEY))
    .values(used=bindparam("new_used"), held=bindparam("new_held"), updated_at=bindparam("now"))
)
_HOLDS = select(holds.c.hold_id, holds.c.state).where(holds.c.hold_id.in_(bindparam("ids", expanding=True)))
_RESOLVE = (
    update(holds)
    .where(holds.c.hold_id == bindparam("id"))
    .values(state=bindparam("new_state"), holder=bindparam("new_holder"), expires_at=bindparam("new_expires_at"))
)
_CLOSE = update(holds).where(holds.c.hold_id == bindparam("id")).values(state=bindparam("new_state"))
#: what still counts against a limit: a reservation, or the lease of something stored
COUNTS = or_(holds.c.state == "held", (holds.c.state == "committed") & (holds.c.kind == "lease"))


class Row:
    """One usage row under its lock."""

    __slots__ = ("changed", "held", "used")

    def __init__(self, used: int, held: int) -> None:
        self.used = used
        self.held = held
        self.changed = False

    def add(self, *, used: int = 0, held: int = 0) -> None:
        self.used += used
        self.held += held
        self.changed = True


class Ledger:
    """The rows of one transaction, from `open` to `write`."""

    __slots__ = ("_connection", "_new_holds", "_reaped", "now", "rows")

    def __init__(self, connection: AsyncConnection, now: datetime) -> None:
        self._connection = connection
        self.now = now
        self.rows: dict[Key, Row] = {}
        self._new_holds: list[dict[str, Any]] = []
        self._reaped: set[Key] = set()

    async def lock(self, keys: Iterable[Key], known: set[Key]) -> None:
        """Lock the usage rows in the order of their keys, which is the same for everyone: no deadlock.

        Rows are made on first use; `known` remembers which exist, to spare asking.
        """
        wanted = sorted(set(keys))
        if not wanted:
            return
        fresh = [key for key in wanted if key not in known]
        if fresh:
            await self._make(fresh)
        await self._take(wanted)
        lost = [key for key in wanted if key not in self.rows]
        if lost:
            await self._make(lost)
            await self._take(lost)
        known.update(wanted)

    async def reserve(
        self, organization: str, takes: Sequence[Take], hold_ttl: float
    ) -> tuple[list[Balance], list[Hold]]:
        """Hold all of the takes, or none where an enforced limit refuses."""
        keys = [key_of(organization, take, self.now) for take in takes]
        refused = [False] * len(takes)
        wanted: dict[Key, int] = {}
        for i, (key, take) in enumerate(zip(keys, takes, strict=True)):
            wanted[key] = wanted.get(key, 0) + take.amount
            if take.limit.mode == "shadow":
                continue
            if not self._fits(key, wanted[key], take):
                await self._reap(key)
                refused[i] = not self._fits(key, wanted[key], take)
        made: list[Hold] = []
        if not any(refused):
            for key, take in zip(keys, takes, strict=True):
                self.rows[key].add(held=take.amount)
                made.append(self._hold(key, take, hold_ttl))
        return [self._balance(key, take, no) for key, take, no in zip(keys, takes, refused, strict=True)], made

    async def resolve(
        self,
        resolved: Sequence[Hold],
        how: Resolution,
        *,
        lives_until: datetime | None = None,
        holder: str | None = None,
        lease_ttl: float,
    ) -> int:
        """Commit or void; return how many of the holds had been resolved before.

        A commit that comes after its hold expired is still charged: its effect is real.
        """
        ids = [hold.id for hold in resolved]
        states: dict[str, str] = dict((await self._connection.execute(_HOLDS, {"ids": ids})).all())
        changes: list[dict[str, Any]] = []
        late = 0
        for hold in resolved:
            state = states.pop(hold.id, None)
            if state not in ("held", "expired"):
                late += how == "committed"
                continue
            if state == "expired" and how == "voided":
                continue
            take = hold.take
            self.rows[hold_key(hold)].add(
                used=take.amount if how == "committed" else 0, held=-take.amount if state == "held" else 0
            )
            lease = take.limit.kind == "lease"
            changes.append(
                {
                    "id": hold.id,
                    "new_state": how,
                    "new_holder": (holder or take.lease) if lease else None,
                    "new_expires_at": (lives_until or self.now + timedelta(seconds=lease_ttl)) if lease else self.now,
                }
            )
        if changes:
            await self._connection.execute(_RESOLVE, changes)
        return late

    async def release(self, found: Sequence[RowMapping]) -> None:
        """End leases found by their holder, under the lock of their rows."""
        await self._end(found, "voided")

    async def expire(self, found: Sequence[RowMapping]) -> None:
        """Give back what nobody resolved in time, and the leases of things that have ended."""
        await self._end(found, "expired")

    async def write(self) -> None:
        """Write what has changed."""
        if self._new_holds:
            await self._connection.execute(insert(holds), self._new_holds)
        changed = [
            {
                "key_organization_id": key[0],
                "key_subject": key[1],
                "key_limit_name": key[2],
                "key_period": key[3],
                "new_used": row.used,
                "new_held": row.held,
                "now": self.now,
            }
            for key, row in self.rows.items()
            if row.changed
        ]
        if changed:
            await self._connection.execute(_WRITE, changed)

    async def _make(self, keys: Sequence[Key]) -> None:
        dialect: Any = sqlite if self._connection.dialect.name == "sqlite" else postgresql
        rows = [
            {
                "organization_id": organization,
                "subject": subject,
                "limit_name": name,
                "period": period,
                "used": 0,
                "held": 0,
                "updated_at": self.now,
            }
            for organization, subject, name, period in keys
        ]
        await self._connection.execute(dialect.insert(usage).on_conflict_do_nothing(), rows)

    async def _take(self, keys: Sequence[Key]) -> None:
        found = await self._connection.execute(_LOCK, {"keys": list(keys)})
        for organization, subject, name, period, used, held in found:
            self.rows[organization, subject, name, period] = Row(used, held)

    def _fits(self, key: Key, amount: int, take: Take) -> bool:
        row = self.rows[key]
        return row.used + row.held + amount <= take.limit.limit

    async def _reap(self, key: Key) -> None:
        if key in self._reaped:
            return
        self._reaped.add(key)
        found = await self._connection.execute(
            select(holds).where(tuple_(*_HOLD_KEY) == key, COUNTS, holds.c.expires_at <= self.now)
        )
        await self.expire(found.mappings().all())

    async def _end(self, found: Sequence[RowMapping], state: str) -> None:
        for hold in found:
            row = self.rows[hold["organization_id"], hold["subject"], hold["limit_name"], hold["period"]]
            if hold["state"] == "held":
                row.add(held=-hold["amount"])
            else:
                row.add(used=-hold["amount"])
        if found:
            await self._connection.execute(_CLOSE, [{"id": hold["hold_id"], "new_state": state} for hold in found])

    def _hold(self, key: Key, take: Take, ttl: float) -> Hold:
        id = str(uuid7())
        organization, subject, name, period = key
        self._new_holds.append(
            {
                "hold_id": id,
                "organization_id": organization,
                "subject": subject,
                "limit_name": name,
                "period": period,
                "meter": take.limit.meter,
                "kind": take.limit.kind,
                "amount": take.amount,
                "state": "held",
                "holder": take.lease,
                "created_at": self.now,
                "expires_at": self.now + timedelta(seconds=ttl),
            }
        )
        return Hold(id, take, organization, period)

    def _balance(self, key: Key, take: Take, refused: bool) -> Balance:
        row = self.rows[key]
        left = seconds_left(take.limit, self.now)
        return Balance(
            limit=take.limit,
            used=row.used + row.held,
            refused=refused,
            reset_after=left,
            retry_after=left if refused else None,
        )


def key_of(organization: str, take: Take, now: datetime) -> Key:
    return organization, take.subject, take.limit.name, period_of(take.limit, now)


def hold_key(hold: Hold) -> Key:
    return hold.organization, hold.take.subject, hold.take.limit.name, hold.period


async def clock(connection: AsyncConnection) -> datetime:
    """Return the database's time."""
    found: datetime = (await connection.execute(_NOW)).scalar_one()
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def row_key(hold: RowMapping) -> Key:
    return hold["organization_id"], hold["subject"], hold["limit_name"], hold["period"]
