"""Where tickets wait to be used: in this process, or in Redis for all replicas. Each is taken once, by its hash."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import msgspec

from openclaw_gateway.api import Clock, Principal, Redis


class OpenTicket(msgspec.Struct, frozen=True):
    """What a ticket is good for."""

    session: str
    principal: Principal


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OpenTicket).decode


class OpenTickets(Protocol):
    """Tickets by their hash."""

    async def put(self, hash: str, ticket: OpenTicket) -> bool:
        """Keep it for its time; False where there is no room. Raises StoreUnavailable."""
        ...

    async def take(self, hash: str) -> OpenTicket | None:
        """Return it once; None where it is unknown, used or expired. Raises StoreUnavailable."""
        ...


class InMemory:
    """The tickets of one process."""

    def __init__(self, clock: Clock, ttl: float, max_open: int) -> None:
        self._clock = clock
        self._ttl = ttl
        self._max_open = max_open
        #: until when, by hash, oldest first
        self._open: OrderedDict[str, tuple[float, OpenTicket]] = OrderedDict()

    async def put(self, hash: str, ticket: OpenTicket) -> bool:
        now = self._clock.monotonic()
        while self._open and next(iter(self._open.values()))[0] <= now:
            self._open.popitem(last=False)
        if len(self._open) >= self._max_open:
            return False
        self._open[hash] = (now + self._ttl, ticket)
        return True

    async def take(self, hash: str) -> OpenTicket | None:
        until, ticket = self._open.pop(hash, (0.0, None))
        return ticket if until > self._clock.monotonic() else None


class InRedis:
    """The tickets of all replicas. The store's memory and the tiers' rates bound how many there are."""

    def __init__(self, redis: Redis, ttl: float) -> None:
        self._redis = redis
        self._ttl = max(1, round(ttl * 1000))

    async def put(self, hash: str, ticket: OpenTicket) -> bool:
        key = self._key(hash)
        await self._redis.call(key, "SET", key, _encode(ticket), "PX", self._ttl)
        return True

    async def take(self, hash: str) -> OpenTicket | None:
        key = self._key(hash)
        kept = await self._redis.call(key, "GETDEL", key)
        return _decode(kept) if kept is not None else None

    def _key(self, hash: str) -> str:
        return f"{self._redis.prefix}ticket:{hash}"
