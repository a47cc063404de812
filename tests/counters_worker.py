"""One process that asks counters on a Valkey as fast as it can: `python counters_worker.py URL PREFIX CALLS NUMBER`.

It says when it is ready, waits for a line, and prints what it was admitted, for an organisation that all share and
for one of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys

from counters_kit import counting

from openclaw_gateway.api import Limit, Take

SHARED = tuple(
    Take(Limit(name=f"ratelimit.{a}", meter="requests", kind="rate", limit=limit, algorithm=a, window=3600), "-")
    for a, limit in (("sliding", 700), ("fixed", 900))
)
OWN = (Take(Limit(name="ratelimit.own", meter="requests", kind="rate", limit=150, window=3600), "-"),)
PLACES = Limit(name="concurrency.ws", meter="ws_connections", kind="lease", limit=20)


async def work(url: str, prefix: str, calls: int, number: str) -> dict[str, int]:
    async with counting(url, prefix=prefix, timeout=20) as (counters, _):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        found = {"shared": 0, "own": 0, "places": 0, "degraded": 0}

        async def caller(first: int) -> None:
            for i in range(first, calls, 32):
                balances = [*await counters.admit("shared", SHARED), *await counters.admit(f"own-{number}", OWN)]
                balances += await counters.admit("shared", [Take(PLACES, "-", lease=f"{number}-{i}")])
                found["shared"] += not any(b.refused for b in balances[:2])
                found["own"] += not balances[2].refused
                found["places"] += not balances[3].refused
                found["degraded"] += sum(b.degraded for b in balances)

        await asyncio.gather(*(caller(first) for first in range(32)))
        return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))))
