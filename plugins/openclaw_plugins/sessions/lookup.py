"""Finds sessions by their id, and tells one that is not there from one of another organisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, Select, Text, bindparam, cast, func, select

from openclaw_gateway.api import Database, Refused, forbidden, not_found
from openclaw_plugins.sessions.rows import alive, belonging
from openclaw_plugins.sessions.tables import messages
from openclaw_plugins.sessions.tables import sessions as table

# Written once: to build a statement takes longer than to run it.
_OWN = (table.c.session_id == bindparam("id"), table.c.organization_id == bindparam("organization"), alive())
_SESSION = select(table).where(*_OWN)
_THERE = select(table.c.session_id).where(*_OWN)


class Lookup:
    """Reads of single sessions, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def found(self, organization: str, id: str) -> RowMapping | None:
        def look(connection: Connection) -> RowMapping | None:
            return connection.execute(_SESSION, {"organization": organization, "id": id}).mappings().first()

        return await self._database.run(look, operation="select", table="openclaw_sessions", organization=organization)

    async def of_session(self, organization: str, id: str, query: Select[Any]) -> Sequence[RowMapping]:
        """Read messages of a session that is there; one look where there are any."""
        return await self._of_session(organization, id, query, None)

    async def last(self, organization: str, id: str, limit: int, max_bytes: int | None) -> Sequence[RowMapping]:
        """Read the last messages of a session that is there, as the contract's `history` has them."""
        query = select(messages).where(*belonging(organization, id)).order_by(messages.c.seq.desc()).limit(limit)
        if max_bytes is not None and self._database.dialect == "postgresql":
            query = _sent(query, max_bytes)
        return [*reversed(await self._of_session(organization, id, query, max_bytes))]

    async def _of_session(
        self, organization: str, id: str, query: Select[Any], max_bytes: int | None
    ) -> Sequence[RowMapping]:
        def look(connection: Connection) -> Sequence[RowMapping] | None:
            there = connection.execute(_THERE, {"organization": organization, "id": id}).first()
            if there is None:
                return None
            with connection.execute(query) as found:
                rows = found.mappings()
                return rows.all() if max_bytes is None else _fitting(rows, max_bytes)

        rows = await self._database.run(look, operation="select", table="openclaw_messages", organization=organization)
        if rows is None:
            raise await self.missing(id)
        return rows

    async def missing(self, id: str) -> Refused:
        """Tell another organisation's session from one that is not there."""
        async with self._database.transaction(None, operation="select", table="openclaw_sessions") as reader:
            elsewhere = (
                await reader.execute(select(table.c.session_id).where(table.c.session_id == id, alive()))
            ).first()
        if elsewhere is None:
            return Refused(not_found("no such session"))
        return Refused(forbidden("this session belongs to another organization"))


def _fitting(rows: Iterable[RowMapping], max_bytes: int) -> Sequence[RowMapping]:
    """Return the first rows whose contents fit; SQLite steps from row to row and reads none that is not asked for."""
    kept: list[RowMapping] = []
    for row in rows:
        max_bytes -= len(msgspec.json.encode(row["content"]))
        if max_bytes < 0:
            break
        kept.append(row)
    return kept


def _sent(query: Select[Any], max_bytes: int) -> Select[Any]:
    """Have PostgreSQL, which sends all that it finds, find no more than may fit.

    Its text of a JSON value has a space behind each comma and colon: at most twice the bytes that `_fitting` counts.
    """
    last = query.subquery()
    size = func.octet_length(cast(last.c.content, Text))
    sized = select(last, func.sum(size).over(order_by=last.c.seq.desc()).label("bytes")).subquery()
    columns = [sized.c[column.name] for column in messages.c]
    return select(*columns).where(sized.c.bytes <= 2 * max_bytes).order_by(sized.c.seq.desc())
