"""Where a turn and its connection meet: chunks leave at once while the connection keeps up, and in order always."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from openclaw_plugins.chat.outlet import Outlet


class Connection:
    """Writes what it gets into `written`; may be slow, or broken."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.written: list[bytes] = []
        self.silences = 0
        self.room = asyncio.Event()
        self.room.set()
        self.fault: Exception | None = None

    async def send(self, chunks: Sequence[bytes]) -> None:
        await self.room.wait()
        assert self.pass_on(chunks)

    def pass_on(self, chunks: Sequence[bytes]) -> bool:
        if self.fault is not None:
            raise self.fault
        if not self.room.is_set():
            return False
        self.written.append(b"".join(chunks))
        return True

    async def listen(self, patience: float = 5) -> None:
        chunks = await self.outlet.chunks(patience)
        while chunks is not None:
            if chunks:
                await self.send(chunks)
            else:
                self.silences += 1
            chunks = await self.outlet.chunks(patience, self.pass_on)


async def say(outlet: Outlet, *chunks: bytes) -> None:
    for chunk in chunks:
        if not outlet.put(chunk):
            await outlet.room()
    outlet.pass_on()


@pytest.fixture
def recorded() -> list[bytes]:
    return []


@pytest.fixture
def outlet(recorded: list[bytes]) -> Outlet:
    return Outlet(recorded.append)


async def test_a_chunk_has_left_when_pass_on_returns(outlet: Outlet, recorded: list[bytes]) -> None:
    connection = Connection(outlet)
    listening = asyncio.create_task(connection.listen())
    await say(outlet, b"first ")
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the first is the connection's to send: the status goes before it
    await say(outlet, b"a", b"b ")
    assert connection.written == [b"first ", b"ab "]
    await say(outlet, b"c")
    assert connection.written[2:] == [b"c"]
    outlet.end()
    await listening
    assert recorded == [b"first ", b"a", b"b ", b"c"]


async def test_what_has_to_wait_is_finished_by_the_connection_and_nothing_overtakes_it(outlet: Outlet) -> None:
    connection = Connection(outlet)
    listening = asyncio.create_task(connection.listen())
    await say(outlet, b"0")
    await asyncio.sleep(0.01)
    connection.room.clear()
    for number in range(1, 6):
        await say(outlet, b"%d" % number)
        await asyncio.sleep(0)
    assert connection.written == [b"0"]
    connection.room.set()
    await asyncio.sleep(0.01)
    await say(outlet, b"6")
    outlet.settle()
    outlet.end()
    await listening
    assert b"".join(connection.written) == b"0123456"
    assert connection.silences == 0


async def test_a_connection_far_behind_makes_the_turn_wait(outlet: Outlet) -> None:
    connection = Connection(outlet)
    listening = asyncio.create_task(connection.listen())
    await say(outlet, b"0")
    await asyncio.sleep(0.01)
    connection.room.clear()
    talking = asyncio.create_task(say(outlet, *[b"%d," % number for number in range(500)]))
    await asyncio.sleep(0.05)
    assert not talking.done()
    connection.room.set()
    await talking
    outlet.end()
    await listening
    assert b"".join(connection.written) == b"0" + b"".join(b"%d," % number for number in range(500))


async def test_a_send_that_fails_is_the_connections_fault_and_not_the_turns(outlet: Outlet) -> None:
    connection = Connection(outlet)
    listening = asyncio.create_task(connection.listen())
    await say(outlet, b"0")
    await asyncio.sleep(0.01)
    connection.fault = RuntimeError("a hook of a plugin")
    await say(outlet, b"1")
    with pytest.raises(RuntimeError, match="a hook of a plugin"):
        await listening


async def test_chunks_that_flow_are_no_silence(outlet: Outlet) -> None:
    connection = Connection(outlet)
    listening = asyncio.create_task(connection.listen(patience=0.2))
    for _ in range(12):
        await say(outlet, b".")
        await asyncio.sleep(0.05)
    assert connection.silences == 0
    await asyncio.sleep(0.5)
    assert connection.silences >= 1
    outlet.end()
    await listening


async def test_what_is_dropped_is_not_accounted_for(outlet: Outlet, recorded: list[bytes]) -> None:
    assert outlet.put(b"unread")
    outlet.drop()
    outlet.settle()
    outlet.end()
    assert await outlet.chunks(1) is None
    assert recorded == []
    assert not outlet.delivered


async def test_what_waits_at_the_end_is_accounted_for_once(outlet: Outlet, recorded: list[bytes]) -> None:
    await say(outlet, b"late")
    outlet.settle()
    outlet.end()
    assert await outlet.chunks(1) == [b"late"]
    assert recorded == [b"late"]
