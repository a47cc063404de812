"""A turn in the task of its connection: stopped or cancelled, it has ended when that goes on, and was told of once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from openclaw_gateway.api import ModelUse
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.openings import Opened
from openclaw_plugins.chat.turns import Turn, Turns


class Asked:
    """A model that answers when it is let."""

    def __init__(self) -> None:
        self.use = ModelUse("mock", streamed=False)
        self.let = asyncio.Event()
        self.cancelled = False

    async def complete(self) -> bytes:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return b"{}"


class Kept:
    """A record that keeps nothing."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.voided = 0

    def add(self, piece: bytes) -> None:
        self.said.append(piece)

    def commits(self, *, at_once: bool) -> bool:
        return False

    async def void(self) -> None:
        self.voided += 1


class Alone:
    def __init__(self) -> None:
        self.asked: Any = Asked()
        self.kept: Any = Kept()
        self.turn = Turn(self.asked, self.kept, logging.getLogger("test"), "r")
        self.turns = Turns()
        self.told: list[Turn] = []
        self.turns.take(self.turn, self.told.append)
        self.went_on = False

    async def connection(self) -> None:
        await self.turn.run()
        await asyncio.sleep(0)
        self.went_on = True


@pytest.fixture
async def alone() -> Alone:
    return Alone()


async def test_it_answers(alone: Alone) -> None:
    alone.asked.let.set()
    await alone.connection()
    assert (alone.turn.body, alone.turn.delivered, alone.turn.failure) == (b"{}", True, None)
    assert (alone.kept.said, alone.kept.voided, alone.told) == ([b"{}"], 0, [alone.turn])


@pytest.mark.parametrize("when", ["before it asks", "while it asks"])
async def test_a_client_that_leaves_stops_it_and_its_connection_goes_on(alone: Alone, when: str) -> None:
    if when == "before it asks":
        alone.turn.leave()
    connection = asyncio.create_task(alone.connection())
    await asyncio.sleep(0)
    alone.turn.leave()
    await asyncio.wait_for(connection, 1)
    assert alone.went_on, "the cancellation was the turn's, and is over"
    assert connection.cancelling() == 0
    assert (alone.turn.stopped, alone.turn.delivered, alone.kept.voided) == ("disconnected", False, 1)
    assert alone.asked.cancelled is (when == "while it asks")
    assert alone.told == [alone.turn]


async def test_who_cancels_the_connection_ends_both(alone: Alone) -> None:
    connection = asyncio.create_task(alone.connection())
    await asyncio.sleep(0)
    connection.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connection
    assert alone.asked.cancelled
    assert (alone.turn.finished, alone.went_on, alone.told) == (True, False, [alone.turn])


async def test_what_still_runs_at_the_end_is_told_that_the_gateway_stops(alone: Alone) -> None:
    async with alone.turns.supervised():
        connection = asyncio.create_task(alone.connection())
        await asyncio.sleep(0)
    assert alone.turn.finished
    await asyncio.wait_for(connection, 1)
    assert alone.turn.failure is not None
    assert (alone.turn.failure.status, alone.told) == (503, [alone.turn])


class Counting:
    """A stream that is an iterator, and no generator: of somebody else's provider."""

    def __init__(self, chunks: int) -> None:
        self.left = chunks

    def __aiter__(self) -> Counting:
        return self

    def __anext__(self) -> asyncio.Future[bytes]:
        self.left -= 1
        coming = asyncio.get_running_loop().create_future()
        if self.left < 0:
            coming.set_exception(StopAsyncIteration())
        else:
            coming.set_result(b"%d" % self.left)
        return coming


class Streaming(Attempts):
    def __init__(self, rest: Any) -> None:
        self.use = ModelUse("mock", streamed=True)
        self._rest = rest
        self._operation = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        lane: Any = SimpleNamespace(named=lambda chunk: b"<%b>" % chunk)
        opened = Opened(lane, self._rest)
        opened.opening.append(b"<first>")
        yield opened


async def _generated(chunks: int) -> AsyncIterator[bytes]:
    async for chunk in Counting(chunks):
        yield chunk


class Handing(Counting):
    """One that hands its chunks on, which is asked for nothing else."""

    def __anext__(self) -> asyncio.Future[bytes]:
        raise AssertionError("it can hand on")

    async def hand_on(self, put: Any, pass_on: Any, room: Any) -> None:
        while self.left:
            self.left -= 1
            if put(b"%d" % self.left):
                pass_on()
            else:
                await room()


@pytest.mark.parametrize("kind", [_generated, Counting, Handing], ids=["generator", "iterator", "hands on"])
async def test_a_stream_of_any_kind_is_passed_on_whole(kind: Any) -> None:
    count = 200  # more than may wait for a connection
    kept: Any = Kept()
    turn = Turn(Streaming(kind(count)), kept, logging.getLogger(), "r")
    turn.start()
    heard: list[bytes] = []
    while (chunks := await turn.outlet.chunks(1)) is not None:
        heard += chunks
    assert heard == [b"<first>", *(b"<%d>" % number for number in reversed(range(count)))]
    assert kept.said == heard
    assert turn.delivered
