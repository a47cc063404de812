"""A look-aside copy of sessions in Redis, in front of the store that is the truth.

It never keeps a session that was changed or deleted since it was read, never shows one to another organisation, and
holds no messages. Where Redis does not answer, the store does, behind a bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from uuid_utils import uuid7

from openclaw_gateway.api import (
    Duration,
    Fact,
    Hold,
    Host,
    Message,
    NewMessage,
    Page,
    PluginConfig,
    Principal,
    Redis,
    Session,
    SessionStore,
    StoreBusy,
    StoreUnavailable,
    hookimpl,
    needs,
)
from openclaw_plugins.sessions.rows import parsed

# A change writes a new mark beside the place of the copy. Who reads the store took the mark before he read; his copy
# is kept only where it still stands, so what was read before a change is never kept after it.
_KEEP = """
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_FORGET = """
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return redis.call('DEL', KEYS[1])
"""
_LOOK = "return {redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}"
#: a mark outlives every read of the store that could have begun before it
_MARK = 60_000
_AGAIN = 1.0


class CachedSessions:
    """A session store that answers `get` from Redis where it can."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        store: Annotated[str, needs(SessionStore), Meta(description="Where sessions are kept.")]
        redis: Annotated[str, needs(Redis), Meta(description="Where copies are kept.")] = "redis"
        ttl: Annotated[
            Duration, Meta(description="How long a copy is good at most, up to 30s: so old an answer may get.")
        ] = Duration(30)
        max_reads: Annotated[
            int, Meta(ge=1, le=1000, description="Reads of the store at once while Redis does not answer.")
        ] = 8
        max_wait: Annotated[
            Duration, Meta(description="How long one may wait for its turn then, before it gets a 503.")
        ] = Duration(1)

    def __init__(self, config: Config, host: Host) -> None:
        if not 0 < config.ttl <= 30:
            raise ValueError("ttl: expected over 0 and at most 30s")
        self._config = config
        self._host = host
        self._store = host.get(config.store, SessionStore)
        self._redis = host.get(config.redis, Redis)
        self._reading: dict[tuple[str, str], asyncio.Task[Session]] = {}
        self._again: set[asyncio.Task[None]] = set()
        #: sessions whose copy could not be forgotten → until when it might stand
        self._uncertain: dict[str, float] = {}
        self._turns = asyncio.Semaphore(config.max_reads)
        # what a store can beside its Protocol, it can here too
        if hasattr(self._store, "search"):
            self.search = self._store.search

    async def get(self, organization: str, session_id: str) -> Session:
        id = parsed(session_id)
        # Those who ask for one session at one moment share the answer.
        reading = self._reading.get((organization, id))
        if reading is None:
            reading = self._reading[organization, id] = asyncio.create_task(self._get(organization, id))
            reading.add_done_callback(lambda done: self._read(organization, id, done))
        return await asyncio.shield(reading)

    async def create(
        self,
        principal: Principal,
        *,
        tier: str,
        metadata: Mapping[str, Any],
        ttl: float | None,
        holds: Sequence[Hold],
    ) -> Session:
        return await self._store.create(principal, tier=tier, metadata=metadata, ttl=ttl, holds=holds)

    async def list(self, organization: str, *, status: str | None, limit: int, cursor: str | None) -> Page:
        return await self._store.list(organization, status=status, limit=limit, cursor=cursor)

    async def update(
        self, organization: str, session_id: str, *, metadata: Mapping[str, Any] | None, status: str | None
    ) -> Session:
        async with self._changing(organization, session_id):
            return await self._store.update(organization, session_id, metadata=metadata, status=status)

    async def delete(self, organization: str, session_id: str) -> None:
        async with self._changing(organization, session_id):
            await self._store.delete(organization, session_id)

    async def append(
        self, organization: str, session_id: str, messages: Sequence[NewMessage], *, holds: Sequence[Hold] = ()
    ) -> Sequence[Message]:
        async with self._changing(organization, session_id):
            return await self._store.append(organization, session_id, messages, holds=holds)

    async def messages(self, organization: str, session_id: str, *, limit: int, cursor: str | None) -> Page:
        return await self._store.messages(organization, session_id, limit=limit, cursor=cursor)

    async def history(
        self, organization: str, session_id: str, *, limit: int, max_bytes: int | None = None
    ) -> Sequence[Message]:
        return await self._store.history(organization, session_id, limit=limit, max_bytes=max_bytes)

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for task in self._again:
                task.cancel()
            if self._again:
                await asyncio.wait(self._again)

    async def _get(self, organization: str, id: str) -> Session:
        keys = self._keys(organization, id)
        if self._doubtful(id):
            return await self._bounded(organization, id)
        try:
            copy, mark = await self._redis.run(self._redis.prepare(_LOOK, keys, ()))
        except StoreUnavailable:
            return await self._bounded(organization, id)
        found = self._decoded(copy, organization, id)
        if found is not None:
            return found
        session = await self._store.get(organization, id)
        left = min(float(self._config.ttl), session.expires_at.timestamp() - self._host.clock.now())
        if left > 0 and not self._doubtful(id):
            arguments = (mark or b"", msgspec.json.encode(session), max(1, int(left * 1000)))
            with suppress(StoreUnavailable):
                await self._redis.run(self._redis.prepare(_KEEP, keys, arguments))
        return session

    def _decoded(self, copy: bytes | None, organization: str, id: str) -> Session | None:
        if copy is None:
            return None
        try:
            session = msgspec.json.decode(copy, type=Session)
        except msgspec.MsgspecError:
            return None
        mine = (session.organization_id, session.session_id) == (organization, id)
        return session if mine and session.expires_at.timestamp() > self._host.clock.now() else None

    async def _bounded(self, organization: str, id: str) -> Session:
        """Ask the store in the place of Redis, without letting all that Redis carried come down on it."""
        try:
            await asyncio.wait_for(self._turns.acquire(), float(self._config.max_wait))
        except TimeoutError:
            raise StoreBusy(self._host.id, "too many reads of the store") from None
        try:
            return await self._store.get(organization, id)
        finally:
            self._turns.release()

    def _read(self, organization: str, id: str, done: asyncio.Task[Session]) -> None:
        if self._reading.get((organization, id)) is done:
            del self._reading[organization, id]
        if not done.cancelled():
            done.exception()

    @asynccontextmanager
    async def _changing(self, organization: str, session_id: str) -> AsyncIterator[None]:
        """Forget the copy after the change, also where its outcome is not known, and once more a second later."""
        id = parsed(session_id)
        try:
            yield
        finally:
            # A read that began before the change answers those who asked before it, and nobody else.
            self._reading.pop((organization, id), None)
            await asyncio.shield(self._forget(organization, id))
            again = asyncio.create_task(self._forget_again(organization, id))
            self._again.add(again)
            again.add_done_callback(self._again.discard)

    async def _forget(self, organization: str, id: str) -> None:
        forgetting = self._redis.prepare(_FORGET, self._keys(organization, id), (str(uuid7()), _MARK))
        try:
            await self._redis.run(forgetting)
            self._uncertain.pop(id, None)
        except StoreUnavailable:
            self._uncertain[id] = self._host.clock.monotonic() + float(self._config.ttl)

    async def _forget_again(self, organization: str, id: str) -> None:
        await asyncio.sleep(_AGAIN)
        await self._forget(organization, id)
        while self._doubtful(id):
            await asyncio.sleep(_AGAIN)
            if self._doubtful(id) and not self._redis.degraded:
                await self._forget(organization, id)

    def _doubtful(self, id: str) -> bool:
        until = self._uncertain.get(id)
        if until is None:
            return False
        if until > self._host.clock.monotonic():
            return True
        del self._uncertain[id]
        return False

    def _keys(self, organization: str, id: str) -> tuple[str, str]:
        # One hash tag for both. An organisation's name may hold anything, so its hash stands for it.
        place = f"{self._redis.prefix}session:{{{sha256(organization.encode()).hexdigest()[:32]}:{id}}}"
        return f"{place}:copy", f"{place}:mark"
