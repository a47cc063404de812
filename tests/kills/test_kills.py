"""Gateways, PostgreSQL and Valkey are killed in mid-flight, and connections to the database are cut.

Every acknowledged charge is there afterwards, and there once.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from fault_proxy import FaultProxy, faulty
from fire.watch import SCALE, Recorder
from servers import Postgres, Valkey, start_postgres, start_valkey

from openclaw_gateway.testing import build

from .fleet import Fleet
from .history import Aftermath, Operation, Outcome, faults

ASK = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server for this test alone, which keeps what it has committed when it is killed."""
    with start_postgres() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    with start_valkey() as server:
        yield server


class Run:
    """One run: clients that want each thing once and repeat themselves under its key, and somebody who kills."""

    def __init__(
        self, fleet: Fleet, postgres: Postgres, valkey: Valkey, proxy: FaultProxy, database: str, seed: int
    ) -> None:
        self.fleet = fleet
        self.postgres = postgres
        self.valkey = valkey
        self.proxy = proxy
        self.database = database
        self.random = random.Random(seed)
        self.operations: list[Operation] = []
        self.killed = {"gateway": 0, "postgres": 0, "valkey": 0, "cut": 0}
        self.peak = 0
        self.stopping = False
        self._next = iter(range(10**9))

    async def client(self, http: aiohttp.ClientSession, path: str) -> None:
        while not self.stopping:
            key = f"m{next(self._next)}"
            outcome = await self.want(http, path, key)
            self.operations.append(Operation(key, outcome))
            if outcome == "refused":
                await asyncio.sleep(0.3)

    async def want(self, http: aiohttp.ClientSession, path: str, key: str) -> Outcome:
        """Ask under one key until there is an answer, of whichever gateway serves."""
        asked = 0
        while not self.stopping or asked < 40:
            asked += 1
            urls = list(self.fleet.urls.values())
            if not urls:
                await asyncio.sleep(0.1)
                continue
            body = {**ASK, "sessionId": path, "messages": [{"role": "user", "content": key}]}
            try:
                async with http.post(
                    self.random.choice(urls) + "/v1/chat/completions",
                    json=body,
                    headers={"Idempotency-Key": key},
                    timeout=aiohttp.ClientTimeout(total=15),
                ) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.05)
                continue
            if answer.status == 200:
                return "stored"
            if answer.status == 403:
                return "refused"
            if answer.status == 409 and "Retry-After" not in answer.headers:
                return "lost"
            assert answer.status in (409, 500, 503), (answer.status, text)
            await asyncio.sleep(0.2)
        return "unknown"

    async def kill_gateway(self, number: int) -> None:
        while not self.stopping:
            await asyncio.sleep(self.random.uniform(0.5, 4.0))
            await self.fleet.kill(number)
            self.killed["gateway"] += 1
            started = False
            while not started:
                try:
                    await self.fleet.start(number)
                    started = True
                except (AssertionError, TimeoutError):  # the database was away just then
                    await self.fleet.kill(number)

    async def kill_postgres(self, every: float) -> None:
        while not self.stopping:
            await asyncio.sleep(every * self.random.uniform(0.7, 1.3))
            await asyncio.to_thread(restart, self.postgres)
            self.killed["postgres"] += 1

    async def kill_valkey(self, every: float) -> None:
        while not self.stopping:
            await asyncio.sleep(every * self.random.uniform(0.7, 1.3))
            await asyncio.to_thread(self.valkey.stop, signal.SIGKILL)
            await asyncio.sleep(self.random.uniform(0, 1))
            await asyncio.to_thread(self.valkey.start)
            self.killed["valkey"] += 1

    async def cut(self, every: float) -> None:
        """Reset every connection between gateways and the database, whatever is on its way."""
        while not self.stopping:
            await asyncio.sleep(every * self.random.uniform(0.5, 1.5))
            await self.proxy.cut()
            self.killed["cut"] += 1

    async def end(self, enough: Mapping[str, int]) -> None:
        """Stop once all has been killed so often."""
        while not self.stopping and any(self.killed[what] < times for what, times in enough.items()):
            await asyncio.sleep(0.1)
        self.stopping = True

    async def watch(self) -> None:
        while not self.stopping:
            with suppress(subprocess.CalledProcessError):
                self.peak = max(
                    self.peak, await self.number("SELECT coalesce(max(used + held), 0) FROM openclaw_usage")
                )
            await asyncio.sleep(0.3)

    async def number(self, query: str) -> int:
        where = "" if "WHERE" in query else " WHERE limit_name = 'quota.messages'"
        return int(await asyncio.to_thread(self.postgres.sql, query + where, self.database))

    async def aftermath(self) -> Aftermath:
        async def rows(query: str) -> list[str]:
            found = await asyncio.to_thread(self.postgres.sql, query, self.database)
            return found.splitlines()

        asked = await rows("SELECT content #>> '{}' FROM openclaw_messages WHERE role = 'user'")
        events = await rows("SELECT period, threshold FROM openclaw_quota_events WHERE delivered_at IS NOT NULL")
        committed = "SELECT count(*) FROM openclaw_holds WHERE state = 'committed' AND limit_name = 'quota.messages'"
        return Aftermath(
            stored=tuple(asked),
            used=await self.number("SELECT coalesce(sum(used), 0) FROM openclaw_usage"),
            held=await self.number("SELECT coalesce(sum(held), 0) FROM openclaw_usage"),
            committed=await self.number(committed),
            peak=self.peak,
            events=tuple((line.split("|")[0], line.split("|")[1]) for line in events),
        )


