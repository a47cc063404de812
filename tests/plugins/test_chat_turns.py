"""One task owns a turn: what clients that leave, upstreams that die and a gateway that stops do to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from chat_kit import MINE, Kit, chat_gateway
from upstreams import DONE, Cut, Pause, chunk, event

from openclaw_plugins.chat.lanes import Breaker
from openclaw_plugins.chat.turns import Turn

HELLO: Any = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


@pytest.fixture
async def unbridged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    """One that bridges no silence: a comment begins a stream, whose status then tells of no failure any more."""
    async with chat_gateway(tmp_path, monkeypatch, keep_alive="10s") as kit:
        yield kit


async def until(condition: Callable[[], Any], within: float = 2.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


class Stream:
    """A raw client of the stream, that reads as little as a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, kit: Kit, **more: Any) -> Stream:
        port = int(kit.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        body = json.dumps({"model": "same", "messages": HELLO, "stream": True, **more}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nx-org: acme\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return cls(reader, writer)

    async def read_until(self, part: bytes) -> bytes:
        data = b""
        async with asyncio.timeout(3):
            while part not in data:
                piece = await self.reader.read(4096)
                assert piece, f"the stream ended before {part!r}: {data!r}"
                data += piece
        return data

    def leave(self) -> None:
        self.writer.transport.abort()


def json_content(line: str) -> bytes:
    """The content of one event of a stream; nothing where it is none."""
    if not line.startswith("data: {"):
        return b""
    said = json.loads(line.removeprefix("data: ")).get("choices", [{}])
    return str(said[0].get("delta", {}).get("content") or "").encode()


async def read_all(kit: Kit, **more: Any) -> tuple[int, list[str]]:
    async with (
        aiohttp.ClientSession(headers=kit.headers) as session,
        session.post(
            kit.url + "/v1/chat/completions", json={"model": "same", "messages": HELLO, "stream": True, **more}
        ) as answer,
    ):
        return answer.status, (await answer.text()).split("\n\n")


async def test_the_first_chunk_leaves_before_the_upstream_is_done(kit: Kit) -> None:
    kit.upstream.script = [event(chunk("early")), Pause(1), event(chunk(finish="stop")), DONE]
    started = time.monotonic()
    stream = await Stream.open(kit)
    await stream.read_until(b"early")
    assert time.monotonic() - started < 0.8
    await stream.read_until(b"[DONE]")
    stream.leave()


async def test_a_silent_upstream_is_bridged_by_comments(kit: Kit) -> None:
    kit.upstream.script = [event(chunk("a")), Pause(0.7), event(chunk(finish="stop")), DONE]
    _, events = await read_all(kit)
    assert 2 <= events.count(": keep-alive") <= 4
    assert events[-2:] == ["data: [DONE]", ""]


async def test_before_the_first_content_too_and_a_failure_then_costs_nothing(kit: Kit) -> None:
    kit.upstream.script = [Pause(0.5), Cut]
    status, events = await read_all(kit)
    assert status == 200
    assert events[0] == ": keep-alive"
    assert "UPSTREAM_ERROR" in events[-2]
    assert (kit.books.committed, kit.books.held) == ([], {})


@pytest.mark.parametrize("end", [[Cut], [], [event(b"{")], [event(b'{"error":{"message":"host db-1"}}'), DONE]])
async def test_a_stream_that_dies_ends_with_one_error_and_no_done(kit: Kit, end: list[Any]) -> None:
    kit.upstream.script = [event(chunk("half ")), event(chunk("a word")), *end]
    _, events = await read_all(kit, sessionId=MINE)
    assert "data: [DONE]" not in events
    *chunks, error, last = events
    assert (len(chunks), last) == (2, "")
    told = json.loads(error.removeprefix("data: "))["error"]
    assert (told["code"], told["type"], told["requestId"]) == ("UPSTREAM_ERROR", "server_error", "r-1")
    assert "db-1" not in error
    # delivered is charged, and kept as what it is
    assert (len(kit.books.committed), kit.books.held) == (1, {})
    assert kit.shelf.messages_of[-1].content == "half a word"
    assert kit.shelf.messages_of[-1].metadata["cut"] == "failed"
    async with kit.client() as client:
        stream = await client.chat.completions.create(model="same", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError):
            _ = [c async for c in stream]


@pytest.mark.parametrize("session", [None, MINE])
async def test_a_client_that_leaves_stops_the_upstream_and_pays_for_what_it_got(kit: Kit, session: str | None) -> None:
    kit.upstream.script = [event(chunk("got ")), event(chunk("this")), Pause(20)]
    stream = await Stream.open(kit, **({"sessionId": session} if session else {}))
    await stream.read_until(b"this")
    stream.leave()
    left = time.monotonic()
    await asyncio.wait_for(kit.upstream.left.wait(), 1)
    await until(lambda: kit.named.outcomes)
    assert time.monotonic() - left < 1
    assert kit.named.outcomes[0].disconnected
    assert (len(kit.books.committed), kit.books.voided, kit.books.held) == (1, [], {})
    if session:
        answer = kit.shelf.messages_of[-1]
        assert (answer.content, answer.metadata["cut"]) == ("got this", "disconnected")


async def test_a_client_that_leaves_before_content_pays_nothing(kit: Kit) -> None:
    kit.upstream.script = [Pause(20)]
    for stream in (True, False):
        client = await Stream.open(kit, stream=stream, sessionId=MINE)
        await until(lambda: kit.upstream.received)
        kit.upstream.received.clear()
        client.leave()
        await asyncio.wait_for(kit.upstream.left.wait(), 1)
        kit.upstream.left.clear()
    await until(lambda: len(kit.named.outcomes) == 2)
    assert all(outcome.disconnected for outcome in kit.named.outcomes)
    assert (kit.books.committed, kit.books.held, len(kit.books.voided)) == ([], {}, 2)
    assert kit.shelf.messages_of == []


WORDS = ["one ", "two ", "three ", "four ", "five "]


@pytest.mark.parametrize("how", ["upstream dies", "client leaves"])
@pytest.mark.parametrize("cut", range(len(WORDS) + 1))
async def test_a_cut_at_any_chunk_is_charged_once_for_what_was_delivered(kit: Kit, cut: int, how: str) -> None:
    opening = event(chunk(None, choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]))
    sent = [opening, *(event(chunk(word)) for word in WORDS[:cut])]
    kit.upstream.script = [*sent, Cut] if how == "upstream dies" else [*sent, Pause(20)]
    stream = await Stream.open(kit, sessionId=MINE)
    if how == "client leaves":
        await until(lambda: kit.upstream.received)
        if cut:
            await stream.read_until(WORDS[cut - 1].encode())
        stream.leave()
    else:
        await stream.read_until(b"UPSTREAM_ERROR")
        stream.leave()
    await until(lambda: kit.named.outcomes)
    charged = 1 if cut else 0
    assert (len(kit.books.committed), len(kit.books.voided), kit.books.held) == (charged, 1 - charged, {})
    answers = [message.content for message in kit.shelf.messages_of if message.role == "assistant"]
    assert answers == (["".join(WORDS[:cut])] if cut else [])


SMALL = [event(chunk("one ")), event(chunk("two")), event(chunk(finish="stop")), DONE]
WHOLE = b"".join(SMALL)


async def test_a_cut_at_any_byte_is_charged_once_for_what_was_delivered(unbridged: Kit) -> None:
    """Content counts once its event is whole; a stream that lost no more than the end of `[DONE]` is still cut."""
    kit = unbridged
    ends = [sum(map(len, SMALL[:number])) for number in (1, 2)]
    lane = kit.gateway.plugin("chat")._models._candidates["same"].lane
    for at in range(len(WHOLE)):
        kit.upstream.script = [WHOLE[:at], Cut] if at else [Cut]
        lane.breaker = Breaker(20, 1, time.monotonic)  # so many faults in a row would rest it
        before = len(kit.books.committed), len(kit.shelf.messages_of)
        status, events = await read_all(kit, sessionId=MINE)
        told = b"".join(json_content(line) for line in events).decode()
        answers = [m for m in kit.shelf.messages_of[before[1] :] if m.role == "assistant"]
        charged = len(kit.books.committed) - before[0]
        assert kit.books.held == {}, at
        assert told == "".join(("one ", "two")[: sum(at >= end for end in ends)]), at
        assert ([m.content for m in answers], charged) == (([told], 1) if told else ([], 0)), at
        assert "data: [DONE]" not in events, at
        error = json.loads(events[-2].removeprefix("data: ") if told else events[0])["error"]
        assert (status, error["code"], error["type"]) == (200 if told else 502, "UPSTREAM_ERROR", "server_error"), at


@pytest.mark.parametrize("sent", [2, 3], ids=["before the finish", "after the finish"])
async def test_a_client_that_leaves_between_the_last_word_and_done_is_charged_once(kit: Kit, sent: int) -> None:
    """All was delivered, and is kept; that the answer was whole is not said of it, for nobody said so."""
    kit.upstream.script = [*SMALL[:sent], Pause(20), *SMALL[sent:]]
    stream = await Stream.open(kit, sessionId=MINE)
    await stream.read_until((b"", b"", b"two", b'"stop"')[sent])
    stream.leave()
    await asyncio.wait_for(kit.upstream.left.wait(), 1)
    await until(lambda: kit.named.outcomes)
    (outcome,) = kit.named.outcomes
    answer = kit.shelf.messages_of[-1]
    assert (outcome.disconnected, answer.content, answer.metadata["cut"]) == (True, "one two", "disconnected")
    assert (len(kit.books.committed), len(kit.books.voided), kit.books.held) == (1, 0, {})


async def test_a_client_that_leaves_while_its_turn_is_committed_is_charged_once(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream has said `[DONE]`, the client has not been told: the commit goes on, and what it keeps is whole."""
    committing, noticed, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    append, stop = kit.shelf.append, Turn.stop

    async def slow(*given: Any, **more: Any) -> Any:
        committing.set()
        await go_on.wait()
        return await append(*given, **more)

    def told(turn: Turn, reason: Any) -> None:
        stop(turn, reason)
        noticed.set()

    monkeypatch.setattr(kit.shelf, "append", slow)
    monkeypatch.setattr(Turn, "stop", told)
    kit.upstream.script = SMALL
    stream = await Stream.open(kit, sessionId=MINE)
    heard = await stream.read_until(b'"stop"')
    await asyncio.wait_for(committing.wait(), 2)
    stream.leave()
    await asyncio.wait_for(noticed.wait(), 2)
    assert b"[DONE]" not in heard
    assert (kit.books.committed, len(kit.books.held)) == ([], 1)
    go_on.set()
    await until(lambda: kit.named.outcomes)
    answer = kit.shelf.messages_of[-1]
    assert (answer.content, answer.metadata["finishReason"], answer.metadata.get("cut")) == ("one two", "stop", None)
    assert (len(kit.books.committed), len(kit.books.voided), kit.books.held) == (1, 0, {})


async def test_many_clients_that_leave_at_any_moment_leave_no_charge_open(kit: Kit) -> None:
    kit.upstream.script = [part for i in range(30) for part in (event(chunk(f"{i} ")), Pause(0.003))] + [
        event(chunk(finish="stop")),
        DONE,
    ]

    async def visit(delay: float) -> None:
        stream = await Stream.open(kit, sessionId=MINE)
        await asyncio.sleep(delay)
        stream.leave()

    count = 60
    await asyncio.gather(*(visit(i * 0.004) for i in range(count)))
    turns = kit.gateway.plugin("chat")._turns
    await until(lambda: kit.named.outcomes and not kit.books.held and not turns._running, 5)
    answers = [m for m in kit.shelf.messages_of if m.role == "assistant"]
    # a charge stands exactly where a turn was kept
    assert len(kit.books.committed) == len(answers)
    assert len(set(kit.books.committed)) == len(kit.books.committed)
    assert not set(kit.books.committed) & set(kit.books.voided)


@pytest.mark.parametrize(("size", "most"), [(60_000, 400), (1_000_000, 40)])
async def test_a_client_that_reads_nothing_is_given_up_and_holds_the_upstream_back(
    kit: Kit, size: int, most: int
) -> None:
    """Bounded queues, however large the chunks are, and not the whole answer in memory; a part is in the kernel's."""
    big = event(chunk("x" * size))
    sent = 0

    def script(_: Any) -> Any:
        def parts() -> Any:
            nonlocal sent
            for _ in range(2000):
                sent += 1
                yield big

        return parts()

    kit.upstream.script = script
    stream = await Stream.open(kit, sessionId=MINE)
    await until(lambda: kit.named.outcomes, 8)
    assert kit.named.outcomes[0].disconnected
    assert sent < most
    assert (len(kit.books.committed), kit.books.held) == (1, {})
    answer = kit.shelf.messages_of[-1]
    assert answer.metadata["cut"] == "slow_reader"
    assert 0 < len(answer.content) <= sent * size
    stream.leave()


async def test_done_only_after_the_commit(kit: Kit) -> None:
    kit.shelf.down = True
    status, events = await read_all(kit, model="echo", sessionId=MINE)
    assert status == 200
    assert "data: [DONE]" not in events
    assert "SERVICE_UNAVAILABLE" in events[-2]
    async with kit.client() as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="echo", messages=HELLO, extra_body={"sessionId": MINE})
    assert caught.value.status_code == 503
    assert kit.books.committed == []


async def test_a_gateway_that_stops_lets_a_turn_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        kit.upstream.script = [event(chunk("a")), Pause(0.5), event(chunk(finish="stop")), DONE]
        stream = await Stream.open(kit, sessionId=MINE)
        await stream.read_until(b'"a"')
        rest = asyncio.create_task(stream.read_until(b"[DONE]"))
    await rest
    stream.leave()
    assert kit.shelf.messages_of[-1].metadata["finishReason"] == "stop"
    assert (len(kit.books.committed), kit.books.held) == (1, {})


async def test_what_still_runs_at_the_drain_deadline_is_accounted_for_as_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chat_gateway(tmp_path, monkeypatch, drain_timeout="1s") as kit:
        kit.upstream.script = [event(chunk("so far")), Pause(20)]
        stream = await Stream.open(kit, sessionId=MINE)
        await stream.read_until(b"so far")
    assert b"[DONE]" not in await stream.reader.read()
    stream.leave()
    answer = kit.shelf.messages_of[-1]
    assert (answer.content, answer.metadata["cut"]) == ("so far", "shutdown")
    assert (len(kit.books.committed), kit.books.held) == (1, {})
