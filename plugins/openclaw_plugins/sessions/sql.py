"""Sessions and their messages in SQL. The organisation bounds every statement; the database's clock ends sessions.

An expired session is gone for every caller the moment its time has come, before any sweep. It never prepends or
interprets what it stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

from msgspec import Meta
from prometheus_client import Counter, Histogram
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils import uuid7

from openclaw_gateway.api import (
    Accounts,
    Database,
    Duration,
    Fact,
    GatewayError,
    Hold,
    Host,
    Message,
    NewMessage,
    Page,
    PluginConfig,
    Principal,
    Refused,
    Session,
    Size,
    bad_request,
    hookimpl,
    needs,
)
from openclaw_plugins.sessions import cursors
from openclaw_plugins.sessions.appends import Appends
from openclaw_plugins.sessions.lookup import Lookup
from openclaw_plugins.sessions.rows import belonging, bounded, clock, in_status, message, older, own, parsed, session
from openclaw_plugins.sessions.search import Search
from openclaw_plugins.sessions.sweep import Sweep
from openclaw_plugins.sessions.tables import messages as messages_table
from openclaw_plugins.sessions.tables import now
from openclaw_plugins.sessions.tables import sessions as table


class SqlSessions:
    """The store of sessions."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        database: Annotated[str, needs(Database), Meta(description="Where sessions are kept.")] = "database"
        accounts: Annotated[
            str, needs(Accounts), Meta(description="Where the charges of sessions and messages are settled.")
        ] = "accounts"
        ttl: Annotated[Duration, Meta(description="Life of a session that asks for none.")] = Duration(86_400)
        max_ttl: Annotated[Duration, Meta(description="Longest life that a client may ask for.")] = Duration(
            30 * 86_400
        )
        max_metadata: Annotated[Size, Meta(description="Largest metadata of a session, as JSON.")] = Size(64_000)
        keep_expired: Annotated[
            Duration,
            Meta(description="How long an expired session is kept, readable for nobody, before it is deleted."),
        ] = Duration(30 * 86_400)
        sweep_every: Annotated[Duration, Meta(description="How often expired sessions are marked.")] = Duration(30)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._database = host.get(config.database, Database)
        self._lookup = Lookup(self._database)
        self.search = Search(self._database, self._lookup).find
        self._accounts = host.get(config.accounts, Accounts)
        self._appends = Appends(self._database, self._accounts)
        self._storing: set[asyncio.Task[Sequence[Message]]] = set()
        self._created = host.metric(Counter, "sessions", "Sessions created", ("tier",))
        self._lifetime = host.metric(
            Histogram,
            "session_duration_seconds",
            "From creation to the end, by deletion or expiry",
            ("tier",),
            buckets=(60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86_400, 7 * 86_400, 30 * 86_400),
        )
        self._sweep = Sweep(
            self._database,
            host,
            lifetime=self._lifetime,
            every=config.sweep_every,
            keep_expired=config.keep_expired,
        )

    async def create(
        self,
        principal: Principal,
        *,
        tier: str,
        metadata: Mapping[str, Any],
        ttl: float | None,
        holds: Sequence[Hold],
    ) -> Session:
        """Store a session and commit `holds` with it; they are given back where it is not stored."""
        id = str(uuid7())
        async with self._settling(holds), self._write(principal.organization, "insert") as connection:
            bounded(metadata, self._config.max_metadata)
            created_at = await clock(connection)
            expires_at = created_at + timedelta(seconds=self._lasting(ttl))
            row = {
                "session_id": id,
                "organization_id": principal.organization,
                "user_id": principal.user,
                "tier": tier,
                "status": "active",
                "metadata": dict(metadata),
                "message_count": 0,
                "created_at": created_at,
                "updated_at": created_at,
                "expires_at": expires_at,
            }
            await connection.execute(insert(table), row)
            await self._accounts.commit(holds, transaction=connection, lives_until=expires_at, holder=id)
        self._created.labels(tier).inc()
        return session(row)

    async def get(self, organization: str, session_id: str) -> Session:
        id = parsed(session_id)
        row = await self._lookup.found(organization, id)
        if row is None:
            raise await self._lookup.missing(id)
        return session(row)

    async def list(self, organization: str, *, status: str | None, limit: int, cursor: str | None) -> Page:
        """A page of the organisation's sessions, newest first; expired ones only where they are asked for."""
        after = cursors.read(cursor, cursors.SessionsAfter) if cursor is not None else None
        if after is not None and (after.organization, after.status) != (organization, status):
            raise cursors.foreign()
        async with self._database.transaction(organization, operation="select", table="openclaw_sessions") as reader:
            query = select(table).where(table.c.organization_id == organization, in_status(status))
            if after is not None:
                query = query.where(older(after.created_at, str(after.session_id)))
            query = query.order_by(table.c.created_at.desc(), table.c.session_id.desc()).limit(limit + 1)
            rows = (await reader.execute(query)).mappings().all()
        items = [session(row, listed_as=status) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items, None)
        last = items[-1]
        place_text = cursors.written(
            cursors.SessionsAfter(organization, status, last.created_at, UUID(last.session_id))
        )
        return Page(items, place_text)

    async def update(
        self,
        organization: str,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None,
        status: str | None,
    ) -> Session:
        id = parsed(session_id)
        changes: dict[str, Any] = {}
        if metadata is not None:
            bounded(metadata, self._config.max_metadata)
            changes["metadata"] = dict(metadata)
        if status is not None:
            changes["status"] = status
        async with self._write(organization, "update") as connection:
            change = update(table).where(own(organization, id)).values(updated_at=now(), **changes).returning(table)
            row = (await connection.execute(change)).mappings().first()
        if row is None:
            raise await self._lookup.missing(id)
        return session(row)

    async def delete(self, organization: str, session_id: str) -> None:
        """Delete a session with its messages, and end the lease that it held."""
        id = parsed(session_id)
        async with self._write(organization, "delete") as connection:
            gone = delete(table).where(own(organization, id)).returning(table.c.tier, table.c.created_at, now())
            row = (await connection.execute(gone)).first()
            if row is not None:
                await self._accounts.release(organization, "sessions", id, transaction=connection)
        if row is None:
            raise await self._lookup.missing(id)
        tier, created_at, ended_at = row
        self._lifetime.labels(tier).observe((ended_at - created_at).total_seconds())

    async def append(
        self,
        organization: str,
        session_id: str,
        messages: Sequence[NewMessage],
        *,
        holds: Sequence[Hold] = (),
    ) -> Sequence[Message]:
        """Store messages and commit `holds` with them; they are given back where that fails.

        It goes on where the caller leaves: what is on its way with others is not called back.
        """
        storing = asyncio.create_task(self._stored(organization, session_id, messages, holds))
        self._storing.add(storing)
        storing.add_done_callback(self._ended)
        return await asyncio.shield(storing)

    async def messages(self, organization: str, session_id: str, *, limit: int, cursor: str | None) -> Page:
        id = parsed(session_id)
        after = cursors.read(cursor, cursors.MessagesAfter) if cursor is not None else None
        if after is not None and str(after.session_id) != id:
            raise cursors.foreign()
        query = (
            select(messages_table)
            .where(*belonging(organization, id), messages_table.c.seq > (after.seq if after else 0))
            .order_by(messages_table.c.seq)
            .limit(limit + 1)
        )
        rows = await self._lookup.of_session(organization, id, query)
        items = [message(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items, None)
        return Page(items, cursors.written(cursors.MessagesAfter(UUID(id), rows[limit - 1]["seq"])))

    async def history(
        self, organization: str, session_id: str, *, limit: int, max_bytes: int | None = None
    ) -> Sequence[Message]:
        rows = await self._lookup.last(organization, parsed(session_id), limit, max_bytes)
        return [message(row) for row in rows]

    async def expire(self) -> int:
        """Mark the sessions whose time has come, now; return how many were marked."""
        return await self._sweep.expire()

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._sweep.running():
            try:
                yield
            finally:
                while self._storing:
                    await asyncio.wait(self._storing)
                await self._appends.ended()

    def _ended(self, storing: asyncio.Task[Sequence[Message]]) -> None:
        self._storing.discard(storing)
        if not storing.cancelled():
            storing.exception()  # whoever waited has it, or has left: nobody else is to be told

    async def _stored(
        self, organization: str, session_id: str, messages: Sequence[NewMessage], holds: Sequence[Hold]
    ) -> Sequence[Message]:
        async with self._settling(holds):
            id = parsed(session_id)
            rows = await self._appends.through(organization, id, messages, holds)
            gone = await self._lookup.missing(id) if rows is None else None
        if rows is None:
            assert gone is not None
            raise gone
        return [message(row) for row in rows]

    def _write(
        self, organization: str, operation: str, name: str = "openclaw_sessions"
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        return self._database.transaction(organization, operation=operation, table=name)

    @asynccontextmanager
    async def _settling(self, holds: Sequence[Hold]) -> AsyncIterator[None]:
        """Give the holds back where the block fails: then they have charged nothing."""
        try:
            yield
        except BaseException:
            if holds:
                giving = asyncio.ensure_future(self._accounts.void(holds))
                try:
                    await asyncio.shield(giving)
                except GatewayError as error:
                    self._host.logger.warning("holds could not be given back and will expire", exc_info=error)
            raise

    def _lasting(self, ttl: float | None) -> float:
        if ttl is None:
            return self._config.ttl
        if not 0 < ttl <= self._config.max_ttl:
            limit = int(self._config.max_ttl)
            raise Refused(bad_request(f"ttl: expected over 0 and at most {limit} seconds", param="ttl"))
        return ttl
