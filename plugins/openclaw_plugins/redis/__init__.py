"""The connection to Redis or Valkey that other plugins share, in one server, behind Sentinels or in a cluster.

It bounds every call in time, knows when not to ask, and never sends again what may have been done. What a failure
means is for the plugin that asked to say.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Annotated, Any, ClassVar

import hiredis
from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import (
    Duration,
    Fact,
    HealthCheck,
    Host,
    PluginConfig,
    Prepared,
    Secret,
    Spread,
    StartFailed,
    StoreUnavailable,
    end_span,
    hookimpl,
    start_span,
    traced,
)
from openclaw_plugins.redis.feed import PubSub
from openclaw_plugins.redis.line import Line, Settings
from openclaw_plugins.redis.location import location
from openclaw_plugins.redis.nodes import Nodes, anywhere, nodes_at, slot_of
from openclaw_plugins.redis.wire import pack

_ASKING = pack("ASKING")
#: how often a call follows replies that say that another node has the key
_REDIRECTS = 3


class RedisConnection:
    """One multiplexed connection a node: calls of one turn of the event loop travel in one write."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        url: Annotated[
            Secret,
            Meta(
                description="redis://[user:password@]host:port/0, rediss:// for TLS, unix:///path, "
                "redis+sentinel://host:port,host:port/primary-name or redis+cluster://host:port,host:port."
            ),
        ]
        timeout: Annotated[
            Duration, Meta(description="For one call, and for one attempt to connect. A slower node is a failed one.")
        ] = Duration(0.1)
        max_in_flight: Annotated[
            int,
            Meta(ge=1, le=100_000, description="Most calls under way to one node; the next is refused with 503."),
        ] = 2_000
        required: Annotated[
            bool, Meta(description="Refuse to start while the store does not answer. By default it may come later.")
        ] = False
        prefix: Annotated[
            str, Meta(pattern="^[A-Za-z0-9:_.-]{0,32}$", description="What every key of this gateway begins with.")
        ] = "openclaw:"
        ca: Annotated[
            str | None,
            Meta(description="For TLS: PEM file of the authority, relative to this file; else the system's."),
        ] = None
        sentinel_password: Annotated[
            Secret | None, Meta(description="Password of the Sentinels, where it is not that of the store.")
        ] = None

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._where = location(config.url.reveal())
        self._nodes: Nodes | None = None
        self._duration = host.metric(
            Spread,
            "redis_command_duration_seconds",
            "From the call to its reply or failure",
            ("command",),
            buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
        )
        self._errors = host.metric(Counter, "redis_errors", "Calls that failed", ("command", "error_type"))
        self._observers: dict[str, Any] = {}
        self._settings = Settings(
            store=host.id,
            username=self._where.username,
            password=self._where.password,
            database=self._where.database,
            tls=self._tls() if self._where.tls else None,
            prefix=config.prefix,
            timeout=float(config.timeout),
            max_in_flight=config.max_in_flight,
        )

    @property
    def timeout(self) -> float:
        return float(self._config.timeout)

    @property
    def prefix(self) -> str:
        return self._config.prefix

    @property
    def degraded(self) -> bool:
        return self._nodes is None or any(not line.breaker.closed for line in self._nodes.lines())

    def prepare(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Prepared:
        return ScriptCall(script, keys, arguments)

    def run(self, prepared: Prepared) -> Coroutine[Any, Any, Any]:
        assert isinstance(prepared, ScriptCall)
        return self._traced("EVALSHA", self._run(prepared)) if traced() else self._run(prepared)

    async def _run(self, prepared: ScriptCall) -> Any:
        line = self._open_nodes().holding(prepared.slot)
        reply = await line.send(prepared.packed, "evalsha")
        if type(reply) is hiredis.ReplyError:
            if str(reply).startswith("NOSCRIPT"):
                # The node has lost the script (a flush, a failover) and has done nothing: send the whole of it, once.
                reply = await line.send(prepared.whole(), "eval")
            if type(reply) is hiredis.ReplyError:
                reply = await self._follow(reply, prepared.whole(), "eval")
        return reply

    def call(self, key: str | None, *command: str | bytes | int) -> Coroutine[Any, Any, Any]:
        work = self._call(key, command)
        return self._traced(str(command[0]).upper(), work) if traced() else work

    async def _traced(self, operation: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Do it as a span of the exchange's trace; keys and values are nobody's to see there."""
        span = start_span(operation, {"db.system.name": "redis", "db.operation.name": operation})
        failed = None
        try:
            return await work
        except StoreUnavailable as error:
            failed = type(error).__name__
            raise
        finally:
            end_span(span, failed)

    async def _call(self, key: str | None, command: Sequence[str | bytes | int]) -> Any:
        packed, name = pack(*command), str(command[0]).lower()
        reply = await self._open_nodes().holding(slot_of(key)).send(packed, name)
        return await self._follow(reply, packed, name) if type(reply) is hiredis.ReplyError else reply

    @asynccontextmanager
    async def feed(self, received: Callable[[str, bytes], None], restored: Callable[[], None]) -> AsyncIterator[PubSub]:
        locate = anywhere(self._where, timeout=self.timeout, sentinel_password=self._sentinel_password)
        feed = PubSub(locate, self._settings, self._failed, received, restored)
        feed.start()
        try:
            yield feed
        finally:
            await feed.close()

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._nodes = nodes_at(
            self._where,
            partial(Line, settings=self._settings, observe=self._observe, failed=self._failed, changed=self._changed),
            timeout=self.timeout,
            sentinel_password=self._sentinel_password,
        )
        try:
            try:
                await self.call(None, "PING")
            except StoreUnavailable as error:
                if self._config.required:
                    raise StartFailed(f"the store at {self._where.shown} does not answer: {error}") from error
                self._host.logger.warning("the store does not answer yet", extra={"fields": self._fields(str(error))})
            yield
        finally:
            nodes, self._nodes = self._nodes, None
            await nodes.close()

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        return [HealthCheck(self._host.id, self._probe)]

    @hookimpl
    def notices(self) -> Sequence[str]:
        local = {"localhost", "127.0.0.1", "::1"}
        if self._where.tls or all(host in local for host, _ in self._where.hosts):
            return []
        return [
            f"the store at {self._where.shown} is reached without TLS: use rediss:// on a network that others share"
        ]

    @property
    def _sentinel_password(self) -> str | None:
        password = self._config.sentinel_password
        return password.reveal() if password is not None else None

    def _open_nodes(self) -> Nodes:
        if self._nodes is None:
            raise StoreUnavailable(self._host.id, "not open")
        return self._nodes

    async def _follow(self, reply: Any, packed: bytes, name: str) -> Any:
        """Ask where an error reply points to; it says that nothing was done."""
        for _ in range(_REDIRECTS):
            kind = str(reply).split(" ", 1)[0]
            line = self._open_nodes().moved(str(reply)) if kind in ("MOVED", "ASK") else None
            if line is None:
                raise StoreUnavailable(self._host.id, f"answered {name} with {kind}")
            if kind == "ASK":
                line.send(_ASKING, "asking")
            reply = await line.send(packed, name)
            if type(reply) is not hiredis.ReplyError:
                return reply
        raise StoreUnavailable(self._host.id, f"{name} was sent from node to node")

    async def _probe(self) -> Mapping[str, Any]:
        await self.call(None, "PING")
        if self.degraded:
            raise StoreUnavailable(self._host.id, "a node does not answer")
        return {"nodes": len(self._open_nodes().lines())}

    def _tls(self) -> ssl.SSLContext:
        ca = self._config.ca
        try:
            return ssl.create_default_context(cafile=self._host.config_dir / ca if ca else None)
        except OSError as error:
            raise ValueError(f"the file of the authority {ca} cannot be read: {error.strerror}") from None

    def _observe(self, command: str, seconds: float) -> None:
        observe = self._observers.get(command)
        if observe is None:
            observe = self._observers[command] = self._duration.labels(command).observe
        observe(seconds)

    def _failed(self, command: str, kind: str) -> None:
        self._errors.labels(command, kind).inc()

    def _changed(self, line: Line, closed: bool, why: str) -> None:
        if closed:
            self._host.logger.warning("the store answers again", extra={"fields": self._fields()})
        else:
            self._host.logger.error("the store does not answer", extra={"fields": self._fields(why)})
        if self._nodes is not None:
            asyncio.get_running_loop().call_soon(self._nodes.turned, line)

    def _fields(self, why: str | None = None) -> dict[str, Any]:
        return {"store": self._host.id, "at": self._where.shown, **({"reason": why} if why else {})}


class ScriptCall:
    """One call of a script, packed for the node that has it and, when asked for, for one that has not."""

    __slots__ = ("_arguments", "_keys", "_script", "packed", "slot")

    def __init__(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> None:
        self._script = script
        self._keys = keys
        self._arguments = arguments
        self.slot = slot_of(keys[0])
        self.packed = pack("EVALSHA", _sha(script), len(keys), *keys, *arguments)

    def whole(self) -> bytes:
        return pack("EVAL", self._script, len(self._keys), *self._keys, *self._arguments)


@lru_cache(maxsize=64)
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
