"""A few gateways as processes of their own on one PostgreSQL and one Valkey, to be killed and started again."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

from openclaw_gateway.testing import configuration

TIER = """
[ratelimit.requests]
limit = 1_000_000
per = "minute"
[ratelimit.ws_messages]
limit = 100
per = "minute"
[quota.sessions]
limit = 1000
per = "month"
[quota.messages]
limit = {limit}
per = "month"
[concurrency.sessions]
limit = 1000
[concurrency.ws_connections]
limit = 5
"""
_START = 40.0


class Fleet:
    """The gateways by number; `urls` of those that serve."""

    def __init__(self, folder: Path, database: str, valkey: str, *, size: int, limit: int, hold_ttl: str) -> None:
        edit: dict[str, Any] = {
            "plugins.database.url": database,
            "plugins.database.auto_upgrade": True,
            "plugins.redis.url": valkey,
            "plugins.counters.use": "counters.redis",
            "plugins.counters.replicas": size,
            "plugins.events.use": "events.redis",
            "plugins.ws_tickets.redis": "redis",
            "plugins.accounts.hold_ttl": hold_ttl,
            # what was charged is counted again at the end, and a run may be longer than an hour
            "plugins.accounts.keep_resolved": "1d",
            "plugins.accounts.reap_every": "500ms",
            "plugins.accounts.deliver_every": "500ms",
            "plugins.accounts.deliver_within": "2s",
            "plugins.idempotency.lease": "1500ms",
            "plugins.access_log.level": "error",
        }
        self.config = configuration(folder, edit=edit, tiers={"t": TIER.format(limit=limit)})
        self.size = size
        self.urls: dict[int, str] = {}
        self._processes: dict[int, Process] = {}
        self._log = (folder / "gateways.log").open("ab")

    async def start(self, number: int) -> None:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("openclaw-gateway")),
            *("serve", "--config", str(self.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
        )
        self._processes[number] = process
        assert process.stdout is not None
        async with asyncio.timeout(_START):
            while line := await process.stdout.readline():
                if found := re.search(rb"(http://[\d.:]+)  ", line):
                    self.urls[number] = found[1].decode()
                    return
        raise AssertionError("a gateway did not start")

    def pid(self, number: int) -> int:
        return self._processes[number].pid

    async def kill(self, number: int) -> None:
        """End it as a machine's failure would."""
        self.urls.pop(number, None)
        process = self._processes.pop(number)
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()

    async def end(self) -> None:
        for number in list(self._processes):
            await self.kill(number)
        self._log.close()
