"""Knows which node holds a key: always the one, the primary that Sentinels name, or the owner of its slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any, Protocol

from openclaw_gateway.api import StoreUnavailable
from openclaw_plugins.redis.line import Address, Line
from openclaw_plugins.redis.location import Location
from openclaw_plugins.redis.wire import pack
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError

#: least time between two readings of a cluster's map
_REST = 0.25
_SLOTS = 16384

#: makes a line: where to connect, and whether it must be a primary
MakeLine = Callable[..., Line]


class Nodes(Protocol):
    """The lines of one store."""

    def holding(self, slot: int) -> Line:
        """Return the line to the node that holds a slot."""
        ...

    def moved(self, reply: str) -> Line | None:
        """Return the line to the node that a MOVED or ASK reply names; None where there is only one node."""
        ...

    def lines(self) -> list[Line]: ...

    def turned(self, line: Line) -> None:
        """Learn that a line's node is down, or well again."""
        ...

    async def close(self) -> None: ...


def slot_of(key: str | None) -> int:
    """The slot of a key; any will do for a command without one."""
    return 0 if key is None else key_slot(key.encode())


def nodes_at(where: Location, make: MakeLine, *, timeout: float, sentinel_password: str | None) -> Nodes:
    """Return the nodes of a store; nothing is opened yet."""
    if where.kind == "cluster":
        return Cluster(where, make)
    if where.kind == "sentinel":
        return One(make(_sentinels(where, timeout, sentinel_password), primary=True))
    address: Address = where.path or where.hosts[0]
    return One(make(_at(address), primary=False))


def anywhere(where: Location, *, timeout: float, sentinel_password: str | None) -> Callable[[], Awaitable[Address]]:
    """Return what names a node on which everything that is published is heard: in a cluster any, each in turn."""
    if where.kind == "sentinel":
        return _sentinels(where, timeout, sentinel_password)
    places: Iterator[Address] = cycle([where.path] if where.path else where.hosts)

    async def locate() -> Address:
        return next(places)

    return locate


class One:
    """One node at a time holds everything."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def holding(self, slot: int) -> Line:
        return self._line

    def moved(self, reply: str) -> Line | None:
        return None

    def lines(self) -> list[Line]:
        return [self._line]

    def turned(self, line: Line) -> None:
        pass

    async def close(self) -> None:
        await self._line.close()


class Cluster:
    """Slots and their owners: learned from any node, corrected by every MOVED, read anew while a node is down."""

    def __init__(self, where: Location, make: MakeLine) -> None:
        self._make = make
        self._seeds = where.hosts
        self._lines: dict[Address, Line] = {}
        self._slots: list[Line | None] = [None] * _SLOTS
        self._reading: asyncio.Task[None] | None = None
        #: whether something has happened since the map was read
        self._unread = False

    def holding(self, slot: int) -> Line:
        line = self._slots[slot]
        if line is not None:
            return line
        self._read_soon()
        known = [line for line in self._lines.values() if line.breaker.closed]
        return known[0] if known else self._line(self._seeds[0])

    def moved(self, reply: str) -> Line | None:
        kind, slot, place = reply.split(" ")[:3]
        host, _, port = place.rpartition(":")
        line = self._line((host, int(port)))
        if kind == "MOVED":
            self._slots[int(slot)] = line
            self._read_soon()
        return line

    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def turned(self, line: Line) -> None:
        if not line.breaker.closed:
            self._read_soon()

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        for line in self._lines.values():
            await line.close()

    def _line(self, address: Address) -> Line:
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = self._make(_at(address), primary=False)
        return line

    def _read_soon(self) -> None:
        self._unread = True
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        """Read the map until every slot has an owner that answers."""
        try:
            settled = False
            while self._unread or not settled:
                self._unread = False
                settled = await self._read_once()
                await asyncio.sleep(_REST)
        finally:
            self._reading = None

    async def _read_once(self) -> bool:
        for address in dict.fromkeys([*self._lines, *self._seeds]):
            try:
                ranges = await self._line(address).send(pack("CLUSTER", "SLOTS"), "cluster")
            except StoreUnavailable:
                continue
            if isinstance(ranges, list) and ranges:
                await self._take(address, ranges)
                return all(line is not None and line.breaker.closed for line in self._slots)
        return False

    async def _take(self, asked: Address, ranges: list[Any]) -> None:
        slots: list[Line | None] = [None] * _SLOTS
        for first, last, owner, *_ in ranges:
            # A node that does not know its own name says nothing: it is the one that was asked.
            host = owner[0].decode() if owner[0] else asked[0]
            line = self._line((host, owner[1]))
            slots[first : last + 1] = [line] * (last + 1 - first)
        self._slots = slots
        owners = set(slots)
        for address, line in list(self._lines.items()):
            if line not in owners:
                del self._lines[address]
                await line.close()


def _at(address: Address) -> Callable[[], Any]:
    async def locate() -> Address:
        return address

    return locate


def _sentinels(where: Location, timeout: float, password: str | None) -> Callable[[], Any]:
    async def locate() -> Address:
        options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": Retry(NoBackoff(), 0)}
        sentinels: Any = Sentinel(  # type: ignore[no-untyped-call] # the library types only the surface
            where.hosts, sentinel_kwargs={**options, "password": password}
        )
        try:
            host, port = await sentinels.discover_master(where.name)
        except (RedisError, OSError) as error:
            raise StoreUnavailable("redis", f"no Sentinel names the primary {where.name!r}") from error
        finally:
            for sentinel in sentinels.sentinels:
                await sentinel.aclose()
        return str(host), int(port)

    return locate
