"""The statements that every charge runs, written out for each store, with rows that go in and come out as they are.

SQLAlchemy builds a statement, and converts every value, anew for each row: that cost more than the database's own work.
Here a batch of any size is one statement of one text, which the server has prepared, or a few, which the driver has.
What runs rarely is written with SQLAlchemy, beside its use. Times are in UTC; ids of holds are those of the contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import msgspec
from sqlalchemy import Connection

from openclaw_plugins.accounts.work import Key

# `(rows)` stands for as many rows of places as there are; behind it ?, for what is the same for all of them.
_LOCK_ON_SQLITE = (
    # (a, b) IN (VALUES ...) would read the whole table
    "WITH n(o, s, l, p) AS (VALUES (rows))"
    " SELECT organization_id, subject, limit_name, period, used, held, tier, announced,"
    " strftime('%Y-%m-%d %H:%M:%f', 'now') FROM n CROSS JOIN openclaw_usage"
    " ON organization_id = n.o AND subject = n.s AND limit_name = n.l AND period = n.p"
)
_MAKE_ON_SQLITE = (
    "WITH n(o, s, l, p) AS (VALUES (rows))"
    " INSERT INTO openclaw_usage (organization_id, subject, limit_name, period, used, held, tier, announced,"
    " updated_at) SELECT o, s, l, p, 0, 0, '', 0, ? FROM n WHERE true ON CONFLICT DO NOTHING"
)
_HOLD_ON_SQLITE = (
    "WITH n(i, o, s, l, p, m, k, a, h, e) AS (VALUES (rows))"
    " INSERT INTO openclaw_holds (hold_id, organization_id, subject, limit_name, period, meter, kind, amount,"
    " state, holder, created_at, expires_at) SELECT i, o, s, l, p, m, k, a, 'held', h, ?, e FROM n"
)
_RESOLVE_ON_SQLITE = (
    "WITH n(i, s, h, e) AS (VALUES (rows))"
    " UPDATE openclaw_holds SET state = n.s, holder = n.h, expires_at = n.e FROM n WHERE hold_id = n.i"
)
_WRITE_ON_SQLITE = (
    "WITH n(o, s, l, p, used, held, tier, announced) AS (VALUES (rows))"
    " UPDATE openclaw_usage SET used = n.used, held = n.held, tier = n.tier, announced = n.announced, updated_at = ?"
    " FROM n WHERE organization_id = n.o AND subject = n.s AND limit_name = n.l AND period = n.p"
)
#: rows of one statement at most; SQLite has long taken no more than 999 values
_BLOCK = 64


class Locked(NamedTuple):
    """One usage row under its lock."""

    key: Key
    used: int
    held: int
    tier: str
    announced: int


class Held(NamedTuple):
    """One reservation that is made."""

    id: str
    key: Key
    meter: str
    kind: str
    amount: int
    holder: str | None
    expires_at: datetime


class Resolved(NamedTuple):
    """What becomes of one reservation."""

    id: str
    state: str
    holder: str | None
    expires_at: datetime


class Written(NamedTuple):
    """A usage row as it is from now on."""

    used: int
    held: int
    tier: str
    announced: int
    key: Key


class Statements(Protocol):
    """The statements on one connection, in the transaction that is open there."""

    def lock(self, keys: Sequence[Key]) -> tuple[list[Locked], datetime | None]:
        """Lock the usage rows that there are, in the order of their keys; with the store's time, if there is one.

        SQLite's has no time zone: it is UTC.
        """
        ...

    def make(self, keys: Sequence[Key], now: datetime) -> None:
        """Make usage rows that may be there already."""
        ...

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        """Return id → state of the reservations that there are."""
        ...

    def hold(self, holds: Sequence[Held], now: datetime) -> None: ...

    def resolve(self, changes: Sequence[Resolved]) -> None: ...

    def write(self, rows: Sequence[Written], now: datetime) -> None: ...


def statements(connection: Connection) -> Statements:
    return OnSqlite(connection) if connection.dialect.name == "sqlite" else OnPostgresql(connection)


class OnSqlite:
    """Many rows are one step of the driver, which lets go of the interpreter at each. Ids and times are texts there.

    It is the driver that is asked: SQLAlchemy's account of an execution costs more than SQLite's work.
    """

    __slots__ = ("_run",)

    def __init__(self, connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        self._run = driver.execute

    def lock(self, keys: Sequence[Key]) -> tuple[list[Locked], datetime | None]:
        # The transaction is the only one that writes, so that all rows are its own.
        found: list[Any] = []
        for text, values in _blocks(_LOCK_ON_SQLITE, keys):
            found += self._run(text, values)
        now = datetime.fromisoformat(found[0][8]) if found else None
        return [Locked((row[0], row[1], row[2], row[3]), *row[4:8]) for row in found], now

    def make(self, keys: Sequence[Key], now: datetime) -> None:
        self._do(_MAKE_ON_SQLITE, keys, _stamp(now))

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        named = {_hex(id): id for id in ids}
        found = self._run(
            "SELECT hold_id, state FROM openclaw_holds WHERE hold_id IN (SELECT value FROM json_each(?))",
            (msgspec.json.encode(list(named)).decode(),),
        )
        return {named[id]: state for id, state in found}

    def hold(self, holds: Sequence[Held], now: datetime) -> None:
        rows = [
            (_hex(one.id), *one.key, one.meter, one.kind, one.amount, one.holder, _stamp(one.expires_at))
            for one in holds
        ]
        self._do(_HOLD_ON_SQLITE, rows, _stamp(now))

    def resolve(self, changes: Sequence[Resolved]) -> None:
        self._do(_RESOLVE_ON_SQLITE, [(_hex(one.id), one.state, one.holder, _stamp(one.expires_at)) for one in changes])

    def write(self, rows: Sequence[Written], now: datetime) -> None:
        self._do(
            _WRITE_ON_SQLITE,
            [(*row.key, row.used, row.held, row.tier, row.announced) for row in rows],
            _stamp(now),
        )

    def _do(self, text: str, rows: Sequence[Sequence[Any]], *values: Any) -> None:
        """Execute a statement for rows, with values that are the same for all of them behind the row's."""
        for block, places in _blocks(text, rows):
            self._run(block, (*places, *values))


