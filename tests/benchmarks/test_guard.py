"""Holds the hot path to a count of calls: what a warmed request does is the same on every machine, however busy.

A bound is raised only with the reason in the same commit. The times are `python tests/benchmarks`.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import httptools
import pytest
import uvloop
from socket_kit import place, raw
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from benchmarks import subjects
from benchmarks.inside import NO_QUOTA, TIER, Client, opened, question
from benchmarks.upstream import CHUNKS, PACES
from openclaw_gateway.api import Exchange
from openclaw_gateway.serving import edge, server
from openclaw_gateway.serving.edge import Edge
from openclaw_plugins.providers.calls import UpstreamCall

#: one in sixteen requests is timed by default, and would count more
RATES = {"gateway.unmetered": ["messages"], "gateway.stage_sampling": 0}


async def calls_of(client: Client, *, only: str = "", requests: int = 20) -> float:
    """Calls a request once the caches are full: of functions in files named like `only`, else of built-in ones too.

    The least of several looks, since a look also sees what the gateway does beside requests.
    """
    for number in range(requests):
        assert await client.call(number) == 200
    return min([await _look(client, only, requests) for _ in range(4)])


async def _look(client: Client, only: str, requests: int) -> float:
    count = 0

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if (event == "call" and only in frame.f_code.co_filename) or (event == "c_call" and not only):
            count += 1

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        for number in range(requests):
            await client.call(number)
    finally:
        sys.setprofile(before)
    return count / requests


@pytest.mark.parametrize(
    ("stream", "bound"),
    [
        pytest.param(False, 350, id="whole"),
        pytest.param(True, 1_850, id="stream"),
    ],
)
async def test_a_request_makes_no_more_calls_than_recorded(tmp_path: Path, stream: bool, bound: int) -> None:
    # Two organisations, so that they come with tokens: a key is looked up again each second.
    async with opened(tmp_path, tier=NO_QUOTA, edit=RATES, body=question(stream=stream), organizations=2) as client:
        calls = await calls_of(client)
    # The lower bound catches a count that no longer counts what it should.
    assert bound / 2 < calls <= bound, f"{calls:.0f} calls a request"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(tmp_path: Path, stream: bool) -> None:
    await leaves_nothing(tmp_path, RATES, question(stream=stream))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_call_of_an_upstream_leaves_nothing_to_the_garbage_collector(
    tmp_path: Path, upstream: dict[str, Any], stream: bool
) -> None:
    await leaves_nothing(tmp_path, upstream, question("mock", stream=stream))


async def leaves_nothing(tmp_path: Path, edit: dict[str, Any], body: bytes) -> None:
    async with opened(tmp_path, tier=NO_QUOTA, edit=edit, body=body, organizations=2) as client:
        assert await client.call() == 200  # what is made once stays
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(100):  # the timers of the last few hold them still
                assert await client.call(number) == 200
            gc.collect()
            left = [found for found in gc.garbage if isinstance(found, (Exchange, UpstreamCall))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left, f"{len(left)} of 100 requests hold themselves"


@pytest.fixture(scope="module")
def upstream() -> Iterator[dict[str, Any]]:
    """The mock upstream of the benchmarks in a process of its own; yields the edits by which a gateway has it."""
    with subjects.upstream() as direct:
        yield {
            **RATES,
            "plugins.mock.use": "providers.openai",
            "plugins.mock.url": f"http://127.0.0.1:{direct.port}/v1",
            "models.mock.provider": "mock",
            **{f"models.mock-{pace}.provider": "mock" for pace in PACES},
        }


async def test_a_call_of_an_upstream_makes_no_more_calls_than_recorded(
    tmp_path: Path, upstream: dict[str, Any]
) -> None:
    async with opened(tmp_path, tier=NO_QUOTA, edit=upstream, body=question("mock"), organizations=2) as client:
        calls = await calls_of(client)
    assert 250 < calls <= 470, f"{calls:.0f} calls a request"


@pytest.mark.parametrize(
    ("model", "requests", "bound"),
    [
        pytest.param("mock", 20, 38, id="that comes with others"),
        pytest.param("mock-paced", 2, 118, id="that comes alone"),
    ],
)
async def test_a_chunk_makes_no_more_calls_than_recorded(
    tmp_path: Path, upstream: dict[str, Any], model: str, requests: int, bound: int
) -> None:
    body = question(model, stream=True)
    async with opened(tmp_path, tier=NO_QUOTA, edit=upstream, body=body, organizations=2) as client:
        whole = await calls_of(client.asking(question("mock")))
        calls = await calls_of(client, requests=requests)
    chunk = (calls - whole) / CHUNKS
    assert bound / 3 < chunk <= bound, f"{chunk:.1f} calls a chunk"


@pytest.mark.parametrize(
    "unwanted",
    [
        "logging/__init__.py",
        "pluggy/",
        "dynaconf/",
        "json/encoder.py",
        pytest.param("prometheus_client/", id="metrics that take a lock, and labels that are looked up"),
        pytest.param("access_log/lines.py", id="lines of the log, which a thread encodes"),
        pytest.param("litestar/", id="Litestar, on a route that is known at once"),
    ],
)
async def test_a_request_never_passes(tmp_path: Path, unwanted: str) -> None:
    """What boot, or another thread, may use and a request may not: each costs more than all steps together."""
    async with opened(tmp_path, tier=NO_QUOTA, edit=RATES, organizations=2) as client:
        assert await calls_of(client, only=unwanted) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop")
async def test_what_serves_is_uvloop_and_httptools(tmp_path: Path) -> None:
    factory = server._loop_factory()
    assert factory is not None
    loop = factory()
    try:
        assert isinstance(loop, uvloop.Loop)
    finally:
        loop.close()
    assert issubclass(Edge, HttpToolsProtocol)
    assert edge.HttpRequestParser is httptools.HttpRequestParser


async def test_organisations_cost_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "few", tier=NO_QUOTA, edit=RATES, organizations=2) as client:
        few = await calls_of(client)
    async with opened(tmp_path / "many", tier=NO_QUOTA, edit=RATES, organizations=500) as client:
        for number in range(500):
            assert await client.call(number) == 200
        many = await calls_of(client)
    assert many <= few * 1.1


async def test_durable_work_of_one_moment_shares_its_transaction(tmp_path: Path) -> None:
    """Sixty-four requests at once must not pay the database sixty-four times."""
    async with opened(tmp_path) as client:
        await client.cost(64, at_once=64)
        value = client.gateway.registry.get_sample_value
        before = value("accounts_batch_size_count") or 0.0
        await client.cost(256, at_once=64)
        transactions = (value("accounts_batch_size_count") or 0.0) - before
    assert 0 < transactions <= 256 * 2 / 8


async def test_an_idle_socket_keeps_little(tmp_path: Path) -> None:
    """Bytes that Python holds for it: 19 KiB when this was written, of 38 before; ten thousand are one process's."""
    count = 60
    limits = {"bench": TIER}
    async with place(tmp_path, tier="bench", tiers=limits) as here, AsyncExitStack() as stack:
        sessions = [await here.session() for _ in range(2 * count)]

        async def opened(some: list[str]) -> None:
            for session in some:
                found = await stack.enter_async_context(raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}"))
                assert found.status == 101

        await opened(sessions[:count])
        gc.collect()
        tracemalloc.start()
        try:
            await opened(sessions[count:])
            gc.collect()
            each = tracemalloc.get_traced_memory()[0] / count
        finally:
            tracemalloc.stop()
    # The client is in it too: a stream's reader and writer, and what asyncio keeps of a connection, of about 6 KiB.
    assert 4_096 < each <= 32_768, f"{each / 1024:.1f} KiB"
