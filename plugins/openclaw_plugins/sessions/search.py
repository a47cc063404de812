"""Finds messages by their words: full text on PostgreSQL, a comparison of each word on SQLite.

It looks at one session, or at the latest messages of one user's living sessions, and never past the organisation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, String, and_, cast, func, literal_column, or_, select

from openclaw_gateway.api import Database, Message
from openclaw_plugins.sessions.lookup import Lookup
from openclaw_plugins.sessions.rows import alive, belonging, message, parsed
from openclaw_plugins.sessions.tables import messages, sessions

_WORDS = 20
#: of all the sessions of a user, how many of the latest messages are looked at
_LATEST = 20_000


class Search:
    """Searches for one store."""

    def __init__(self, database: Database, lookup: Lookup) -> None:
        self._database = database
        self._lookup = lookup

    async def find(
        self, organization: str, *, text: str, session_id: str | None, user: str | None, limit: int
    ) -> Sequence[Message]:
        """Return the messages that hold every word, best first. Raises Refused where the session is not there."""
        words = re.findall(r"\w+", text)[:_WORDS]
        full_text = self._database.dialect == "postgresql"
        if session_id is not None:
            id = parsed(session_id)
            where = and_(*belonging(organization, id))
        else:
            mine = and_(sessions.c.organization_id == organization, sessions.c.user_id == (user or ""), alive())
            latest = (
                select(messages.c.message_id)
                .join(sessions, sessions.c.session_id == messages.c.session_id)
                .where(mine, messages.c.organization_id == organization)
                .order_by(messages.c.timestamp.desc())
                .limit(_LATEST)
            )
            where = and_(messages.c.organization_id == organization, messages.c.message_id.in_(latest))
        query = select(messages).where(where, *(_matching(words, full_text)))
        if full_text and words:
            query = query.order_by(func.ts_rank(_vector(), _asked(words)).desc())
        query = query.order_by(messages.c.timestamp.desc(), messages.c.seq.desc()).limit(limit)
        if not words:
            query = query.limit(0)
        if session_id is not None:
            rows: Sequence[Any] = await self._lookup.of_session(organization, id, query)
        else:
            async with self._database.transaction(
                organization, operation="select", table="openclaw_messages"
            ) as reader:
                rows = (await reader.execute(query)).mappings().all()
        return [message(row) for row in rows]


def _matching(words: Sequence[str], full_text: bool) -> list[ColumnElement[bool]]:
    if full_text:
        return [_vector().op("@@")(_asked(words))] if words else []
    said = cast(messages.c.content.op("->>")("$"), String)
    # SQLite lowers ASCII alone: other letters are found as they are written.
    return [or_(func.instr(func.lower(said), word.lower()) > 0, func.instr(said, word) > 0) for word in words]


def _vector() -> ColumnElement[Any]:
    # `simple` knows no language: it finds what was written, in any.
    return func.to_tsvector(literal_column("'simple'::regconfig"), messages.c.content.op("#>>")(literal_column("'{}'")))


def _asked(words: Sequence[str]) -> ColumnElement[Any]:
    return func.plainto_tsquery(literal_column("'simple'::regconfig"), " ".join(words))
