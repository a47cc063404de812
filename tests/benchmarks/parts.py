"""The parts of a request on their own, in this process: each beside the plainest thing that does the same."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pluggy
from servers import start_postgres, start_valkey

from benchmarks import account
from benchmarks.account import Part
from benchmarks.inside import NO_QUOTA, opened, question
from openclaw_gateway import hooks, loader
from openclaw_gateway.api import Exchange, Host, Limit, PluginConfig, Principal, Take, hookimpl
from openclaw_gateway.assets import asset

_UNMETERED = {
    "gateway.unmetered": ["messages"],
    "plugins.counters.max_keys": 200_000,
    "plugins.jwt.cache_size": 150_000,
}


class Idle:
    """A step that looks at nothing, to weigh a step."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        """No settings."""

    def __init__(self, config: Config, host: Host) -> None:
        pass

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        return None


async def all_parts(*, short: bool, say: Callable[[str], None]) -> list[Part]:
    """Measure everything here, one after the other."""
    times = 3 if short else 7
    found = []
    for name, measured in (
        ("steps", lambda: steps(times, 300 if short else 1_000)),
        ("organisations", lambda: organizations((1, 1_000) if short else (1, 1_000, 100_000), 1_000)),
        ("sessions", lambda: sessions((1, 1_000) if short else (1, 1_000, 1_000_000), 100 if short else 300)),
        ("keys", lambda: keys(100 if short else 500)),
        ("dispatch", lambda: dispatch(times)),
        ("admission in memory", lambda: memory_admission(times)),
        ("admission in Valkey", lambda: valkey_admission(times)),
        ("durable account", lambda: account.durable(200 if short else 1_000)),
        ("a full account", lambda: account.full(10_000 if short else 100_000, 50_000 if short else 500_000)),
    ):
        say(name)
        found += await measured()
    return found


async def steps(times: int, requests: int) -> list[Part]:
    """What a request costs with 0, 10 and 30 more steps in its pipeline; without the durable account."""
    costs: dict[int, list[float]] = {0: [], 10: [], 30: []}
    offered = {**loader.installed(), "idle": [EntryPoint("idle", f"{__name__}:Idle", loader.GROUP)]}
    shipped = tomllib.loads(asset("openclaw.toml").read_text())["gateway"]["pipeline"]
    with mock.patch.object(loader, "installed", lambda: offered), tempfile.TemporaryDirectory() as folder:
        for count, measured in costs.items():
            names = [f"idle{n}" for n in range(count)]
            edit: dict[str, Any] = {**_UNMETERED, **{f"plugins.{name}.use": "idle" for name in names}}
            edit["gateway.pipeline"] = [*shipped, *names]
            async with opened(Path(folder) / str(count), tier=NO_QUOTA, edit=edit) as client:
                await client.cost(requests)
                measured += [await client.cost(requests, at_once=16) for _ in range(times)]
    least = {count: min(measured) for count, measured in costs.items()}
    return [
        Part(f"a request with {count} more steps", least[count], least[0], "µs CPU", "with none") for count in (10, 30)
    ]


async def organizations(counts: Sequence[int], requests: int) -> list[Part]:
    """What a request costs as organisations grow, each seen once before."""
    costs = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder), organizations=count, tier=NO_QUOTA, edit=_UNMETERED, tokens=True) as client:
                for _ in range(2 if count == 1 else 1):
                    await client.cost(max(count, requests), at_once=16)
                costs[count] = min([await client.cost(requests, at_once=16) for _ in range(5)])
    first = costs[counts[0]]
    return [
        Part(f"a request, one of {count:,} organisations", costs[count], first, "µs CPU", "the only organisation")
        for count in counts[1:]
    ]


async def keys(requests: int) -> list[Part]:
    """What a request costs whose key was not shown of late, and has to be looked up: most of those of slow callers."""
    costs: dict[tuple[str, str], float] = {}
    with start_postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        stores: dict[str, dict[str, Any]] = {
            "SQLite": {},
            "PostgreSQL": {
                "plugins.database.url": postgres.url(postgres.create()),
                "plugins.database.auto_upgrade": True,
            },
        }
        for store, edit in stores.items():
            for ttl in ("1s", "0s"):
                where = Path(folder) / f"{store}{ttl}"
                edits = {**_UNMETERED, **edit, "plugins.api_key.cache_ttl": ttl}
                async with opened(where, tier=NO_QUOTA, edit=edits) as client:
                    await client.cost(requests)
                    costs[store, ttl] = min([await client.cost(requests) for _ in range(5)])
    return [
        Part(
            f"a request whose key is looked up in {store}, one at a time",
            costs[store, "0s"],
            costs[store, "1s"],
            "µs CPU",
            "whose key was shown within a second",
        )
        for store in stores
    ]


async def sessions(counts: Sequence[int], requests: int) -> list[Part]:
    """What a turn of a stored session costs as the sessions of its organisation grow."""
    costs = {}
    caller = Principal(organization="o0", user="u", tier="bench", method="none", credential="none")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder), tier=NO_QUOTA, edit=_UNMETERED) as client:
                store = client.gateway.plugin("sessions")
                made = await store.create(caller, tier="bench", metadata={}, ttl=None, holds=())
                _copied(Path(folder), count - 1)
                body = {**msgspec.json.decode(question()), "sessionId": made.session_id}
                turns = client.asking(msgspec.json.encode(body))
                await turns.cost(requests)
                costs[count] = min([await turns.cost(requests, at_once=16) for _ in range(5)])
    first = costs[counts[0]]
    return [
        Part(f"a stored turn, one of {count:,} sessions", costs[count], first, "µs CPU", "the only session")
        for count in counts[1:]
    ]


def _copied(folder: Path, count: int) -> None:
    """Write so many sessions like the one that is there: to create each through the gateway would take minutes."""
    (file,) = folder.rglob("*.db")
    with closing(sqlite3.connect(file)) as database, database:
        names = [row[1] for row in database.execute("PRAGMA table_info(openclaw_sessions)")]
        values = ["lower(hex(randomblob(16)))" if name == "session_id" else name for name in names]
        database.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?) "
            f"INSERT INTO openclaw_sessions ({', '.join(names)}) "
            f"SELECT {', '.join(values)} FROM openclaw_sessions, numbers",
            (count,),
        )


async def dispatch(times: int) -> list[Part]:
    """Ten steps as the runner calls them, beside ten as pluggy's own caller does."""
    manager = pluggy.PluginManager("openclaw")
    manager.add_hookspecs(hooks)
    plugins = [Idle.__new__(Idle) for _ in range(10)]
    for number, plugin in enumerate(plugins):
        manager.register(plugin, str(number))
    calls = tuple(plugin.on_request for plugin in plugins)

    def ours() -> None:
        for call in calls:
            if call(None) is not None:  # type: ignore[arg-type]
                break

    def theirs() -> None:
        manager.hook.on_request(x=None)

    return [Part("ten steps", _least(ours, times), _least(theirs, times), "µs", "ten by `pm.hook`")]


