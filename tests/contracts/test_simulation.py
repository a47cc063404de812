"""Limits hold in simulated replicas, stores and networks; any failure comes again from its seed.

SIM_SEED=7 pytest tests/contracts/test_simulation.py                  another run
SIM_ONLY=20260/17 pytest tests/contracts/test_simulation.py           the one schedule that a failure names
pytest -s -m long tests/contracts/test_simulation.py                  10,000,000 decisions; SIM_DECISIONS for others
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from openclaw_gateway.receipt import Receipt
from openclaw_plugins.counters import redis, redis_fallback, window

from . import simulation
from .simulation import Broken, Link, Sent, World

SEED = os.environ.get("SIM_SEED", "20260")
ONLY = os.environ.get("SIM_ONLY")
#: requests of one schedule
CALLS = 250


def simulate(decisions: int, seed: str = SEED) -> int:
    made = 0
    names = [ONLY] if ONLY else (f"{seed}/{number}" for number in count())
    for name in names:
        world = World(name)
        world.run(CALLS)
        made += world.decisions
        if made >= decisions:
            break
    return made


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize(
    "decisions",
    [
        pytest.param(10_000, id="short"),
        pytest.param(int(os.environ.get("SIM_DECISIONS", "10_000_000")), id="long", marks=pytest.mark.long),
    ],
)
def test_no_limit_is_broken(decisions: int) -> None:
    begun = time.perf_counter()
    made = simulate(decisions)
    rate = made / (time.perf_counter() - begun)
    sys.stdout.write(f"\nseed {SEED}: {made:,} decisions, {rate:,.0f} a second, 0 invariants broken\n")


def test_a_seed_gives_the_same_history_again() -> None:
    histories = []
    for seed in ("a", "a", "b"):
        world = World(seed)
        world.run(CALLS)
        histories.append(world.trace)
    assert histories[0] == histories[1] != histories[2]


# --- what it finds ------------------------------------------------------------------------------


def sends_again(patch: pytest.MonkeyPatch) -> None:
    async def run(self: Link, prepared: tuple[Any, ...]) -> Any:
        try:
            return await Sent(prepared)
        except simulation.StoreUnavailable:
            return await Sent(prepared)

    patch.setattr(Link, "run", run)


def forgets_a_bucket(patch: pytest.MonkeyPatch) -> None:
    made = window.Sliding.__init__

    def init(self: window.Sliding, key: object, width: int) -> None:
        made(self, key, width)
        self._back -= 1

    patch.setattr(window.Sliding, "__init__", init)


def takes_the_whole_for_its_share(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(redis_fallback, "share", lambda limit, _: limit)


def admits_when_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        redis, "turned_away", lambda takes: [redis.Balance(limit=t.limit, used=0, degraded=True) for t in takes]
    )


def settles_twice(patch: pytest.MonkeyPatch) -> None:
    correct = Receipt._correct

    async def twice(self: Receipt, amounts: Any) -> None:
        kept = list(self._estimates)
        await correct(self, amounts)
        self._estimates = kept
        await correct(self, amounts)

    patch.setattr(Receipt, "_correct", twice)


def goes_on_after_its_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(simulation, "FENCE", 3)


def keeps_the_places_of_the_dead(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(window.Holders, "hold", lambda self, holder, _: self._expiry.update({holder: 1 << 60}))


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (sends_again, "charged twice"),
        (forgets_a_bucket, "holds more than"),
        (takes_the_whole_for_its_share, "more than its share"),
        (admits_when_closed, "is closed and admits"),
        (settles_twice, "corrected twice"),
        pytest.param(goes_on_after_its_fence, "believe to have", marks=pytest.mark.long),
        (keeps_the_places_of_the_dead, "never free again"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(Broken, match=says) as found:
        simulate(100_000)
    seed = str(found.value).rpartition(" ")[2]
    with pytest.raises(Broken) as again:
        World(seed).run(CALLS)
    assert str(again.value) == str(found.value)
