"""Carries the events of sessions between replicas through Redis or Valkey; it never passes over what was lost.

One script numbers an event, keeps it in a stream and publishes it. What is published arrives at once; the stream is
the truth from which a replica that missed something takes it, and a client that comes back too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta
from prometheus_client import Counter, Gauge

from openclaw_gateway.api import (
    EVENTS_LOST,
    Duration,
    Event,
    Fact,
    Feed,
    Host,
    PluginConfig,
    Redis,
    Size,
    StoreUnavailable,
    hookimpl,
    needs,
)
from openclaw_plugins.events.redis_log import Listener, Log, Names, names, numbered

_PUBLISH = files(__package__).joinpath("redis_publish.lua").read_text()
_LOOK = files(__package__).joinpath("redis_look.lua").read_text()

_Key = tuple[str, str]

_encode = msgspec.json.Encoder().encode
#: how often what could not be done is tried again
_AGAIN = 0.5
#: logs that are looked at side by side
_SIDE_BY_SIDE = 50
#: most sessions that are remembered because an event of theirs could not be published
_MOST_OWED = 100_000


class RedisEvents:
    """The event bus of all replicas that use one store."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.events]`"""

        redis: Annotated[str, needs(Redis), Meta(description="Id of the plugin that holds the connection.")] = "redis"
        keep: Annotated[int, Meta(ge=0, description="Most events of one session that are kept for replay.")] = 512
        keep_bytes: Annotated[Size, Meta(description="Most bytes of one session's events that are kept.")] = Size(
            1_000_000
        )
        keep_for: Annotated[
            Duration, Meta(description="How long events are kept after the last one, or the last listener.")
        ] = Duration(300)

    shared: ClassVar[bool] = True

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._redis = host.get(config.redis, Redis)
        self._logger = host.logger
        self._feed: Feed | None = None
        self._logs: dict[_Key, Log] = {}
        self._by_channel: dict[str, Log] = {}
        #: sessions one of whose events could not be published: their listeners will be told
        self._owed: dict[_Key, None] = {}
        #: logs that could not be brought up to date
        self._behind: dict[Log, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._side_by_side = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._restores = 0
        self._failing = False
        self._failures = host.metric(Counter, "events_failed", "Events of sessions that could not be published")
        self._gaps = host.metric(Counter, "events_lost", "Times a session's listeners were told that events were lost")
        heard = host.metric(
            Gauge, "events_sessions", "Sessions whose events this process listens to", multiprocess_mode="sum"
        )
        heard.set_function(lambda: float(len(self._logs)))

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._redis.feed(self._received, self._restored) as feed:
            self._feed = feed
            keeping = asyncio.create_task(self._keep())
            try:
                yield
            finally:
                self._feed = None
                tasks = {keeping, *self._tasks}
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def publish(self, organization: str, session_id: str, body: Mapping[str, Any]) -> int:
        key = (organization, session_id)
        try:
            if key in self._owed:
                await self._publish(key, EVENTS_LOST, b"")
                self._owed.pop(key, None)
            seq = await self._publish(key, body["type"], _encode(body))
        except StoreUnavailable as error:
            self._failures.inc()
            if not self._failing:
                self._failing = True
                self._logger.error("events cannot be published", extra={"fields": {"reason": str(error)}})
            if key in self._owed or len(self._owed) < _MOST_OWED:
                self._owed[key] = None
            raise
        if self._failing:
            self._failing = False
            self._logger.warning("events are published again")
        return seq

    async def subscribe(self, organization: str, session_id: str, deliver: Callable[[Event], None]) -> Listener:
        key = (organization, session_id)
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = Log(names(self._redis.prefix, key))
            self._by_channel[log.names.channel] = log
        listener = Listener(self, key, log, deliver)
        log.listeners[listener] = None
        restores = self._restores
        try:
            if self._feed is None:
                raise StoreUnavailable("events", "not open")
            await self._feed.add(log.names.channel)
            head, _ = await self.look(log, None)
        except BaseException:
            listener.close()
            raise
        if log.last is None:
            log.last = head
        listener.begin(head)
        if log.seen > log.last or restores != self._restores:
            self._catch_up_soon(log)
        return listener

    async def look(self, log: Log, after: int | None) -> tuple[int, list[tuple[int, str, bytes]]]:
        """Return the head of a log, and its entries after a number. Raises StoreUnavailable."""
        arguments = (self._ttl, max(log.last or 0, log.seen), "" if after is None else after)
        reply = await self._redis.run(self._redis.prepare(_LOOK, (log.names.head, log.names.log), arguments))
        head, entries = reply
        return head, [(int(id.partition(b"-")[0]), kept[1].decode(), kept[3]) for id, kept in entries]

    def leave(self, key: _Key, log: Log) -> None:
        """Hear a session no more, when nobody listens."""
        if not log.listeners and self._logs.get(key) is log:
            del self._logs[key]
            del self._by_channel[log.names.channel]
            self._behind.pop(log, None)
            if self._feed is not None:
                self._feed.remove(log.names.channel)

    # --- the store ------------------------------------------------------------------------------

    @property
    def _ttl(self) -> int:
        return max(1, round(self._config.keep_for * 1000))

    async def _publish(self, key: _Key, type: str, body: bytes) -> int:
        log = self._logs.get(key)
        at: Names = log.names if log is not None else names(self._redis.prefix, key)
        least = max(log.last or 0, log.seen) if log is not None else 0
        config = self._config
        arguments = (at.channel, self._ttl, config.keep, int(config.keep_bytes), least, type, body)
        seq: int = await self._redis.run(self._redis.prepare(_PUBLISH, (at.head, at.log), arguments))
        return seq

    def _received(self, channel: str, data: bytes) -> None:
        log = self._by_channel.get(channel)
        if log is None:
            return
        shown, type, body = data.split(b"\n", 2)
        seq = int(shown)
        log.seen = max(log.seen, seq)
        if log.last is None or log.catching or seq <= log.last:
            return
        if seq == log.last + 1:
            self._deliver(log, seq, type.decode(), body)
        else:
            self._catch_up_soon(log)

    def _restored(self) -> None:
        self._restores += 1
        for log in self._logs.values():
            if log.last is not None:
                self._catch_up_soon(log)

    # --- delivering -----------------------------------------------------------------------------

    def _deliver(self, log: Log, seq: int, type: str, body: bytes) -> None:
        log.last = seq
        if type == EVENTS_LOST:
            self._gaps.inc()
        event = Event(seq, type, numbered(body, seq))
        for listener in tuple(log.listeners):
            try:
                listener.take(event)
            except Exception as error:
                self._logger.error("a listener failed to take an event", exc_info=error)

    def _catch_up_soon(self, log: Log) -> None:
        if not log.catching:
            log.catching = True
            task = asyncio.create_task(self._catch_up(log))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, log: Log) -> None:
        """Deliver from the stream what was missed; say so where it is not whole."""
        self._behind.pop(log, None)
        try:
            async with self._side_by_side:
                while log.listeners:
                    assert log.last is not None
                    head, entries = await self.look(log, log.last)
                    for seq, type, body in entries:
                        if seq > log.last + 1:
                            self._deliver(log, seq - 1, EVENTS_LOST, b"")
                        self._deliver(log, seq, type, body)
                    if head > log.last:
                        self._deliver(log, head, EVENTS_LOST, b"")
                    if log.seen <= log.last:
                        break
        except StoreUnavailable:
            self._behind[log] = None
        finally:
            log.catching = False

    async def _keep(self) -> None:
        """Try again what failed, and keep the logs alive to which somebody listens."""
        loop = asyncio.get_running_loop()
        every = self._config.keep_for / 3
        due = loop.time() + every
        while True:
            await asyncio.sleep(min(_AGAIN, every))
            for log in tuple(self._behind):
                self._catch_up_soon(log)
            await self._tell_of_lost()
            if loop.time() >= due:
                due = loop.time() + every
                for log in tuple(self._logs.values()):
                    if log.last is not None:
                        self._catch_up_soon(log)

    async def _tell_of_lost(self) -> None:
        while self._owed and not self._redis.degraded:
            key = next(iter(self._owed))
            try:
                await self._publish(key, EVENTS_LOST, b"")
            except StoreUnavailable:
                return
            self._owed.pop(key, None)
