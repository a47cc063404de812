"""Carries the events of sessions within one process; it never pretends to reach another one.

Each session has a log of its latest events, bounded by count, bytes and age, from which a client that comes back
gets what it missed. What is not in the log any more is never passed over in silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Duration, Event, Fact, Host, PluginConfig, Size, hookimpl

_Key = tuple[str, str]

_encode = msgspec.json.Encoder().encode
#: how many logs one publication looks at to find forgotten ones
_LOOKS = 2


class MemoryEvents:
    """The event bus of one replica. Numbering, keeping and delivering happen without an await between them."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.events]`"""

        keep: Annotated[int, Meta(ge=0, description="Most events of one session that are kept for replay.")] = 512
        keep_bytes: Annotated[Size, Meta(description="Most bytes of one session's events that are kept.")] = Size(
            1_000_000
        )
        keep_bytes_in_all: Annotated[
            Size, Meta(description="Most bytes of events that are kept; sessions at rest longest lose theirs first.")
        ] = Size(64_000_000)
        keep_for: Annotated[
            Duration, Meta(description="How long events are kept after the last one, or the last listener.")
        ] = Duration(300)
        max_sessions: Annotated[
            int, Meta(ge=1, description="Most sessions whose events are kept; the ones at rest longest go first.")
        ] = 10_000

    shared: ClassVar[bool] = False

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._clock = host.clock
        self._logger = host.logger
        self._kept = _Kept()

    @hookimpl
    def inherit(self, previous: MemoryEvents) -> None:
        """Share the logs: sockets that the old gateway still serves hear what is said through the new one."""
        self._kept = previous._kept

    def __len__(self) -> int:
        """How many sessions have a log."""
        return len(self._kept.logs)

    async def publish(self, organization: str, session_id: str, body: Mapping[str, Any]) -> int:
        log = self._log((organization, session_id))
        log.head += 1
        event = Event(log.head, body["type"], _encode({**body, "seq": log.head}))
        self._keep(log, event)
        for listener in tuple(log.listeners):
            try:
                listener.deliver(event)
            except Exception as error:
                self._logger.error("a listener failed to take an event", exc_info=error)
        self._forget()
        return event.seq

    async def subscribe(self, organization: str, session_id: str, deliver: Callable[[Event], None]) -> _Listener:
        log = self._log((organization, session_id))
        listener = _Listener(self, log, deliver)
        log.listeners[listener] = None
        self._forget()
        return listener

    def _log(self, key: _Key) -> _Log:
        log = self._kept.logs.pop(key, None)
        if log is None:
            # Milliseconds since the epoch: a log that starts anew never repeats a number that a client has seen,
            # neither after it was dropped nor after a restart.
            log = _Log(max(int(self._clock.now() * 1000), self._kept.floor))
        self._kept.logs[key] = log
        log.used = self._clock.monotonic()
        return log

    def _keep(self, log: _Log, event: Event) -> None:
        if log.events is None:
            log.events = deque()
        log.events.append(event)
        self._count(log, len(event.body))
        while log.events and (len(log.events) > self._config.keep or log.bytes > self._config.keep_bytes):
            self._count(log, -len(log.events.popleft().body))
        while self._kept.bytes > self._config.keep_bytes_in_all:
            key, other = next(iter(self._kept.logs.items()))
            other.events = None
            self._count(other, -other.bytes)
            self._kept.logs[key] = self._kept.logs.pop(key)  # not met again before all others

    def _count(self, log: _Log, bytes: int) -> None:
        log.bytes += bytes
        self._kept.bytes += bytes

    def _forget(self) -> None:
        """Drop logs that nobody listens to and that are old, or too many; each call looks at a few."""
        now = self._clock.monotonic()
        for _ in range(_LOOKS):
            key = next(iter(self._kept.logs))
            log = self._kept.logs[key]
            old = now - log.used >= self._config.keep_for
            if not log.listeners and (old or len(self._kept.logs) > self._config.max_sessions):
                self._kept.floor = max(self._kept.floor, log.head)
                self._kept.bytes -= log.bytes
                del self._kept.logs[key]
                if not self._kept.logs:
                    return
            elif old:
                self._kept.logs[key] = self._kept.logs.pop(key)
                log.used = now  # listened to: its rest has not begun
            else:
                return

    def _left(self, log: _Log) -> None:
        log.used = self._clock.monotonic()


class _Kept:
    """All that the bus keeps; after a reload two instances share it."""

    __slots__ = ("bytes", "floor", "logs")

    def __init__(self) -> None:
        #: in the order of their last use
        self.logs: dict[_Key, _Log] = {}
        #: past every seq of every log that was dropped
        self.floor = 0
        self.bytes = 0


class _Log:
    """The latest events of one session, and who listens."""

    __slots__ = ("bytes", "events", "head", "listeners", "used")

    def __init__(self, head: int) -> None:
        #: the last seq that was given; what came before the log began is not known here
        self.head = head
        #: None until something is said: an empty deque takes 600 bytes, and most sessions rest
        self.events: deque[Event] | None = None
        self.bytes = 0
        self.used = 0.0
        self.listeners: dict[_Listener, None] = {}


class _Listener:
    """One subscription."""

    __slots__ = ("_bus", "_log", "deliver", "head")

    def __init__(self, bus: MemoryEvents, log: _Log, deliver: Callable[[Event], None]) -> None:
        self._bus = bus
        self._log = log
        self.deliver = deliver
        self.head = log.head

    async def replay(self, after: int) -> Sequence[Event] | None:
        """Return what came after `after` until this subscription began; None where that is not whole."""
        log = self._log
        if after > log.head:
            return None
        events = log.events or ()
        oldest = events[0].seq if events else log.head + 1
        if after + 1 < oldest and after < self.head:
            return None
        return [event for event in events if after < event.seq <= self.head]

    def close(self) -> None:
        if self in self._log.listeners:
            del self._log.listeners[self]
            self._bus._left(self._log)
