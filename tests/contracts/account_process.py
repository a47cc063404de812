"""A process of its own that reserves and commits in a shared account, and prints how much it was granted.

Called as: account_process.py FOLDER URL ORGANIZATION LIMIT ATTEMPTS, where URL is `-` for the SQLite file of FOLDER.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from contracts.conftest import Stores

from openclaw_gateway.api import Limit, Take


async def main(folder: str, url: str, organization: str, limit: str, attempts: str) -> None:
    quota = Limit(name="quota.messages", meter="messages", kind="quota", limit=int(limit))
    config = {} if url == "-" else {"url": url}
    granted = refused = 0

    async def reserve() -> None:
        nonlocal granted, refused
        for _ in range(int(attempts) // 40):
            _, holds = await stores.accounts.reserve(organization, [Take(quota, "-")])
            if holds:
                granted += 1
                await stores.accounts.commit(holds)
            else:
                refused += 1

    async with Stores(Path(folder), {**config, "lock_timeout": 10.0}, {}).opened() as stores:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        await asyncio.gather(*(reserve() for _ in range(40)))
    sys.stdout.write(f"{granted} {refused}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
