"""One transaction of the durable account: rows locked in one order, decided in memory, written once.

Every change of a hold happens under the lock of its usage row, so a hold is resolved exactly once. Nothing here
begins or ends a transaction, or waits: it is called where the store is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, bindparam, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from uuid_utils import uuid7

from openclaw_gateway.api import Balance, Hold, Refused, Take, conflict
from openclaw_plugins.accounts import thresholds
from openclaw_plugins.accounts.periods import seconds_left
from openclaw_plugins.accounts.statements import Held, Resolved, Written, statements
from openclaw_plugins.accounts.tables import holds, now, quota_events
from openclaw_plugins.accounts.work import Key, Reservation, Settlement

_HOLD_KEY = (holds.c.organization_id, holds.c.subject, holds.c.limit_name, holds.c.period)
_NOW = select(now())
_CLOSE = update(holds).where(holds.c.hold_id == bindparam("id")).values(state=bindparam("new_state"))
#: what still counts against a limit: a reservation, or the lease of something stored. It has an index, which a store
#: takes only where it reads the very words of its condition
_COUNTS = "(state = 'held' OR (state = 'committed' AND kind = 'lease'))"
COUNTS, RESOLVED = text(_COUNTS), text(f"NOT {_COUNTS}")

_RESOLVED = conflict("the request was given up meanwhile, and may be carried out anew; ask again", retry_after=1)


class Row:
    """One usage row under its lock."""

    __slots__ = ("announced", "changed", "held", "tier", "used")

    def __init__(self, used: int, held: int, tier: str, announced: int) -> None:
        self.used = used
        self.held = held
        self.tier = tier
        self.announced = announced
        self.changed = False

    def add(self, *, used: int = 0, held: int = 0) -> None:
        self.used += used
        self.held += held
        self.changed = True


class Ledger:
    """The rows of one transaction, from `lock` to `write`."""

    __slots__ = ("_connection", "_reaped", "_statements", "events", "new_holds", "now", "rows")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._statements = statements(connection)
        #: the database's time, once rows are locked
        self.now = datetime.min.replace(tzinfo=UTC)
        self.rows: dict[Key, Row] = {}
        self.new_holds: list[Held] = []
        self.events: list[dict[str, Any]] = []
        self._reaped: set[Key] = set()

    def lock(self, keys_at: Callable[[datetime], Iterable[Key]], guess: datetime) -> None:
        """Lock usage rows in the order of their keys, which is the same for everyone: no deadlock.

        Their periods are those of the database's clock. It is read with the rows, so `guess` spares a question; a
        wrong one, at the end of a month, costs a second look. Rows are made on first use.
        """
        wanted = set(keys_at(guess))
        found = self._take(sorted(wanted))
        self.now = clock(self._connection) if found is None else found
        if self.now.date() != guess.date():  # every period begins with a day
            wanted = set(keys_at(self.now))
        missing = sorted(wanted - self.rows.keys())
        if missing:
            self._statements.make(missing, self.now)
            self._take(missing)

    def reserve(self, work: Reservation, hold_ttl: float) -> None:
        """Hold all of the takes, or none where an enforced limit refuses."""
        takes = work.takes
        keys = work.keys(self.now)
        refused = [False] * len(takes)
        wanted: dict[Key, int] = {}
        for i, (key, take) in enumerate(zip(keys, takes, strict=True)):
            wanted[key] = wanted.get(key, 0) + take.amount
            if take.limit.mode == "shadow":
                continue
            if not self._fits(key, wanted[key], take):
                self._reap(key)
                refused[i] = not self._fits(key, wanted[key], take)
        made: list[Hold] = []
        if not any(refused):
            for key, take in zip(keys, takes, strict=True):
                row = self.rows[key]
                row.add(held=take.amount)
                row.tier = take.limit.tier or row.tier
                made.append(self._hold(key, take, hold_ttl))
        work.holds = made
        work.balances = [self._balance(key, take, no) for key, take, no in zip(keys, takes, refused, strict=True)]

    def resolve(self, settlements: Iterable[Settlement], lease_ttl: float) -> int:
        """Commit or void; return how many commits came to a hold that had been resolved before.

        A commit that comes after its hold expired is still charged: its effect is real. One that is bound to work of
        its transaction raises Refused where its hold was resolved before: that work is somebody else's by now.
        """
        settlements = list(settlements)
        ids = [hold.id for work in settlements for hold in work.holds]
        states = self._statements.states(ids) if ids else {}
        changes: list[Resolved] = []
        late = 0
        for work in settlements:
            committed = work.how == "committed"
            for hold, key in zip(work.holds, work.keys(self.now), strict=True):
                state = states.pop(hold.id, None)
                if state not in ("held", "expired"):
                    if work.bound and state is not None:
                        raise Refused(_RESOLVED)
                    late += committed
                    continue
                if state == "expired" and not committed:
                    continue
                take = hold.take
                row = self.rows[key]
                amount = take.amount if hold.charge is None or not committed else hold.charge
                row.add(used=amount if committed else 0, held=-take.amount if state == "held" else 0)
                if committed:
                    self._announce(key, row, take)
                lease = take.limit.kind == "lease"
                ends = (work.lives_until or self.now + timedelta(seconds=lease_ttl)) if lease else self.now
                holder = (work.holder or take.lease) if lease else take.lease
                changes.append(Resolved(hold.id, work.how, holder, ends))
        if changes:
            self._statements.resolve(changes)
        return late

    def end(self, found: Sequence[RowMapping], state: str) -> None:
        """Give back holds and leases that were found in the store, under the lock of their rows."""
        for hold in found:
            row = self.rows[row_key(hold)]
            if hold["state"] == "held":
                row.add(held=-hold["amount"])
            elif hold["state"] == "committed":
                row.add(used=-hold["amount"])
        if found:
            self._connection.execute(_CLOSE, [{"id": hold["hold_id"], "new_state": state} for hold in found])

    def write(self) -> None:
        """Write what has changed."""
        if self.new_holds:
            self._statements.hold(self.new_holds, self.now)
        changed = [
            Written(row.used, row.held, row.tier, row.announced, key) for key, row in self.rows.items() if row.changed
        ]
        if changed:
            self._statements.write(changed, self.now)
        if self.events:
            dialect: Any = sqlite if self._connection.dialect.name == "sqlite" else postgresql
            self._connection.execute(dialect.insert(quota_events).on_conflict_do_nothing(), self.events)

    def _take(self, keys: Sequence[Key]) -> datetime | None:
        if not keys:
            return None
        found, now = self._statements.lock(keys)
        for key, used, held, tier, announced in found:
            self.rows[key] = Row(used, held, tier, announced)
        return None if now is None else aware(now)

    def _fits(self, key: Key, amount: int, take: Take) -> bool:
        row = self.rows[key]
        return row.used + row.held + amount <= take.limit.limit

    def _reap(self, key: Key) -> None:
        if key in self._reaped:
            return
        self._reaped.add(key)
        overdue = select(holds).where(tuple_(*_HOLD_KEY) == key, COUNTS, holds.c.expires_at <= self.now)
        self.end(self._connection.execute(overdue).mappings().all(), "expired")

    def _announce(self, key: Key, row: Row, take: Take) -> None:
        after = thresholds.passed(take.limit, row.used, row.announced)
        for threshold in thresholds.newly(take.limit, row.announced, after):
            self.events.append(thresholds.event(key, take.limit, threshold, row.used, self.now))
        row.announced = after

    def _hold(self, key: Key, take: Take, ttl: float) -> Hold:
        id = str(uuid7())
        organization, _, _, period = key
        ends = self.now + timedelta(seconds=ttl)
        self.new_holds.append(Held(id, key, take.limit.meter, take.limit.kind, take.amount, take.lease, ends))
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


def clock(connection: Connection) -> datetime:
    """Return the database's time."""
    return aware(connection.execute(_NOW).scalar_one())


def aware(time: datetime) -> datetime:
    # SQLite keeps no time zone: what stands there is UTC
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def row_key(hold: RowMapping) -> Key:
    return hold["organization_id"], hold["subject"], hold["limit_name"], hold["period"]
