"""Counters on a Redis or Valkey, opened as a gateway opens them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Clock, Duration, Host, Secret, SystemClock
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.redis import RedisConnection


@asynccontextmanager
async def counting(
    url: str,
    *,
    prefix: str | None = None,
    clock: Clock | None = None,
    registry: CollectorRegistry | None = None,
    replicas: int = 1,
    lease_ttl: float = 30,
    **connection: Any,
) -> AsyncIterator[tuple[RedisCounters, RedisConnection]]:
    """Open both plugins; keys have a prefix of their own unless one is given."""
    instances: dict[str, Any] = {}
    registry = registry if registry is not None else CollectorRegistry()
    metrics: dict[str, Any] = {}

    def host(id: str) -> Host:
        return Host(
            id,
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=Path(),
            tiers={},
            instances=instances,
            registry=registry,
            clock=clock if clock is not None else SystemClock(),
            metrics=metrics,
        )

    if "timeout" in connection:
        connection["timeout"] = Duration(connection["timeout"])
    prefix = f"t{uuid4().hex[:12]}:" if prefix is None else prefix
    redis = RedisConnection(RedisConnection.Config(url=Secret(url), prefix=prefix, **connection), host("redis"))
    instances["redis"] = redis
    config = RedisCounters.Config(replicas=replicas, lease_ttl=Duration(lease_ttl))
    counters = instances["counters"] = RedisCounters(config, host("counters"))
    async with redis.lifespan():
        yield counters, redis
