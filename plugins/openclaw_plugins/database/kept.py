"""Connections that are out of their pool and in nobody's hands, for whoever comes next.

To take a connection from SQLAlchemy's pool, and to give it back, costs a request more than what it asks there. So one
that has done its work stays here for as long as nobody waits for the pool to have it back.
"""

from __future__ import annotations

from types import TracebackType

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool


class Kept:
    """The connections of one engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._free: list[AsyncConnection] = []
        #: who waits for the pool
        self._waiting = 0
        self._closed = False

    def used(self) -> int:
        """How many connections are in somebody's hands."""
        pool = self._engine.sync_engine.pool
        assert isinstance(pool, QueuePool)
        return pool.checkedout() - len(self._free)

    def lent(self) -> Lent:
        """Enter it for a connection; leave it with the work done and no transaction open.

        After an error the connection goes back to the pool, which sees to what was left open. Raises TimeoutError of
        SQLAlchemy's where none is free in time.
        """
        return Lent(self)

    async def take(self) -> AsyncConnection:
        if self._free:
            return self._free.pop()
        self._waiting += 1
        try:
            return await self._engine.connect()
        finally:
            self._waiting -= 1

    async def give(self, connection: AsyncConnection, *, sound: bool) -> None:
        if sound and not self._waiting and not self._closed and not connection.in_transaction():
            self._free.append(connection)
        else:
            await connection.__aexit__(None, None, None)  # as `close`, which could be cancelled half-way

    async def close(self) -> None:
        """Give all of them back to the pool, and what is still in somebody's hands once it comes."""
        self._closed = True
        while self._free:
            await self._free.pop().close()


class Lent:
    """One connection in somebody's hands."""

    __slots__ = ("_connection", "_kept")

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def __aenter__(self) -> AsyncConnection:
        self._connection = await self._kept.take()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kept.give(self._connection, sound=error is None)
