"""The way out of the server: one write for a small answer, and never a header that is two."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from openclaw_gateway.serving.cycle import Cycle


class Pipe:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True


class Exchange:
    def __init__(self, method: str = "POST", *, keep_alive: bool = True) -> None:
        self.pipe: Any = Pipe()
        self.tasks: set[asyncio.Task[None]] = set()
        self.ended = 0
        scope: Any = {"method": method}
        flow = FlowControl(self.pipe)
        logger = logging.getLogger("test")
        date = [(b"date", b"today")]
        self.cycle = Cycle(
            scope, self.pipe, flow, logger, date, self._count, self.tasks, expects=False, keep_alive=keep_alive
        )
        self.send = self.cycle.send

    def _count(self) -> None:
        self.ended += 1

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


LENGTH = (b"content-length", b"2")


async def test_a_whole_answer_is_one_write() -> None:
    it = Exchange()
    await it.start(LENGTH)
    assert it.pipe.writes == []
    await it.body(b"ok")
    assert it.pipe.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\nok"]
    assert (it.ended, it.pipe.closed, it.cycle.response_complete) == (1, False, True)


async def test_a_stream_is_chunked_and_its_first_piece_brings_the_head() -> None:
    it = Exchange()
    await it.start()
    for data in (b"one", b"", b"three"):
        await it.body(data, more=True)
    await it.body(b"")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n"
    assert it.pipe.writes == [head + b"3\r\none\r\n", b"5\r\nthree\r\n", b"0\r\n\r\n"]


@pytest.mark.parametrize(
    ("method", "status", "headers", "sent"),
    [
        ("HEAD", 200, [LENGTH], b"content-length: 2\r\n\r\n"),
        ("GET", 204, [], b"date: today\r\n\r\n"),
        ("GET", 304, [], b"date: today\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_have_none(method: str, status: int, headers: Any, sent: bytes) -> None:
    it = Exchange(method)
    await it.start(*headers, status=status)
    await it.body(b"ok" if method == "HEAD" else b"")
    assert len(it.pipe.writes) == 1
    assert it.pipe.writes[0].endswith(sent)


async def test_a_length_in_capitals_is_a_length() -> None:
    it = Exchange()
    await it.start((b"Content-Type", b"text/plain"), (b"Content-Length", b"2"))
    await it.body(b"ok")
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n"
    assert it.pipe.writes == [head + b"ok"]


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_a_connection_that_ends_says_so_once(keep_alive: bool) -> None:
    it = Exchange(keep_alive=keep_alive)
    await it.start(LENGTH, *([(b"connection", b"Close")] if keep_alive else []))
    await it.body(b"ok")
    assert it.pipe.writes[0].lower().count(b"connection: close\r\n") == 1
    assert it.pipe.closed


@pytest.mark.parametrize(
    "value", [b"a\r\nx-evil: 1", b"a\nb", b"a\rb", b"a\x00b", b"a\x7f", b"\r\n\r\nHTTP/1.1 200 OK"]
)
@pytest.mark.parametrize("in_name", [False, True])
async def test_a_header_that_would_be_more_than_one_is_never_written(value: bytes, in_name: bool) -> None:
    it = Exchange()
    with pytest.raises(RuntimeError, match="header"):
        await it.start((value, b"a") if in_name else (b"x-a", value))
    assert it.pipe.writes == []


@pytest.mark.parametrize("body", [b"o", b"okay"])
async def test_an_answer_of_another_length_than_it_says_is_cut(body: bytes) -> None:
    it = Exchange()
    await it.start(LENGTH)
    with pytest.raises(RuntimeError, match="content-length"):
        await it.body(body)
    assert (it.ended, it.cycle.response_complete) == (0, False)


async def test_what_comes_in_no_order_is_refused() -> None:
    it = Exchange()
    with pytest.raises(RuntimeError):
        await it.body(b"ok")
    await it.start(LENGTH)
    with pytest.raises(RuntimeError):
        await it.start(LENGTH)
    await it.body(b"ok")
    with pytest.raises(RuntimeError):
        await it.body(b"ok")


async def test_what_is_whole_is_one_write_without_a_wait() -> None:
    it = Exchange()
    assert it.cycle.whole(200, [LENGTH], b"ok")
    assert it.pipe.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\n\r\nok"]
    assert (it.ended, it.cycle.response_complete) == (1, True)
    assert not it.cycle.whole(200, [LENGTH], b"ok")
    assert len(it.pipe.writes) == 1


@pytest.mark.parametrize("why", ["it does not read", "a header that cannot be"])
async def test_what_cannot_be_written_at_once_is_left_to_send(why: str) -> None:
    it = Exchange()
    if why == "it does not read":
        it.cycle.flow.pause_writing()
    headers = [LENGTH] if why == "it does not read" else [LENGTH, (b"x-a", b"a\r\nb")]
    assert not it.cycle.whole(200, headers, b"ok")
    assert (it.pipe.writes, it.cycle.response_started) == ([], False)


async def test_pieces_leave_at_once_where_they_can() -> None:
    it = Exchange()

    def refused() -> bool:
        return not it.cycle.takes() and not it.cycle.piece(b"none")

    assert refused(), "it has not begun"
    await it.start()
    assert it.cycle.takes()
    assert it.cycle.piece(b"one")
    it.cycle.flow.pause_writing()
    assert refused(), "the client does not read"
    it.cycle.flow.resume_writing()
    await it.body(b"")
    assert refused(), "it has ended"
    assert it.pipe.writes[1:] == [b"0\r\n\r\n"]
    assert it.pipe.writes[0].endswith(b"3\r\none\r\n")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raises", "Exception in ASGI application"),
        ("raises in its answer", "Exception in ASGI application"),
        ("returns", "without a whole response"),
        ("answers", ""),
        ("answers and raises", "Exception in ASGI application"),
        ("has nobody to answer", ""),
    ],
)
async def test_what_an_application_leaves_undone_ends_the_connection(
    how: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    it = Exchange()

    async def application() -> None:
        if how == "has nobody to answer":
            it.cycle.disconnected = True
        if "answer" in how and it.cycle.disconnected is False:
            await it.start(LENGTH)
        if how.startswith("answers"):
            await it.body(b"ok")
        if "raises" in how:
            raise RuntimeError("of the application")

    task = asyncio.create_task(application())
    it.tasks.add(task)
    await asyncio.wait([task])
    it.cycle.over(task)
    assert it.tasks == set()
    assert (told in caplog.text) if told else not caplog.text
    whole = how.startswith("answers")
    assert it.pipe.closed is not (whole or it.cycle.disconnected)
    if how in ("raises", "returns"):
        (answer,) = it.pipe.writes
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b'"code":"INTERNAL_SERVER_ERROR"' in answer
        assert b"connection: close" in answer
    else:
        assert len(it.pipe.writes) == whole


@pytest.mark.parametrize("act", [lambda it: it.start(LENGTH), lambda it: it.body(b"ok")], ids=["start", "body"])
async def test_nothing_is_written_to_a_client_that_left(act: Callable[[Exchange], Any]) -> None:
    it = Exchange()
    it.cycle.disconnected = True
    await act(it)
    assert it.pipe.writes == []


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    it = Exchange()
    await it.start()
    it.cycle.flow.pause_writing()
    waiting = asyncio.create_task(it.body(b"x", more=True))
    await asyncio.sleep(0)
    assert not it.pipe.writes
    it.cycle.flow.resume_writing()
    await waiting
    assert len(it.pipe.writes) == 1


async def test_receive_waits_for_what_comes_and_then_for_the_end() -> None:
    it = Exchange()
    waiting = [asyncio.create_task(it.cycle.receive()) for _ in range(2)]
    await asyncio.sleep(0)
    it.cycle.body += b"ab"
    it.cycle.set()
    told = await asyncio.wait_for(waiting[0], 1)
    assert told == {"type": "http.request", "body": b"ab", "more_body": True}
    assert not waiting[1].done(), "it is told once"
    it.cycle.body += b"c"
    it.cycle.more_body = False
    it.cycle.set()
    assert await asyncio.wait_for(waiting[1], 1) == {"type": "http.request", "body": b"c", "more_body": False}
    left = [asyncio.create_task(it.cycle.receive()) for _ in range(3)]
    await asyncio.sleep(0)
    left[2].cancel()  # who does not wait any more keeps nobody waiting
    await asyncio.sleep(0)
    assert not any(task.done() for task in left[:2])
    await it.start(LENGTH)
    await it.body(b"ok")
    assert await asyncio.gather(*left[:2]) == [{"type": "http.disconnect"}] * 2
    assert await it.cycle.receive() == {"type": "http.disconnect"}


async def test_a_lost_connection_ends_every_receive() -> None:
    it = Exchange()
    waiting = [asyncio.create_task(it.cycle.receive()) for _ in range(2)]
    await asyncio.sleep(0)
    it.cycle.disconnected = True
    it.cycle.message_event.set()  # as uvicorn does
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [{"type": "http.disconnect"}] * 2
