"""One process that takes places, renews them and writes what it believes: `python lease_worker.py URL PREFIX LOG NAME`.

A line is `name holder time until`: from `time` on and up to `until` it takes the place for its own, by the clock that
all processes of a machine share. It may be killed or paused at any moment.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

from counters_kit import counting

from openclaw_gateway.api import Limit, StoreUnavailable, Take

TTL = 1.0
PLACES = Limit(
    name="concurrency.ws",
    meter="ws_connections",
    kind="lease",
    limit=20,
    scope="organization",
    on_backend_failure="closed",
)
TASKS = 12


async def hold(counters: object, log: object, name: str, number: int) -> None:
    serial = 0
    while True:
        serial += 1
        holder = f"{name}-{number}-{serial}"
        take = (Take(PLACES, "-", lease=holder),)
        asked = time.monotonic()
        (balance,) = await counters.admit("acme", take)  # type: ignore[attr-defined]
        if balance.refused:
            await asyncio.sleep(random.uniform(0.01, 0.05))
            continue
        mine = True
        for _ in range(random.randrange(1, 8)):
            # its own fence: nobody may count on a place for longer than that
            until = asked + TTL
            now = time.monotonic()
            if now >= until or not mine:
                break
            log.write(f"{name} {holder} {now:.6f} {until:.6f}\n")  # type: ignore[attr-defined]
            await asyncio.sleep(TTL / 4)
            asked = time.monotonic()
            if asked >= until:
                break  # it was paused: what it had may be another's by now
            try:
                mine = await counters.renew("acme", take)  # type: ignore[attr-defined]
            except StoreUnavailable:
                mine = False
        # Who gives a place back has stopped to count on it before: it may be another's before the answer is here.
        log.write(f"{name} {holder} {time.monotonic():.6f} 0\n")  # type: ignore[attr-defined]
        await counters.release("acme", take)  # type: ignore[attr-defined]


async def main(url: str, prefix: str, path: str, name: str) -> None:
    with Path(path).open("a", buffering=1) as log:
        async with counting(url, prefix=prefix, lease_ttl=TTL, timeout=0.5) as (counters, _):
            await asyncio.gather(*(hold(counters, log, name, i) for i in range(TASKS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
