"""Finds sessions by their id, and tells one that is not there from one of another organisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select

from openclaw_gateway.api import Database, Refused, forbidden, not_found
from openclaw_plugins.sessions.rows import alive, own
from openclaw_plugins.sessions.tables import sessions as table


class Lookup:
    """Reads of single sessions, each in a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def found(self, organization: str, id: str) -> RowMapping | None:
        def look(connection: Connection) -> RowMapping | None:
            return connection.execute(select(table).where(own(organization, id))).mappings().first()

        return await self._database.run(look, operation="select", table="openclaw_sessions", organization=organization)

    async def of_session(self, organization: str, id: str, query: Select[Any]) -> Sequence[RowMapping]:
        """Read messages of a session that is there; one look where there are any."""

        def look(connection: Connection) -> Sequence[RowMapping] | None:
            there = connection.execute(select(table.c.session_id).where(own(organization, id))).first()
            return connection.execute(query).mappings().all() if there else None

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