async def memory_admission(times: int) -> list[Part]:
    """One admission of three rates in memory, beside reading a clock."""
    with tempfile.TemporaryDirectory() as folder:
        async with opened(Path(folder)) as client:
            counters, takes = client.gateway.plugin("counters"), _takes()
            cost = await _least_awaited(lambda: counters.admit("o", takes), times, 2_000)
    clock = _least(time.monotonic, times)
    return [Part("an admission of three rates in memory", cost, clock, "µs", "reading the clock")]


async def valkey_admission(times: int) -> list[Part]:
    """One admission, beside the same call of the same script by redis-py; 64 at once, own CPU only."""
    import hiredis
    import redis.asyncio

    with start_valkey() as valkey, tempfile.TemporaryDirectory() as folder:
        edit = {
            "plugins.counters.use": "counters.redis",
            "plugins.redis.use": "redis",
            "plugins.redis.url": valkey.url,
        }
        async with opened(Path(folder), edit=edit) as client:
            counters, takes = client.gateway.plugin("counters"), _takes()
            cost = await _at_once(lambda: counters.admit("o", takes), times)
            sent = hiredis.Reader()
            sent.feed(counters._prepare("o", takes).packed)
            command = sent.gets()
        bare = redis.asyncio.Redis.from_url(valkey.url)
        one = await _at_once(lambda: bare.execute_command(*command), times)
        await bare.aclose()
    return [Part("an admission of three rates in Valkey", cost, one, "µs CPU", "the same EVALSHA by redis-py")]


def _takes() -> tuple[Take, ...]:
    """What a plan holds from boot on, and hands over each time."""

    def limit(name: str) -> Limit:
        return Limit(name=name, meter=name, kind="rate", limit=10**9, scope="organization", window=60.0)

    return tuple(Take(limit(name), "-", 1) for name in "abc")


def _least(call: Callable[[], Any], times: int, number: int = 20_000) -> float:
    """Microseconds of one call, in the least disturbed of the runs."""
    runs = []
    for _ in range(times):
        begun = time.process_time()
        for _ in range(number):
            call()
        runs.append((time.process_time() - begun) / number * 1e6)
    return min(runs)


async def _least_awaited(call: Callable[[], Awaitable[Any]], times: int, number: int) -> float:
    runs = []
    for _ in range(times):
        begun = time.process_time()
        for _ in range(number):
            await call()
        runs.append((time.process_time() - begun) / number * 1e6)
    return min(runs)


async def _at_once(call: Callable[[], Awaitable[Any]], times: int, rounds: int = 20) -> float:
    async def some() -> None:
        for _ in range(rounds):
            await call()

    await some()
    runs = []
    for _ in range(times):
        begun = time.process_time()
        await asyncio.gather(*(some() for _ in range(64)))
        runs.append((time.process_time() - begun) / (64 * rounds) * 1e6)
    return statistics.median(runs)