def restart(postgres: Postgres) -> None:
    """Kill the server without warning, and start it again as soon as the last of its processes has gone."""
    postgres.stop(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while True:
        try:
            postgres.start()
            return
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


async def kills(
    folder: Path,
    postgres: Postgres,
    valkey: Valkey,
    *,
    seconds: float,
    enough: Mapping[str, int],
    limit: int,
    size: int,
    seed: int,
) -> Run:
    async with faulty(postgres.port) as proxy:
        database = postgres.create()
        url = postgres.url(database).replace(f":{postgres.port}/", f":{proxy.port}/")
        fleet = Fleet(folder, url, valkey.url, size=size, limit=limit, hold_ttl="4s")
        run = Run(fleet, postgres, valkey, proxy, database, seed)
        return await killing(run, seconds=seconds, enough=enough, limit=limit, size=size)


async def killing(run: Run, *, seconds: float, enough: Mapping[str, int], limit: int, size: int) -> Run:
    """Go on until there was `enough` of each kind of kill, or `seconds` have passed; then look what is left."""
    fleet = run.fleet
    try:
        await fleet.start(0)
        await asyncio.gather(*(fleet.start(number) for number in range(1, size)))
        async with build(fleet.config).opened("jwt") as jwt:
            token = jwt.mint(organization="acme", user="ada", tier="t", ttl=7200)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            async with http.post(fleet.urls[0] + "/api/v1/sessions", json={}) as made:
                session = (await made.json())["sessionId"]
            clients = [asyncio.create_task(run.client(http, session)) for _ in range(8)]
            others = [
                *(asyncio.create_task(run.kill_gateway(number)) for number in range(size)),
                asyncio.create_task(run.kill_postgres(min(seconds / 3, 30))),
                asyncio.create_task(run.kill_valkey(min(seconds / 4, 20))),
                asyncio.create_task(run.cut(min(seconds / 5, 15))),
                asyncio.create_task(run.watch()),
                asyncio.create_task(run.end(enough)),
            ]
            await asyncio.wait([*clients, *others], timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            run.stopping = True
            done, _ = await asyncio.wait([*clients, *others], timeout=90)
            for task in done:
                task.result()
            assert all(task.done() for task in clients + others)
        deadline = time.monotonic() + 4 + 0.5 + 10
        while time.monotonic() < deadline:
            after = await run.aftermath()
            if not after.held and (after.used < limit or len(after.events) == 2):
                break
            await asyncio.sleep(0.25)
        found = faults(run.operations, after, limit)
        assert not found, (run.killed, found)
        return run
    finally:
        await fleet.end()


def record(run: Run, record_property: Recorder) -> None:
    """The figures of a run in which nothing was wrong: `faults` looked for each of the last three."""
    for what, times in run.killed.items():
        record_property("cuts of all connections" if what == "cut" else f"kills of {what}", times)
    record_property("charges acknowledged", sum(operation.outcome == "stored" for operation in run.operations))
    for what in ("lost or doubled", "above the limit", "left held"):
        record_property(what, 0)


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_and_nothing_is_charged_twice(
    own_postgres: Postgres, own_valkey: Valkey, tmp_path: Path, record_property: Recorder
) -> None:
    seed = int(os.environ.get("FIRE_SEED", random.randrange(10**6)))
    enough = {"gateway": 10, "postgres": 2, "valkey": 2, "cut": 3}
    run = await kills(tmp_path, own_postgres, own_valkey, seconds=20, enough=enough, limit=60, size=2, seed=seed)
    record(run, record_property)
    assert run.killed["gateway"] >= 2 and run.killed["postgres"] >= 1
    assert sum(operation.outcome == "stored" for operation in run.operations) > 20


@pytest.mark.long
@pytest.mark.timeout(7_200)
async def test_a_long_run_of_kills(
    own_postgres: Postgres, own_valkey: Valkey, tmp_path: Path, record_property: Recorder
) -> None:
    seconds = 3_600 * SCALE
    seed = int(os.environ.get("FIRE_SEED", random.randrange(10**6)))
    goal = {"gateway": 1_000, "postgres": 100, "valkey": 100, "cut": 200}
    enough = {what: round(times * SCALE) for what, times in goal.items()}
    limit = int(seconds * 4)
    run = await kills(
        tmp_path, own_postgres, own_valkey, seconds=seconds, enough=enough, limit=limit, size=3, seed=seed
    )
    record(run, record_property)
    assert run.killed["gateway"] > seconds / 20 and run.killed["postgres"] >= 2, run.killed
