"""How the chunks of a stream are handed on: in the turn in which they come, in order, never past who has no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upstreams import DONE, WAYS, Cut, Pause, ScriptedUpstream, chunk, event, scripted

from openclaw_gateway.api import HandsOn, ModelCall, UpstreamFailed
from openclaw_plugins.providers.calls import Callee
from openclaw_plugins.providers.direct import DirectTransport
from openclaw_plugins.providers.direct_answer import DirectAnswer
from openclaw_plugins.providers.progress import Progress
from openclaw_plugins.providers.proxied import ProxiedTransport
from openclaw_plugins.providers.streamed import Streamed
from openclaw_plugins.providers.transport import Destination

BETWEEN = Pause(0.02)
SAID = [chunk(text) for text in "abcdef"]

NAME: ContextVar[str] = ContextVar("name", default="nobody")


class Upstream:
    """A scripted upstream, and the streams that are asked of it."""

    def __init__(self, scripted: ScriptedUpstream, transport: Any) -> None:
        self.scripted = scripted
        self.failed: list[str] = []
        self.took = 0
        self._transport = transport

    def stream(self, *script: Any, idle: float = 5.0, total: float = 30.0) -> Streamed:
        self.scripted.script = script
        call = ModelCall(
            model="m",
            upstream_model="m",
            body=b"{}",
            request={},
            stream=True,
            request_id=None,
            first_byte_timeout=5.0,
            idle_timeout=idle,
            total_timeout=total,
        )
        measures = SimpleNamespace(failed=lambda _, kind: self.failed.append(kind), took=self._took)
        spans = SimpleNamespace(start=lambda *_: None)
        logger = SimpleNamespace(warning=lambda *_, **__: None)
        callee: Any = Callee("up", self._transport, {}, (), measures, spans, logger)  # type: ignore[arg-type]
        return Streamed(callee, "chat", call, Progress(()), 10_000, None, None)

    def _took(self, *_: Any) -> None:
        self.took += 1


@asynccontextmanager
async def serving(kind: Any = DirectTransport) -> AsyncIterator[Upstream]:
    async with scripted() as upstream:
        transport = kind(Destination(url=upstream.url, headers={}, max_connections=4, verify_tls=True))
        async with transport.opened():
            yield Upstream(upstream, transport)


@pytest.fixture(params=[DirectTransport, ProxiedTransport], ids=["direct", "aiohttp"])
async def upstream(request: pytest.FixtureRequest) -> AsyncIterator[Upstream]:
    async with serving(request.param) as upstream:
        yield upstream


class Taker:
    """Takes chunks, and has room for so many at once."""

    def __init__(self, most: int = 1_000) -> None:
        self.most = most
        self.waiting: list[bytes] = []
        self.left: list[list[bytes]] = []
        self.waited = 0

    def put(self, given: bytes) -> bool:
        self.waiting.append(given)
        return len(self.waiting) < self.most

    def pass_on(self) -> None:
        if self.waiting:
            self.left.append(self.waiting)
            self.waiting = []

    async def room(self) -> None:
        await asyncio.sleep(0.01)
        self.waited += 1
        self.pass_on()

    async def take(self, stream: Streamed) -> None:
        await stream.hand_on(self.put, self.pass_on, self.room)
        self.pass_on()

    @property
    def all(self) -> list[bytes]:
        return [chunk for chunks in self.left for chunk in chunks]


async def test_a_stream_says_that_it_hands_on(upstream: Upstream) -> None:
    stream = upstream.stream(event(chunk(finish="stop")), DONE)
    assert isinstance(stream, HandsOn)
    await stream.aclose()


async def test_every_chunk_leaves_before_the_next_has_come(upstream: Upstream) -> None:
    script = [part for said in SAID for part in (event(said), BETWEEN)]
    taker = Taker()
    await taker.take(upstream.stream(*script, event(chunk(finish="stop")), DONE))
    assert taker.left[: len(SAID)] == [[said] for said in SAID]
    assert (upstream.took, taker.waited) == (1, 0)


async def test_chunks_that_come_together_leave_together(upstream: Upstream) -> None:
    taker = Taker()
    await taker.take(upstream.stream(b"".join(map(event, SAID)), BETWEEN, event(chunk(finish="stop")), DONE))
    assert taker.left[0] == SAID


async def test_no_task_is_woken_for_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the way is for: the wait of the one who has asked lasts from the first chunk to the last."""
    waits = 0
    more = DirectAnswer.more

    def counted(self: DirectAnswer, deadline: float) -> Any:
        nonlocal waits
        waits += 1
        return more(self, deadline)

    monkeypatch.setattr(DirectAnswer, "more", counted)
    script = [part for _ in range(5) for said in SAID for part in (event(said), Pause(0.005))]
    async with serving() as upstream:
        taker = Taker()
        await taker.take(upstream.stream(*script, event(chunk(finish="stop")), DONE))
    assert len(taker.all) == 31
    assert waits < 6  # the head, the first, and the end in its parts


async def test_who_has_no_room_is_given_no_more_than_one_piece(upstream: Upstream) -> None:
    script = [part for said in SAID for part in (event(said), BETWEEN)]
    taker = Taker(most=1)
    await taker.take(upstream.stream(*script, event(chunk(finish="stop")), DONE))
    assert taker.all == [*SAID, chunk(finish="stop")]
    assert max(map(len, taker.left)) == 1
    assert taker.waited >= len(SAID)