class OnPostgresql:
    """A batch is one statement over arrays: one round trip, and one plan whatever its size."""

    __slots__ = ("_run",)

    def __init__(self, connection: Connection) -> None:
        self._run = connection.exec_driver_sql

    def lock(self, keys: Sequence[Key]) -> tuple[list[Locked], datetime | None]:
        found = self._run(
            "SELECT u.organization_id, u.subject, u.limit_name, u.period, u.used, u.held, u.tier, u.announced, now()"
            " FROM openclaw_usage u JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS k(o, s, l, p)"
            " ON u.organization_id = k.o AND u.subject = k.s AND u.limit_name = k.l AND u.period = k.p"
            " ORDER BY 1, 2, 3, 4 FOR UPDATE OF u",
            _columns(keys),
        ).all()
        return [Locked((row[0], row[1], row[2], row[3]), *row[4:8]) for row in found], found[0][8] if found else None

    def make(self, keys: Sequence[Key], now: datetime) -> None:
        self._run(
            "INSERT INTO openclaw_usage (organization_id, subject, limit_name, period, used, held, tier, announced,"
            " updated_at) SELECT o, s, l, p, 0, 0, '', 0, $5::timestamptz"
            " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS k(o, s, l, p) ON CONFLICT DO NOTHING",
            (*_columns(keys), now),
        )

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        found = self._run(
            "SELECT hold_id::text, state FROM openclaw_holds WHERE hold_id = ANY($1::uuid[])", (list(ids),)
        )
        return {row[0]: row[1] for row in found}

    def hold(self, holds: Sequence[Held], now: datetime) -> None:
        ids, keys, meters, kinds, amounts, holders, ends = _columns(holds)
        self._run(
            "INSERT INTO openclaw_holds (hold_id, organization_id, subject, limit_name, period, meter, kind, amount,"
            " state, holder, created_at, expires_at) SELECT i, o, s, l, p, m, k, a, 'held', h, $11::timestamptz, e"
            " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],"
            " $8::bigint[], $9::text[], $10::timestamptz[]) AS n(i, o, s, l, p, m, k, a, h, e)",
            (ids, *_columns(keys), meters, kinds, amounts, holders, ends, now),
        )

    def resolve(self, changes: Sequence[Resolved]) -> None:
        self._run(
            "UPDATE openclaw_holds SET state = n.s, holder = n.h, expires_at = n.e"
            " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) AS n(i, s, h, e) WHERE hold_id = n.i",
            _columns(changes),
        )

    def write(self, rows: Sequence[Written], now: datetime) -> None:
        used, held, tiers, announced, keys = _columns(rows)
        self._run(
            "UPDATE openclaw_usage u SET used = n.used, held = n.held, tier = n.tier, announced = n.announced,"
            " updated_at = $9::timestamptz FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::int[], $5::text[],"
            " $6::text[], $7::text[], $8::text[]) AS n(used, held, tier, announced, o, s, l, p)"
            " WHERE u.organization_id = n.o AND u.subject = n.s AND u.limit_name = n.l AND u.period = n.p",
            (used, held, tiers, announced, *_columns(keys), now),
        )


def _columns(rows: Iterable[Sequence[Any]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def _blocks(text: str, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Cut rows into blocks of 64, 32, 16 and so on, so that few texts are ever prepared; yield text and values."""
    at = 0
    while at < len(rows):
        size = min(_BLOCK, 1 << (len(rows) - at).bit_length() - 1)
        yield _for_rows(text, size, len(rows[0])), [value for row in rows[at : at + size] for value in row]
        at += size


@lru_cache(maxsize=64)
def _for_rows(text: str, rows: int, columns: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return text.replace("(rows)", ", ".join([row] * rows))


def _hex(id: str) -> str:
    return id.replace("-", "")


def _stamp(time: datetime) -> str:
    """As SQLAlchemy's DateTime writes it, and compares it: 2026-11-30 23:59:59.000000, in UTC."""
    return time.isoformat(" ", "microseconds")[:26]
