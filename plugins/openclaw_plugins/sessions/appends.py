"""Stores messages so that appends of one moment share a commit; each is acknowledged after it, and fails alone.

Each organisation has a lane of its own: one transaction at a time, with everything that came while the last one ran.
So a burst of one organisation takes one connection, and no transaction ever sees two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from openclaw_gateway.api import (
    Accounts,
    Database,
    GatewayError,
    Hold,
    NewMessage,
    StoreBusy,
    StoreUnavailable,
    end_span,
    start_span,
    traced,
)
from openclaw_plugins.sessions.rows import alive
from openclaw_plugins.sessions.tables import messages as messages_table
from openclaw_plugins.sessions.tables import now
from openclaw_plugins.sessions.tables import sessions as table

#: appends of one transaction at most
_BATCH = 128

# On SQLite a transaction is the only one that writes: what it has read stays so.
_THERE = select(table.c.session_id, table.c.message_count, now()).where(
    table.c.organization_id == bindparam("organization"),
    table.c.session_id.in_(bindparam("ids", expanding=True)),
    alive(),
)
_COUNT = (
    update(table)
    .where(table.c.session_id == bindparam("id"), table.c.organization_id == bindparam("organization"))
    .values(message_count=bindparam("count"), updated_at=now())
)
_INSERT = insert(messages_table)

# PostgreSQL does the three in one round trip. Sessions are locked in the order of their ids, which is the same for
# every replica: no deadlock. One that had to be waited for is counted as it is by then.
_AT_ONCE = """
WITH new AS MATERIALIZED (
  SELECT * FROM unnest($3::uuid[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::text[])
    AS new(id, session, place, role, content, metadata)
), there AS MATERIALIZED (
  SELECT session_id, message_count FROM openclaw_sessions
  WHERE organization_id = $1 AND session_id = ANY($2::uuid[]) AND expires_at > now()
  ORDER BY session_id FOR UPDATE
), stored AS (
  INSERT INTO openclaw_messages (message_id, session_id, organization_id, seq, role, content, metadata, timestamp)
  SELECT id, session, $1, message_count + place, role, content::json, new.metadata::json, now()
  FROM new JOIN there ON session_id = session
), counted AS (
  UPDATE openclaw_sessions s SET message_count = there.message_count + more.count, updated_at = now()
  FROM there JOIN (SELECT session, count(*) AS count FROM new GROUP BY session) more ON there.session_id = more.session
  WHERE s.session_id = there.session_id AND s.organization_id = $1
)
SELECT session_id::text, message_count, now() FROM there
"""

Rows = list[dict[str, Any]]


class Append:
    """Messages on their way into one session; `rows` is the answer, None where the session is not there."""

    __slots__ = ("done", "holds", "id", "ids", "messages", "rows")

    def __init__(self, id: str, messages: Sequence[NewMessage], holds: Sequence[Hold]) -> None:
        self.id = id
        self.messages = messages
        #: of its messages
        self.ids = [str(uuid7()) for _ in messages]
        self.holds = holds
        self.rows: Rows | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: BaseException | None = None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Appends:
    """The lanes by which messages are stored."""

    def __init__(self, database: Database, accounts: Accounts) -> None:
        self._database = database
        self._accounts = accounts
        #: by organisation, for as long as its lane is moving
        self._waiting: dict[str, list[Append]] = {}
        self._lanes: set[asyncio.Task[None]] = set()

    async def through(
        self, organization: str, id: str, messages: Sequence[NewMessage], holds: Sequence[Hold]
    ) -> Rows | None:
        """Store messages and commit `holds` with them; return the rows, None where there is no such session."""
        append = Append(id, messages, holds)
        waiting = self._waiting.get(organization)
        if waiting is not None:
            waiting.append(append)
        else:
            self._waiting[organization] = [append]
            # In a context of nobody's: what it carries belongs to many exchanges, and to no one's trace.
            lane = asyncio.create_task(self._flush(organization), context=Context())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        span = start_span("sessions append", kind="internal") if traced() else None
        failed = None
        try:
            await append.done
        except GatewayError as error:
            failed = type(error).__name__
            raise
        finally:
            end_span(span, failed)
        return append.rows

    async def ended(self) -> None:
        """Wait until nothing is on its way."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def _flush(self, organization: str) -> None:
        waiting = self._waiting[organization]
        try:
            while waiting:
                batch = waiting[:_BATCH]
                del waiting[:_BATCH]
                await self._store(organization, batch)
        finally:
            del self._waiting[organization]
            for append in waiting:
                append.end(StoreUnavailable("database", "closed"))

    async def _store(self, organization: str, batch: Sequence[Append]) -> None:
        locked: set[str] = set()
        try:
            if await self._attempt(organization, batch) or len(batch) == 1:
                return
            # One of them cannot be stored, or its session is locked: that one fails, the others do not.
            for append in batch:
                if append.id in locked:
                    append.end(StoreBusy("database", "the rows are locked by other work"))
                elif not await self._attempt(organization, [append]) and isinstance(append.done.exception(), StoreBusy):
                    locked.add(append.id)
        except BaseException as error:
            for append in batch:
                append.end(error)
            raise

    async def _attempt(self, organization: str, batch: Sequence[Append]) -> bool:
        """Store all of them in one transaction; where that fails for more than one, say so and end none."""
        connected = False
        try:
            async with self._database.transaction(
                organization, operation="insert", table="openclaw_messages"
            ) as connection:
                connected = True
                stored = await self._write(connection, organization, batch)
        except GatewayError as error:
            alone = not isinstance(error, StoreUnavailable) or (connected and isinstance(error, StoreBusy))
            if alone and len(batch) > 1:
                return False
            for append in batch:
                append.end(error)
            return not alone
        for append, rows in zip(batch, stored, strict=True):
            append.rows = rows
            append.end()
        return True

    async def _write(
        self, connection: AsyncConnection, organization: str, batch: Sequence[Append]
    ) -> Sequence[Rows | None]:
        stored = await self._database.inside(connection, partial(_written, organization, batch))
        there = [append for append, rows in zip(batch, stored, strict=True) if rows is not None]
        await self._accounts.commit([hold for append in there for hold in append.holds], transaction=connection)
        return stored


def _written(organization: str, batch: Sequence[Append], connection: Connection) -> Sequence[Rows | None]:
    """The session's row numbers its messages: under its lock there is no gap and no second of a number."""
    shared = connection.dialect.name == "postgresql"
    if shared:
        locked = connection.exec_driver_sql(_AT_ONCE, _columns(organization, batch)).all()
    else:
        ids = [*{append.id for append in batch}]
        locked = connection.execute(_THERE, {"organization": organization, "ids": ids}).all()
    counts: dict[str, int] = {row[0]: row[1] for row in locked}
    stored: list[Rows | None] = []
    for append in batch:
        count = counts.get(append.id)
        if count is None:
            stored.append(None)
            continue
        stored.append(
            [
                {
                    "message_id": id,
                    "session_id": append.id,
                    "organization_id": organization,
                    "seq": seq,
                    "role": new.role,
                    "content": new.content,
                    "metadata": new.metadata,
                    "timestamp": locked[0][2],
                }
                for seq, (id, new) in enumerate(zip(append.ids, append.messages, strict=True), count + 1)
            ]
        )
        counts[append.id] = count + len(append.messages)
    if shared:
        return stored
    if new_rows := [row for rows in stored if rows for row in rows]:
        connection.execute(_INSERT, new_rows)
    if counts:
        connection.execute(
            _COUNT, [{"id": id, "organization": organization, "count": count} for id, count in counts.items()]
        )
    return stored


def _columns(organization: str, batch: Sequence[Append]) -> tuple[Any, ...]:
    """What `_AT_ONCE` is asked; a message's place is among all that the batch has for its session, from one on."""
    places = {append.id: 0 for append in batch}
    rows: list[tuple[str, str, int, str, str, str]] = []
    for append in batch:
        for id, new in zip(append.ids, append.messages, strict=True):
            places[append.id] += 1
            content, metadata = msgspec.json.encode(new.content), msgspec.json.encode(new.metadata)
            rows.append((id, append.id, places[append.id], new.role, content.decode(), metadata.decode()))
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(6)]
    return organization, sorted(places), *columns
