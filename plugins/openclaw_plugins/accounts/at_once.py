"""The usual batch on PostgreSQL as one statement: one round trip, where the ledger takes seven.

Usual is a batch that changes nothing but numbers: every usage row is there, every reservation fits, every hold that is
settled is held, no threshold is passed and no day ends. The statement finds that out under the locks of the rows, and
writes all of the batch or nothing. What is not usual is decided row by row in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from uuid_utils import uuid7

from openclaw_gateway.api import Balance, Hold, Limit
from openclaw_plugins.accounts.periods import seconds_left
from openclaw_plugins.accounts.work import Key, Reservation, Settlement

#: what no number of a row comes near
_NEVER = 2**62

# Locks come first, in the order of the ledger: usage rows by their keys, then holds. A row that had to be waited for is
# read as it is by then; a hold that somebody resolved meanwhile is no longer held, so that the batch is not usual.
STATEMENT = """
WITH k AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::text[]) AS k(o, s, l, p, used, held, room, warning, exhausted, tier)
), u AS MATERIALIZED (
  SELECT u.organization_id AS o, u.subject AS s, u.limit_name AS l, u.period AS p, u.used, u.held, u.announced
  FROM openclaw_usage u JOIN k
    ON u.organization_id = k.o AND u.subject = k.s AND u.limit_name = k.l AND u.period = k.p
  ORDER BY 1, 2, 3, 4 FOR UPDATE OF u
), h AS MATERIALIZED (
  SELECT h.hold_id FROM openclaw_holds h
  WHERE (SELECT count(*) FROM u) = cardinality($1) AND h.hold_id = ANY($11::uuid[]) AND h.state = 'held'
  FOR UPDATE OF h
), usual AS MATERIALIZED (
  SELECT now() >= $24::timestamptz AND now() < $25::timestamptz
    AND (SELECT count(*) FROM u) = cardinality($1) AND (SELECT count(*) FROM h) = cardinality($11)
    AND NOT EXISTS (
      SELECT FROM u JOIN k USING (o, s, l, p)
      WHERE u.used + k.used + u.held + k.held > k.room
        OR (u.used + k.used >= k.warning AND u.announced < 1) OR (u.used + k.used >= k.exhausted AND u.announced < 2)
    ) AS yes
), resolved AS (
  UPDATE openclaw_holds h SET state = n.s, holder = n.b,
    expires_at = CASE WHEN h.kind = 'lease' THEN coalesce(n.e, now() + $26::interval) ELSE now() END
  FROM unnest($11::uuid[], $12::text[], $13::text[], $14::timestamptz[]) AS n(i, s, b, e)
  WHERE h.hold_id = n.i AND (SELECT yes FROM usual)
), made AS (
  INSERT INTO openclaw_holds (hold_id, organization_id, subject, limit_name, period, meter, kind, amount, state, holder,
    created_at, expires_at)
  SELECT i, o, s, l, p, m, t, a, 'held', b, now(), now() + $26::interval
  FROM unnest($15::uuid[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[], $21::text[], $22::bigint[],
    $23::text[]) AS n(i, o, s, l, p, m, t, a, b)
  WHERE (SELECT yes FROM usual)
), written AS (
  UPDATE openclaw_usage u SET used = u.used + k.used, held = u.held + k.held,
    tier = CASE k.tier WHEN '' THEN u.tier ELSE k.tier END, updated_at = now()
  FROM k
  WHERE u.organization_id = k.o AND u.subject = k.s AND u.limit_name = k.l AND u.period = k.p
    AND (SELECT yes FROM usual)
)
SELECT (SELECT yes FROM usual), now(), u.o, u.s, u.l, u.p, u.used + u.held FROM u
"""


class _Sum:
    """What a batch changes of one usage row, and between which bounds it is usual."""

    __slots__ = ("exhausted", "held", "limit", "room", "tier", "used", "warning")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.used = 0
        self.held = 0
        self.room = self.warning = self.exhausted = _NEVER
        self.tier = ""

    def columns(self, key: Key) -> tuple[Any, ...]:
        return *key, self.used, self.held, self.room, self.warning, self.exhausted, self.tier


class AtOnce:
    """One batch: asked by `parameters` of the statement, answered by its rows."""

    def __init__(self, batch: Iterable[Reservation | Settlement], now: datetime, hold_ttl: float) -> None:
        """Sum the batch up; `now` is a guess of the database's time."""
        self._reservations: list[tuple[Reservation, list[tuple[Key, Hold]]]] = []
        self._sums: dict[Key, _Sum] = {}
        self._settled: dict[str, tuple[Any, ...]] = {}
        #: what settlements add to a row, before any reservation does
        self._added: dict[Key, int] = {}
        self._ttl = hold_ttl
        self._day = datetime(now.year, now.month, now.day, tzinfo=UTC)
        #: whether the statement can decide it at all: one limit a row, a hold settled once
        self.possible = True
        for work in batch:
            if isinstance(work, Settlement):
                self._settle(work, now)
            else:
                self._reserve(work, now)

    @property
    def parameters(self) -> tuple[Any, ...]:
        made = [
            (hold.id, *key, hold.take.limit.meter, hold.take.limit.kind, hold.take.amount, hold.take.lease)
            for _, holds in self._reservations
            for key, hold in holds
        ]
        return (
            *_columns([sum.columns(key) for key, sum in self._sums.items()], 10),
            *_columns(list(self._settled.values()), 4),
            *_columns(made, 9),
            self._day,
            self._day + timedelta(days=1),
            timedelta(seconds=self._ttl),
        )

    def answered(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Take the answer; False where the batch is not usual, and nothing has been written."""
        if not rows or not rows[0][0]:
            return False
        now: datetime = rows[0][1]
        taken = {(row[2], row[3], row[4], row[5]): row[6] for row in rows}
        for key, added in self._added.items():
            taken[key] += added
        for work, holds in self._reservations:
            for key, hold in holds:
                taken[key] += hold.take.amount
            work.holds = [hold for _, hold in holds]
            work.balances = [
                Balance(limit=hold.take.limit, used=taken[key], reset_after=seconds_left(hold.take.limit, now))
                for key, hold in holds
            ]
        return True

    def _settle(self, work: Settlement, now: datetime) -> None:
        committed = work.how == "committed"
        for hold, key in zip(work.holds, work.keys(now), strict=True):
            take, limit = hold.take, hold.take.limit
            if hold.id in self._settled:
                self.possible = False
            ends, holder = None, take.lease
            if limit.kind == "lease":
                ends, holder = work.lives_until, work.holder or take.lease
            self._settled[hold.id] = (hold.id, work.how, holder, ends)
            sum = self._sum(key, limit)
            charge = 0 if not committed else take.amount if hold.charge is None else hold.charge
            sum.used += charge
            sum.held -= take.amount
            self._added[key] = self._added.get(key, 0) + charge - take.amount
            if committed and limit.kind == "quota" and limit.mode != "shadow":
                sum.warning, sum.exhausted = math.ceil(limit.warn_at * limit.limit), limit.limit

    def _reserve(self, work: Reservation, now: datetime) -> None:
        holds: list[tuple[Key, Hold]] = []
        for take, key in zip(work.takes, work.keys(now), strict=True):
            sum = self._sum(key, take.limit)
            sum.held += take.amount
            sum.tier = take.limit.tier
            if take.limit.mode != "shadow":
                sum.room = take.limit.limit
            holds.append((key, Hold(str(uuid7()), take, work.organization, key[3])))
        self._reservations.append((work, holds))

    def _sum(self, key: Key, limit: Limit) -> _Sum:
        sum = self._sums.get(key)
        if sum is None:
            sum = self._sums[key] = _Sum(limit)
        elif sum.limit is not limit and sum.limit != limit:
            self.possible = False
        return sum


def _columns(rows: Sequence[Sequence[Any]], count: int) -> Iterable[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]
