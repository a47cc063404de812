"""Event buses for tests, each opened as a gateway opens it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Clock, Duration, Event, EventBus, Host, Secret
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.events.memory import MemoryEvents
from openclaw_plugins.events.redis import RedisEvents
from openclaw_plugins.redis import RedisConnection


def memory(clock: Clock | None = None, **config: Any) -> MemoryEvents:
    return MemoryEvents(MemoryEvents.Config(**config), _host("events", {}, clock or ManualClock()))


@asynccontextmanager
async def redis(url: str, *, prefix: str | None = None, timeout: float = 0.5, **config: Any) -> AsyncIterator[Any]:
    """The bus of one replica; replicas share a prefix."""
    instances: dict[str, Any] = {}
    settings = RedisConnection.Config(
        url=Secret(url), prefix=prefix or f"t{uuid4().hex[:12]}:", timeout=Duration(timeout)
    )
    connection = instances["redis"] = RedisConnection(settings, _host("redis", instances))
    if "keep_for" in config:
        config["keep_for"] = Duration(config["keep_for"])
    bus = RedisEvents(RedisEvents.Config(**config), _host("events", instances))
    async with connection.lifespan(), bus.lifespan():
        yield bus


class Heard:
    """What one listener got."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def contents(self) -> list[str]:
        return contents(self.events)

    async def count(self, least: int, within: float = 5.0) -> list[Event]:
        """Wait until so many have arrived."""
        async with asyncio.timeout(within):
            while len(self.events) < least:
                await asyncio.sleep(0.005)
        return self.events


async def publish(bus: EventBus, *texts: str, session: str = "s", organization: str = "acme") -> list[int]:
    return [await bus.publish(organization, session, {"type": "message", "content": text}) for text in texts]


def contents(events: Sequence[Event]) -> list[str]:
    """What they say; the type of one without a body."""
    return [json.loads(event.body)["content"] if event.body else event.type for event in events]


def _host(id: str, instances: dict[str, Any], clock: Clock | None = None) -> Host:
    return Host(
        id,
        document=Document(gateway=GatewaySettings(pipeline=())),
        config_dir=Path(),
        tiers={},
        instances=instances,
        registry=CollectorRegistry(),
        clock=clock or ManualClock(),
    )
