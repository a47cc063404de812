"""The store of counters loses everything in the middle of a window: at most the limit is admitted once more."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from counters_kit import counting
from servers import Valkey, start_valkey

from openclaw_gateway.api import Limit, Take

from .watch import SEED, Recorder, counts

LIMIT = 80
REPLICAS = 4
CALLERS = 16


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    with start_valkey() as server:
        yield server


async def calls(counters: Any, take: Take, admitted: dict[str, int], lost: asyncio.Event, stop: asyncio.Event) -> None:
    while not stop.is_set():
        (balance,) = await counters.admit("acme", [take])
        if not balance.refused:
            admitted["local" if balance.degraded else "after" if lost.is_set() else "before"] += 1
        await asyncio.sleep(0)


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("losses", counts(3, 100))
async def test_a_store_that_dies_admits_at_most_the_limit_once_more(
    losses: int, own_valkey: Valkey, record_property: Recorder
) -> None:
    """While it is away, this process of four has its share; when it is back, it knows of nothing."""
    rng = random.Random(f"{SEED}/loss")
    most = 0
    async with counting(own_valkey.url, timeout=0.5, replicas=REPLICAS) as (counters, redis):
        for _ in range(losses):
            take = Take(Limit(name="ratelimit.r", meter="m", kind="rate", limit=LIMIT, window=3_600), uuid4().hex)
            admitted = {"before": 0, "local": 0, "after": 0}
            stop = asyncio.Event()
            lost = asyncio.Event()
            callers = [asyncio.create_task(calls(counters, take, admitted, lost, stop)) for _ in range(CALLERS)]
            await asyncio.sleep(rng.uniform(0.005, 0.06))
            own_valkey.stop(signal.SIGKILL)
            while not redis.degraded:
                await asyncio.sleep(0.005)
            lost.set()
            own_valkey.start()
            async with asyncio.timeout(15):
                while redis.degraded:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            stop.set()
            await asyncio.gather(*callers)
            assert admitted["before"] <= LIMIT
            assert admitted["after"] <= LIMIT
            assert admitted["local"] <= -(-LIMIT // REPLICAS)
            most = max(most, sum(admitted.values()))
    record_property("stores killed and started empty", losses)
    record_property("worst admitted in one window, of a limit of 80", most)
    record_property("worst allowed", f"{LIMIT} + {-(-LIMIT // REPLICAS)} + {LIMIT}")
