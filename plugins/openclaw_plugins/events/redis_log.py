"""What a replica knows of one session's log in Redis, and who listens to it here; nothing of it asks the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from openclaw_gateway.api import EVENTS_LOST, Event

if TYPE_CHECKING:
    from openclaw_plugins.events.redis import RedisEvents


class Names(msgspec.Struct, frozen=True):
    """The keys of a log, on one node of a cluster, and its channel."""

    head: str
    log: str
    channel: str


def names(prefix: str, key: tuple[str, str]) -> Names:
    """Name them so that no organisation or session can collide with another's or put a brace into it."""
    text = f"{len(key[0])}\n{key[0]}\n{key[1]}".encode("utf-8", "surrogatepass")
    place = f"{prefix}{{{hashlib.blake2b(text, digest_size=16).hexdigest()}}}"
    return Names(f"{place}:head", f"{place}:log", f"{place}:live")


def numbered(body: bytes, seq: int) -> bytes:
    """Put the number into the JSON object that was written before it was known."""
    return body[:-1] + b',"seq":%d}' % seq if body else body


class Log:
    """Where this replica is in a session's log."""

    __slots__ = ("catching", "last", "listeners", "names", "seen")

    def __init__(self, names: Names) -> None:
        self.names = names
        #: the last seq that was delivered here; None until the store has said where the log stands
        self.last: int | None = None
        #: the highest seq that was heard of
        self.seen = 0
        #: whether what is missing is being read from the store
        self.catching = False
        self.listeners: dict[Listener, None] = {}


class Listener:
    """One subscription."""

    __slots__ = ("_bus", "_deliver", "_early", "_head", "_key", "_log")

    def __init__(self, bus: RedisEvents, key: tuple[str, str], log: Log, deliver: Callable[[Event], None]) -> None:
        self._bus = bus
        self._key = key
        self._log = log
        self._deliver = deliver
        self._head: int | None = None
        #: what arrived before the store had said where the subscription begins
        self._early: list[Event] = []

    @property
    def head(self) -> int:
        assert self._head is not None
        return self._head

    def begin(self, head: int) -> None:
        """Deliver what is later than this, from now on."""
        self._head = head
        early, self._early = self._early, []
        for event in early:
            self.take(event)

    def take(self, event: Event) -> None:
        if self._head is None:
            self._early.append(event)
        elif event.seq > self._head and self in self._log.listeners:
            self._deliver(event)

    async def replay(self, after: int) -> Sequence[Event] | None:
        """Return what came after `after` until this subscription began; None where that is not whole.

        Raises StoreUnavailable.
        """
        if after == self.head:
            return []
        head, entries = await self._bus.look(self._log, after)
        if after > self.head:
            # The client has heard through another replica what is still on its way to this one.
            if after > head:
                return None
            self._head = after
            return []
        events = [Event(seq, type, numbered(body, seq)) for seq, type, body in entries if seq <= self.head]
        # Numbers are given without a gap: all are there if they are as many.
        whole = len(events) == self.head - after and all(event.type != EVENTS_LOST for event in events)
        return events if whole else None

    def close(self) -> None:
        if self in self._log.listeners:
            del self._log.listeners[self]
            self._bus.leave(self._key, self._log)
