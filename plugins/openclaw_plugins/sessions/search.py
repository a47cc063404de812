"""Finds messages by their words: full text on PostgreSQL, and FTS5 on SQLite.

It looks at one session, or at the latest messages of one user's living sessions, and never past the organisation.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, and_, func, literal_column, select, table

from openclaw_gateway.api import Database, Message
from openclaw_plugins.sessions.lookup import Lookup
from openclaw_plugins.sessions.rows import alive, belonging, message, parsed
from openclaw_plugins.sessions.tables import messages, sessions

_WORDS = 20
#: searches of a process at the same time
_AT_ONCE = 2
#: of all the sessions of a user, how many of the latest messages are looked at
_LATEST = 20_000


class Search:
    """Searches for one store."""

    def __init__(self, database: Database, lookup: Lookup) -> None:
        self._database = database
        self._lookup = lookup
        #: a search is work, and whoever reads otherwise has the rest of the connections
        self._few = asyncio.Semaphore(_AT_ONCE)

    async def find(
        self, organization: str, *, text: str, session_id: str | None, user: str | None, limit: int
    ) -> Sequence[Message]:
        """Return the messages that hold every word, best first. Raises Refused where the session is not there."""
        words = re.findall(r"[^\W_]+", text)[:_WORDS]
        if session_id is not None:
            id = parsed(session_id)
            where = and_(*belonging(organization, id))
            place = uuid.UUID(id).hex
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
            place = f"o{organization.encode().hex()}"
        query = select(messages).limit(0)
        if words:
            query = _whole(self._best(where, words, place).limit(limit).subquery())
        async with self._few:
            return await self._read(organization, id if session_id is not None else None, query)

    def _best(self, where: ColumnElement[bool], words: Sequence[str], place: str) -> Select[Any]:
        """Select the keys of the messages that hold the words, with a rank, the lower the better."""
        key = messages.c.message_id, messages.c.timestamp
        if self._database.dialect == "postgresql":
            rank = (-func.ts_rank(_vector(), _asked(words))).label("rank")
            found = select(*key, rank).where(where, _vector().op("@@")(_asked(words)))
        else:
            held = _found(words, place)
            found = select(*key, held.c.rank).join(held, held.c.message_id == messages.c.message_id).where(where)
        return found.order_by("rank", messages.c.timestamp.desc(), messages.c.seq.desc())

    async def _read(self, organization: str, id: str | None, query: Select[Any]) -> Sequence[Message]:
        if id is not None:
            rows: Sequence[Any] = await self._lookup.of_session(organization, id, query)
        else:
            async with self._database.transaction(
                organization, operation="select", table="openclaw_messages"
            ) as reader:
                rows = (await reader.execute(query)).mappings().all()
        return [message(row) for row in rows]


def _whole(best: Subquery) -> Select[Any]:
    """Read what was found: only now, for messages may be long, and many of them hold a word."""
    same = and_(messages.c.message_id == best.c.message_id, messages.c.timestamp == best.c.timestamp)
    return select(messages).join(best, same).order_by(best.c.rank, messages.c.timestamp.desc(), messages.c.seq.desc())


def _found(words: Sequence[str], place: str) -> Subquery:
    """What SQLite's index holds of these words at a place: the message, and how well it fits, the lower the better."""
    phrases = " ".join(f'"{word}"' for word in words)
    asked = f"said : ({phrases}) AND place : {place}"
    return (
        select(
            func.substr(literal_column("place"), 1, 32).label("message_id"),
            literal_column("bm25(openclaw_message_words, 1.0, 0.0)").label("rank"),
        )
        .select_from(table("openclaw_message_words"))
        .where(literal_column("openclaw_message_words").op("MATCH")(asked))
        .subquery()
    )


def _vector() -> ColumnElement[Any]:
    # `simple` knows no language: it finds what was written, in any.
    return func.to_tsvector(literal_column("'simple'::regconfig"), messages.c.content.op("#>>")(literal_column("'{}'")))


def _asked(words: Sequence[str]) -> ColumnElement[Any]:
    return func.plainto_tsquery(literal_column("'simple'::regconfig"), " ".join(words))
