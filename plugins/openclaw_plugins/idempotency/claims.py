"""Who may carry out the request of a key, and what came of it. One row a key; the first who inserts it has the claim.

A claim is held for as long as its holder says that it lives. One that has run out is taken over only after the
account has said that nothing was charged under it, so that nothing is ever charged twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from uuid_utils import uuid7

from openclaw_gateway.api import ChargeReferences, Database
from openclaw_plugins.idempotency.tables import claims as table
from openclaw_plugins.idempotency.tables import now

T = TypeVar("T")

#: how often a row may go between our insert and our look
_LOOKS = 3
_SWEEP = 200


class Wanted(msgspec.Struct, frozen=True):
    """What a request asks to be first with."""

    organization: str
    route: str
    key: str
    fingerprint: str


class Won(msgspec.Struct, frozen=True):
    """The caller is the first, and carries the request out."""

    claim: str


class Running(msgspec.Struct, frozen=True):
    """Another one is carrying it out."""


class Differs(msgspec.Struct, frozen=True):
    """The key belongs to another request."""


class Lost(msgspec.Struct, frozen=True):
    """It was carried out, and its answer is not kept."""


class Done(msgspec.Struct, frozen=True):
    """It was carried out, and this is its answer."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class _Silent(msgspec.Struct, frozen=True):
    claim: str


class Claims:
    """The claims of all organisations. Raises StoreUnavailable."""

    def __init__(self, database: Database, references: ChargeReferences, *, lease: float, retention: float) -> None:
        self._database = database
        self._references = references
        self._lease = timedelta(seconds=lease)
        self._retention = timedelta(seconds=retention)

    async def claim(self, wanted: Wanted) -> Won | Running | Differs | Lost | Done:
        """Ask to be the one who carries the request out."""
        for _ in range(_LOOKS):
            found = await self._run(wanted.organization, "insert", partial(_first, wanted, self._lease))
            if isinstance(found, _Silent):
                found = await self._succeed(wanted, found.claim)
            if found is not None:
                return found
        return Running()

    async def keep(self, organization: str, claim: str, answer: Done) -> None:
        """Keep the answer, for the retention."""
        values = {"status": answer.status, "headers": [list(h) for h in answer.headers], "body": answer.body}
        await self._end(organization, claim, {"state": "done", **values})

    async def lose(self, organization: str, claim: str) -> None:
        """Note that the request was carried out, and that its answer is not kept."""
        await self._end(organization, claim, {"state": "lost"})

    async def forget(self, organization: str, claim: str) -> None:
        """Free the key: nothing has come of the request."""
        mine = delete(table).where(table.c.claim_id == claim, table.c.state == "running")
        await self._run(organization, "delete", lambda connection: connection.execute(mine).rowcount)

    async def renew(self, claims: Collection[str]) -> None:
        """Say that the holders of these claims live."""
        held = (table.c.claim_id.in_(sorted(claims)), table.c.state == "running")

        def prolong(connection: Connection) -> None:
            connection.execute(update(table).where(*held).values(expires_at=_clock(connection) + self._lease))

        await self._run(None, "sweep", prolong)

    async def sweep(self) -> int:
        """Forget what is past its retention, and settle the claims of the dead; return how many of those there were."""

        def look(connection: Connection) -> Sequence[tuple[str, str]]:
            time = _clock(connection)
            connection.execute(delete(table).where(table.c.state != "running", table.c.expires_at <= time))
            silent = select(table.c.organization_id, table.c.claim_id).where(
                table.c.state == "running", table.c.expires_at <= time
            )
            return [(row[0], row[1]) for row in connection.execute(silent.limit(_SWEEP))]

        found = await self._run(None, "sweep", look)
        for organization, claim in found:
            await self.settle(organization, claim)
        return len(found)

    async def settle(self, organization: str, claim: str) -> bool:
        """End a claim whose answer nobody has; say whether its request had been carried out."""
        if await self._references.disown(organization, claim):
            await self.lose(organization, claim)
            return True
        await self.forget(organization, claim)
        return False

    async def _succeed(self, wanted: Wanted, silent: str) -> Won | Running | Lost:
        """Take over the claim of one who is silent, unless his request was carried out."""
        if await self._references.disown(wanted.organization, silent):
            await self.lose(wanted.organization, silent)
            return Lost()
        id = uuid7().hex

        def take_over(connection: Connection) -> int:
            time = _clock(connection)
            taking = (
                update(table)
                .where(table.c.claim_id == silent, table.c.state == "running")
                .values(claim_id=id, fingerprint=wanted.fingerprint, created_at=time, expires_at=time + self._lease)
            )
            return connection.execute(taking).rowcount

        return Won(id) if await self._run(wanted.organization, "update", take_over) == 1 else Running()

    async def _end(self, organization: str, claim: str, values: Mapping[str, Any]) -> None:
        # A claim that another has taken over meanwhile is not ours to end.
        held = (table.c.claim_id == claim, table.c.state == "running")

        def end(connection: Connection) -> None:
            until = _clock(connection) + self._retention
            connection.execute(update(table).where(*held).values(expires_at=until, **values))

        await self._run(organization, "update", end)

    async def _run(self, organization: str | None, operation: str, work: Callable[[Connection], T]) -> T:
        return await self._database.run(work, operation=operation, table=table.name, organization=organization)


def _first(
    wanted: Wanted, lease: timedelta, connection: Connection
) -> Won | Running | Differs | Lost | Done | _Silent | None:
    time = _clock(connection)
    mine = (
        table.c.organization_id == wanted.organization,
        table.c.route == wanted.route,
        table.c.key == wanted.key,
    )
    outdated = (table.c.state != "running", table.c.expires_at <= time)
    id = uuid7().hex
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    row = {
        "organization_id": wanted.organization,
        "route": wanted.route,
        "key": wanted.key,
        "claim_id": id,
        "fingerprint": wanted.fingerprint,
        "state": "running",
        "created_at": time,
        "expires_at": time + lease,
    }
    inserted = connection.execute(dialect.insert(table).values(row).on_conflict_do_nothing())
    if inserted.rowcount == 1:
        return Won(id)
    found = connection.execute(select(table).where(*mine)).mappings().first()
    if found is None:
        return None
    if found["state"] != "running" and _aware(found["expires_at"]) <= time:
        connection.execute(delete(table).where(*mine, *outdated))
        return None
    return _read(found, wanted, time)


def _read(found: Mapping[Any, Any], wanted: Wanted, time: datetime) -> Running | Differs | Lost | Done | _Silent:
    if found["fingerprint"] != wanted.fingerprint:
        return Differs()
    if found["state"] == "done":
        return Done(found["status"], [(name, value) for name, value in found["headers"]], bytes(found["body"]))
    if found["state"] == "lost":
        return Lost()
    return Running() if _aware(found["expires_at"]) > time else _Silent(found["claim_id"])


def _clock(connection: Connection) -> datetime:
    return _aware(connection.execute(select(now())).scalar_one())


def _aware(time: datetime) -> datetime:
    # SQLite keeps no time zone: what stands there is UTC
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