async def test_it_runs_in_the_context_of_who_has_asked(upstream: Upstream) -> None:
    """And not in that of whoever's request has opened the connection: logs and spans go by it."""
    names: list[str] = []

    class Named(Taker):
        def pass_on(self) -> None:
            names.append(NAME.get())
            super().pass_on()

    async def ask(name: str) -> None:
        NAME.set(name)
        script = [part for said in SAID for part in (event(said), BETWEEN)]
        await Named().take(upstream.stream(*script, event(chunk(finish="stop")), DONE))

    await asyncio.create_task(ask("ada"))
    assert set(names) == {"ada"}
    names.clear()
    await asyncio.create_task(ask("bob"))  # on the same connection
    assert set(names) == {"bob"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([event(SAID[0]), event(SAID[1]), BETWEEN, event(b"[")], "upstream_error"),
        ([event(SAID[0]) + event(SAID[1]) + event(b"[")], "upstream_error"),
        ([event(SAID[0]), BETWEEN, event(SAID[1]), BETWEEN, Cut], "connection"),
        ([event(SAID[0]), event(SAID[1])], "upstream_error"),
        ([event(SAID[0]), event(SAID[1]), Pause(3)], "idle_timeout"),
    ],
    ids=["broken", "broken in one piece", "cut", "ended early", "silent"],
)
async def test_a_failure_comes_behind_what_came_before_it(
    upstream: Upstream, way: Any, script: list[Any], kind: str
) -> None:
    chunks: list[bytes] = []
    with pytest.raises(UpstreamFailed):
        await way(upstream.stream(*script, idle=0.3), chunks)
    assert chunks == SAID[:2]
    assert (len(upstream.failed), upstream.took) == (1, 1), upstream.failed
    assert upstream.failed[0].startswith(kind)


async def test_a_taker_that_fails_ends_the_call_and_nothing_else(upstream: Upstream) -> None:
    class Broken(Exception):
        pass

    def put(given: bytes) -> bool:
        if given == SAID[2]:
            raise Broken
        return True

    script = [part for said in SAID for part in (event(said), BETWEEN)]
    stream = upstream.stream(*script, Pause(5))
    with pytest.raises(Broken):
        await stream.hand_on(put, lambda: None, lambda: asyncio.sleep(0))
    await asyncio.wait_for(upstream.scripted.left.wait(), 5)
    assert (upstream.failed, upstream.took) == ([], 1)


async def test_to_cancel_it_closes_the_upstream_and_nothing_is_given_afterwards(upstream: Upstream) -> None:
    taker = Taker()
    endless = (part for _ in range(1_000) for part in (event(SAID[0]), Pause(0.01)))
    task = asyncio.create_task(taker.take(upstream.stream(*endless)))
    while len(taker.all) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    had = len(taker.all)
    async with asyncio.timeout(5):
        while upstream.scripted.connections:
            await asyncio.sleep(0.01)
    assert len(taker.all) == had and upstream.took == 1


async def test_the_whole_time_of_a_call_runs_out_while_chunks_come(upstream: Upstream) -> None:
    endless = (part for _ in range(1_000) for part in (event(SAID[0]), Pause(0.01)))
    with pytest.raises(UpstreamFailed) as caught:
        await Taker().take(upstream.stream(*endless, total=0.3))
    assert caught.value.status == 504
    assert upstream.failed == ["total_timeout"]


async def test_the_time_between_two_chunks_begins_anew_with_each(upstream: Upstream) -> None:
    script = [part for said in SAID * 2 for part in (event(said), Pause(0.1))]
    taker = Taker()
    await taker.take(upstream.stream(*script, event(chunk(finish="stop")), DONE, idle=0.6))  # of 1.2 seconds
    assert taker.all == [*SAID * 2, chunk(finish="stop")]


async def test_it_ends_with_its_marker_whatever_the_upstream_does_then(upstream: Upstream) -> None:
    taker = Taker()
    async with asyncio.timeout(5):
        await taker.take(
            upstream.stream(event(SAID[0]), BETWEEN, event(chunk(finish="stop")), BETWEEN, DONE, Pause(20))
        )
    assert taker.all == [SAID[0], chunk(finish="stop")]
    assert (upstream.failed, upstream.took) == ([], 1)


@pytest.mark.parametrize("begun", [True, False])
async def test_to_close_it_ends_the_call_once(upstream: Upstream, begun: bool) -> None:
    stream = upstream.stream(event(SAID[0]), Pause(20))
    if begun:
        assert await anext(stream) == SAID[0]
    await stream.aclose()
    await stream.aclose()
    async with asyncio.timeout(5):
        while upstream.scripted.connections:
            await asyncio.sleep(0.01)
    assert (upstream.failed, upstream.took) == ([], 1)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_what_ends_well_leaves_its_connection_for_the_next(upstream: Upstream) -> None:
    for _ in range(3):
        taker = Taker()
        await taker.take(upstream.stream(event(SAID[0]), BETWEEN, event(chunk(finish="stop")), BETWEEN, DONE))
        assert taker.all == [SAID[0], chunk(finish="stop")]
    assert upstream.scripted.connections == 1


@given(
    texts=st.lists(st.text(max_size=8), max_size=8),
    cuts=st.lists(st.integers(0, 600), max_size=10),
    most=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_a_stream_is_cut_it_is_handed_on_as_it_is_read(texts: list[str], cuts: list[int], most: int) -> None:
    said = [*map(chunk, texts), chunk(finish="stop")]
    whole = b"".join(map(event, said)) + DONE
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    pieces = [whole[a:b] for a, b in pairwise(places)]

    async def run() -> None:
        async with serving() as upstream:
            read: list[bytes] = []
            await WAYS[0](upstream.stream(*pieces), read)
            taker = Taker(most)
            await taker.take(upstream.stream(*pieces))
            assert taker.all == read == said

    asyncio.run(run())
