"""Places taken by processes that are killed and paused: never more than there are, and all free after their time."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from uuid import uuid4

import pytest
from counters_kit import counting
from lease_worker import PLACES, TTL

from openclaw_gateway.api import Take

from .watch import SEED, Recorder, counts, say

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

WORKER = Path(__file__).parents[1] / "lease_worker.py"
PROCESSES = 3


def most_at_once(lines: list[str], ends: dict[str, list[float]]) -> int:
    """How many believed at one moment that they had a place. `ends` are the moments in which a process was killed."""
    spans: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for line in lines:
        parts = line.split()
        if len(parts) == 4:  # a line of who was killed may be cut
            spans[parts[0], parts[1]].append((float(parts[2]), float(parts[3])))
    moments: list[tuple[float, int]] = []
    for (name, _), said in spans.items():
        for i, (at, until) in enumerate(said):
            if not until:
                continue
            stop = min(until, said[i + 1][0]) if i + 1 < len(said) else until
            stop = min([stop, *(end for end in ends[name] if end >= at)])
            moments += [(at, 1), (stop, -1)]
    now = most = 0
    for _, change in sorted(moments):  # an end before a beginning in the same moment
        now += change
        most = max(most, now)
    return most


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("kills", counts(6, 500))
async def test_killed_and_paused_holders(
    kills: int, valkey_url: str, tmp_path: Path, record_property: Recorder
) -> None:
    rng = random.Random(f"{SEED}/leases")
    prefix, log = f"t{uuid4().hex[:12]}:", tmp_path / "log"
    ends: dict[str, list[float]] = defaultdict(list)
    running: dict[str, asyncio.subprocess.Process] = {}
    pauses = 0
    peak = 0

    async def start(name: str) -> None:
        running[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, str(WORKER), valkey_url, prefix, str(log), name)
        )

    async with counting(valkey_url, prefix=prefix, lease_ttl=TTL, timeout=5) as (counters, _):

        async def used() -> int:
            (balance,) = await counters.peek("acme", (Take(PLACES, "-", lease="?"),))
            return balance.used

        try:
            await asyncio.gather(*(start(f"p{i}") for i in range(PROCESSES)))
            async with asyncio.timeout(60):
                while await used() < PLACES.limit:
                    await asyncio.sleep(0.02)
            for number in range(kills):
                name = f"p{rng.randrange(PROCESSES)}"
                process = running[name]
                if number % 5 == 4:
                    pauses += 1
                    process.send_signal(signal.SIGSTOP)
                    await asyncio.sleep(rng.choice((0.1, TTL, 1.7 * TTL)))
                    process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGKILL)
                await process.wait()
                ends[name].append(time.monotonic())
                peak = max(peak, await used())
                await start(name)
                await asyncio.sleep(rng.uniform(0.2, 0.8))
                peak = max(peak, await used())
        finally:
            for process in running.values():
                if process.returncode is None:
                    process.kill()
                await process.wait()
        for name in running:
            ends[name].append(time.monotonic())
        begun = time.monotonic()
        async with asyncio.timeout(TTL + 5):
            while await used():
                await asyncio.sleep(0.02)
        back = time.monotonic() - begun
    lines = log.read_text().splitlines()
    most = most_at_once(lines, ends)
    say(f"seed {SEED}: {kills} kills, {pauses} pauses, {len(lines)} entries, at most {most} and {peak} at once")
    record_property("kills", kills)
    record_property("pauses", pauses)
    record_property("worst places believed to be had at once, of 20", most)
    record_property("worst places counted by the store", peak)
    record_property("worst seconds until all were free (time to live 1 s)", round(back, 2))
    assert most <= PLACES.limit and peak <= PLACES.limit
    assert back <= TTL + 1
    assert len(lines) > 20


def test_the_checker_finds_one_too_many() -> None:
    two = ["p a 1.0 2.0", "q b 1.5 2.5"]
    assert most_at_once(two, defaultdict(list)) == 2
    assert most_at_once(two, defaultdict(list, p=[1.4])) == 1
    assert most_at_once(["p a 1.0 2.0", "p a 1.2 0", "q b 1.5 2.5"], defaultdict(list)) == 1
