"""Four replicas ask one store, in adverse and in random schedules: no window holds more than its limit.

What the store decides with is the arithmetic of the counters in memory; the script in Valkey gives the same answers,
which the contract of the counters proves. Here is what neither of them has: an exact log, and a great many decisions.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from openclaw_gateway.api import Limit
from openclaw_plugins.counters.window import RATES

from .watch import SEED, Recorder, counts, say

REPLICAS = 4
#: decisions of one schedule
CALLS = 1_000


def schedule(rng: random.Random, window: int) -> list[int]:
    """When the calls of all replicas arrive at the store, in its milliseconds: late, early, in bursts, at edges."""
    times = []
    for _ in range(REPLICAS):
        kind = rng.randrange(4)
        at = rng.randrange(window)
        for _ in range(CALLS // REPLICAS):
            if kind == 0:  # steady
                at += rng.randrange(1, max(2, window // 20))
            elif kind == 1:  # bursts
                at += 0 if rng.random() < 0.95 else rng.randrange(window)
            elif kind == 2:  # at both sides of an edge of windows and of buckets
                at = (at // window + rng.randrange(2)) * window + rng.choice((-1, 0, 1, window // 60, -(window // 60)))
            else:  # waits out exactly a window, or nearly
                at += rng.choice((0, 0, 0, window - 1, window, window + 1, window // 2))
            # what the way from a replica takes, and now and then a stall of it
            times.append(
                max(0, at) + rng.choice((0, 1, 2, 5, 40)) + (rng.randrange(window) if rng.random() < 0.01 else 0)
            )
    times.sort()
    # the store's clock may go back
    for _ in range(rng.choice((0, 0, 3))):
        times[rng.randrange(CALLS)] -= rng.randrange(window)
    return times


def worst(algorithm: str, seed: str, schedules: int) -> int:
    """The most above its limit that any window of any schedule admitted."""
    above = 0
    for number in range(schedules):
        rng = random.Random(f"{seed}/{number}")
        window = rng.choice((1_000, 7_000, 60_000, 61_234, 3_600_000))
        limit = Limit(
            name="l",
            meter="m",
            kind="rate",
            limit=rng.choice((1, 7, 100, 200)),
            window=window / 1000,
            algorithm=algorithm,
        )
        tally = RATES[algorithm]("k", window)
        log: deque[tuple[int, int]] = deque()
        within = newest = 0
        for at in schedule(rng, window):
            newest = max(newest, at)  # time never goes back for who waits
            amount = 1 if rng.random() < 0.9 else rng.randrange(1, 6)
            if tally.ask(limit, amount, at):
                continue
            tally.add(limit, amount)
            log.append((newest, amount))
            within += amount
            while log[0][0] <= newest - window:
                within -= log.popleft()[1]
            above = max(above, within - limit.limit)
    return above


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("schedules", counts(200, 10_000))
def test_no_window_holds_more_than_the_limit(schedules: int, record_property: Recorder) -> None:
    above = worst("sliding", f"{SEED}/admission", schedules)
    record_property("simulated decisions", schedules * CALLS)
    record_property("worst above the limit, simulated", above)
    say(f"seed {SEED}: {schedules * CALLS} decisions")
    assert above == 0


def test_windows_side_by_side_are_found_out() -> None:
    assert worst("fixed", f"{SEED}/admission", 50) > 0
