"""The socket in use: turns, cancel, resume, many sockets of one session, slow readers, credentials that end, a stop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from socket_kit import Place, closed, frame, place, raw, said, say, slowly
from upstreams import Cut, chunk, event
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from openclaw_gateway.api import StoreUnavailable


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path, tier="teams") as found:
        yield found


async def history(here: Place, session: str) -> list[tuple[str, str]]:
    _, page = await here.ask("GET", f"/api/v1/sessions/{session}/messages?limit=200")
    return [(message["role"], message["content"]) for message in page["messages"]]


async def all_frames(socket: ClientConnection) -> list[dict[str, Any]]:
    """Read until the server or the test closes the socket."""
    found = []
    try:
        async for text in socket:
            found.append(json.loads(text))
    except ConnectionClosed:
        pass
    return found


async def until(condition: Any, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


# --- turns ----------------------------------------------------------------------------------------


async def test_turns_run_at_the_same_time(here: Place) -> None:
    here.upstream.script = slowly(words=10, pause=0.1)
    async with here.connect(await here.session()) as socket:
        started = time.monotonic()
        for id in "abc":
            await say(socket, "message", id=id, content="go", model="slow")
        answers = [await said(socket, "message") for _ in "abc"]
        assert time.monotonic() - started < 2.5  # one after the other they take 3 s
    assert {answer["ref"] for answer in answers} == set("abc")


async def test_more_turns_than_may_run_wait_in_line(tmp_path: Path) -> None:
    edit = {"plugins.realtime.turns": 1, "plugins.realtime.waiting": 2}
    async with place(tmp_path, tier="teams", edit=edit) as here:
        here.upstream.script = slowly(words=2)
        async with here.connect(await here.session()) as socket:
            for id in "abcd":
                await say(socket, "message", id=id, content=id, model="slow")
            refused = await said(socket, "error")
            assert (refused["ref"], refused["code"], refused["retryable"]) == ("d", "CONCURRENCY_EXCEEDED", True)
            assert [(await said(socket, "message"))["ref"] for _ in "abc"] == ["a", "b", "c"]


async def test_the_id_of_a_running_turn_is_taken(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        for _ in range(2):
            await say(socket, "message", id="same", content="go", model="slow")
        assert (await said(socket, "error"))["code"] == "CONFLICT"


async def test_cancel_stops_a_stream_and_keeps_what_was_said(here: Place) -> None:
    session = await here.session()
    here.upstream.script = slowly(words=500)
    async with here.connect(session) as socket:
        await say(socket, "message", id="long", content="go", model="slow", stream=True)
        heard = [(await said(socket, "stream"))["chunk"] for _ in range(3)]
        await say(socket, "cancel", ref="long")
        while not (piece := await said(socket, "stream"))["done"]:
            heard.append(piece["chunk"])
        answer = await said(socket, "message")
    assert answer["metadata"]["cut"] == "cancelled"
    assert answer["content"] == "".join(heard)
    assert await history(here, session) == [("user", "go"), ("assistant", "".join(heard))]
    async with asyncio.timeout(5):
        await here.upstream.left.wait()  # the upstream was told too


async def test_cancel_before_anything_was_said_costs_nothing(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        await say(socket, "message", id="whole", content="go", model="slow")
        await asyncio.sleep(0.1)
        await say(socket, "cancel", ref="whole")
        error = await said(socket, "error")
    assert (error["code"], error["ref"]) == ("CANCELLED", "whole")
    assert await history(here, session) == []
    _, usage = await here.ask("GET", "/api/v1/usage")
    assert next(row["used"] for row in usage["limits"] if row["name"] == "quota.messages") == 0


async def test_a_waiting_turn_can_be_cancelled(tmp_path: Path) -> None:
    async with (
        place(tmp_path, tier="teams", edit={"plugins.realtime.turns": 1}) as here,
        here.connect(await here.session()) as socket,
    ):
        await say(socket, "message", id="a", content="a", model="slow")
        await say(socket, "message", id="b", content="b", model="slow")
        await say(socket, "cancel", ref="b")
        error = await said(socket, "error")
        assert (error["code"], error["ref"]) == ("CANCELLED", "b")
        assert (await said(socket, "message"))["ref"] == "a"


async def test_who_is_over_the_rate_can_still_stop_a_turn_but_once_each(tmp_path: Path) -> None:
    tier = (Path(__file__).parents[2] / "tiers" / "teams.toml").read_text()
    few = tier.replace("limit = 1_000\n", "limit = 2\n", 1)
    assert "every WebSocket message from a client\nlimit = 2\n" in few
    edit = {"plugins.realtime.turns": 1}
    async with place(tmp_path, tier="teams", edit=edit, tiers={"teams": few}) as here:
        here.upstream.script = slowly(words=500)
        async with here.connect(await here.session()) as socket:
            await say(socket, "message", id="runs", content="go", model="slow", stream=True)
            await said(socket, "stream")
            await say(socket, "message", id="waits", content="go", model="slow")
            await say(socket, "resume", lastSeq=0)
            assert (await said(socket, "error"))["code"] == "RATE_LIMIT_EXCEEDED"

            await say(socket, "cancel", ref="waits")
            error = await said(socket, "error")
            assert (error["code"], error["ref"]) == ("CANCELLED", "waits")
            for _ in range(2):  # the second, of what is cut already, is a frame like every other
                await say(socket, "cancel", ref="runs")
            await say(socket, "cancel", ref="nothing")
            answers = [await said(socket, "error", "message") for _ in range(3)]
    codes = sorted((answer.get("code", "(answered)"), answer.get("ref", "")) for answer in answers)
    assert codes == [("(answered)", "runs"), ("RATE_LIMIT_EXCEEDED", "nothing"), ("RATE_LIMIT_EXCEEDED", "runs")]
    assert next(a for a in answers if a["type"] == "message")["metadata"]["cut"] == "cancelled"


async def test_an_upstream_that_dies_is_told_and_never_done(here: Place) -> None:
    session = await here.session()
    here.upstream.script = [event(chunk("half ")), event(chunk("an answer")), Cut]
    async with here.connect(session) as socket:
        await say(socket, "message", id="m", content="go", model="slow", stream=True)
        frames = []
        while not frames or frames[-1]["type"] != "message":
            frames.append(await said(socket, "stream", "error", "message"))
    assert not any(frame.get("done") for frame in frames)
    error = next(frame for frame in frames if frame["type"] == "error")
    assert (error["code"], error["ref"], error["retryable"]) == ("UPSTREAM_ERROR", "m", True)
    assert frames[-1]["metadata"]["cut"] == "failed"


async def test_a_turn_is_finished_and_stored_though_its_socket_is_gone(here: Place) -> None:
    session = await here.session()
    here.upstream.script = slowly(words=10)
    async with here.connect(session) as socket:
        await say(socket, "message", content="go", model="slow", stream=True)
        seq = (await said(socket, "stream"))["seq"]
        socket.transport.abort()
    await until(lambda: here.metric("websocket_connections_active", tier="teams") == 0)
    async with asyncio.timeout(5):
        while not (kept := await history(here, session)):
            await asyncio.sleep(0.05)
    assert [role for role, _ in kept] == ["user", "assistant"]
    async with here.connect(session) as socket:
        await say(socket, "resume", lastSeq=seq)
        rest = []
        while not rest or rest[-1]["type"] != "message":
            rest.append(await said(socket, "stream", "message"))
    assert [frame["seq"] for frame in rest] == list(range(seq + 1, seq + 1 + len(rest)))
    assert rest[-1]["content"] == kept[-1][1]


async def test_a_quota_that_is_used_up_is_told_and_what_is_left_is_warned_of(tmp_path: Path) -> None:
    tier = (Path(__file__).parents[2] / "tiers" / "teams.toml").read_text()
    assert "limit = 100_000" in tier
    async with (
        place(tmp_path, tier="teams", tiers={"teams": tier.replace("limit = 100_000", "limit = 3")}) as here,
        here.connect(await here.session()) as socket,
    ):
        for _ in range(2):
            await say(socket, "message", content="go")
            await said(socket, "message")
        await say(socket, "message", content="go")
        warning = await said(socket, "quota_warning")
        assert (warning["limit"]["name"], warning["limit"]["used"]) == ("quota.messages", 3)
        await said(socket, "message")
        await say(socket, "message", id="over", content="go")
        error = await said(socket, "error")
    assert (error["code"], error["ref"], error["retryable"]) == ("QUOTA_EXCEEDED", "over", False)
    assert error["limit"]["name"] == "quota.messages"


async def test_a_session_that_ends_is_told(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        assert (await here.ask("DELETE", f"/api/v1/sessions/{session}"))[0] == 204
        await say(socket, "message", id="m", content="go")
        error = await said(socket, "error")
    assert (error["code"], error["ref"]) == ("NOT_FOUND", "m")


# --- events ---------------------------------------------------------------------------------------


async def test_every_socket_of_a_session_sees_the_same_order(here: Place) -> None:
    session = await here.session()
    here.upstream.script = slowly(words=5)
    async with here.connect(session) as one, here.connect(session) as two, here.connect(await here.session()) as other:
        both = [asyncio.create_task(all_frames(socket)) for socket in (one, two, other)]
        for i in range(4):
            await say((one, two)[i % 2], "message", id=f"m{i}", content="go", model="slow", stream=i < 2)
        await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "posted"})
        completion = {"model": "echo", "messages": [{"role": "user", "content": "by REST"}], "sessionId": session}
        assert (await here.ask("POST", "/v1/chat/completions", completion))[0] == 200
        await until(lambda: here.metric("messages_total", tier="teams", direction="outbound") == 5)
        await asyncio.sleep(0.2)
        for socket in (one, two, other):
            await socket.close()
        first, second, third = [[f for f in await task if "seq" in f] for task in both]
    assert first == second
    assert third == []
    numbers = [frame["seq"] for frame in first]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    stored = [frame["content"] for frame in first if frame["type"] == "message"]
    assert len(stored) == 4 + 1 + 2
    assert {"posted", "by REST"} <= set(stored)


async def test_resume_sends_what_was_missed_once_and_in_order(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        seqs = []
        for i in range(3):
            await say(socket, "message", content=f"m{i}")
            seqs.append((await said(socket, "message"))["seq"])
    async with here.connect(session) as socket:
        await say(socket, "resume", lastSeq=seqs[0])
        assert [(await said(socket, "message"))["seq"] for _ in range(2)] == seqs[1:]
        await say(socket, "message", content="live")
        assert (await said(socket, "message"))["seq"] == seqs[-1] + 1
        await say(socket, "resume", lastSeq=seqs[0])
        assert (await said(socket, "error", "message"))["code"] == "BAD_REQUEST"


async def test_resume_in_the_handshake_comes_before_anything_live(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        await say(socket, "message", content="one two three", stream=True)
        last = (await said(socket, "message"))["seq"]
    async with here.connect(session, query={"lastSeq": str(last - 3)}) as socket:
        await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "live"})
        seqs = [(await said(socket, "message", "stream"))["seq"] for _ in range(4)]
        assert seqs == [last - 2, last - 1, last, last + 1]


@pytest.mark.parametrize("seq", [0, 1, 2**62])
async def test_resume_says_so_when_it_cannot(here: Place, seq: int) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        await say(socket, "message", content="go")
        await said(socket, "message")
    async with here.connect(session) as socket:
        await say(socket, "resume", lastSeq=seq)
        assert (await said(socket, "error"))["code"] == "RESUME_UNAVAILABLE"
        await say(socket, "message", content="goes on")
        await said(socket, "message")


async def test_a_burst_is_served_however_fast_it_came(tmp_path: Path) -> None:
    async with (
        place(tmp_path, tier="government") as here,
        raw(here, f"/ws?sessionId={await here.session()}", f"X-API-Key: {here.key}") as client,
    ):
        client.writer.write(frame(1, b'{"type":"ping"}') * 3000)
        async with asyncio.timeout(10):
            for _ in range(3000):
                assert await client.frame() == (1, b'{"type":"pong"}')


# --- slow readers ---------------------------------------------------------------------------------


async def test_a_reader_that_stalls_is_closed_and_costs_a_bounded_queue(tmp_path: Path) -> None:
    edit = {"plugins.realtime.stall": "1s", "plugins.realtime.queue_bytes": "200KB"}
    async with place(tmp_path, tier="government", edit=edit) as here:
        session = await here.session()
        target = f"/ws?sessionId={session}"
        async with raw(here, target, f"X-API-Key: {here.key}", limit=1024) as stalled:
            assert stalled.status == 101
            await until(lambda: here.metric("websocket_connections_active", tier="government") == 1)
            connection = next(iter(here.gateway.plugin("realtime")._open))
            async with here.connect(session) as reader:
                listening = asyncio.create_task(all_frames(reader))
                most = 0
                for _ in range(120):
                    content = "x" * 100_000
                    status, _ = await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": content})
                    assert status == 201
                    most = max(most, connection._outbox.bytes)
                    if here.metric("websocket_connections_active", tier="government") == 1:
                        break
                else:
                    pytest.fail("it was never closed")
                assert 0 < most <= 300_000
                await say(reader, "ping")  # the one that reads is not held up
                await asyncio.sleep(0.1)
                await reader.close()
                assert (await listening)[-1]["type"] == "pong"
            code = await stalled.close_code(within=10)  # it begins to read, and finds the reason at the end
            assert code == 1013


async def test_the_place_of_a_stalled_reader_is_free_at_once(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"plugins.realtime.queue": 4}) as here:
        session = await here.session()
        connections = [await here.connect(session) for _ in range(4)]
        async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}", limit=1024) as stalled:
            assert stalled.status == 101
            stalled.writer.transport.pause_reading()
            for _ in range(80):
                await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "x" * 200_000})
                for socket in connections:
                    await said(socket, "message")
                if here.metric("websocket_connections_active", tier="open_source") == 4:
                    break
            async with here.connect(session) as socket:
                await say(socket, "ping")
                await said(socket, "pong")
        await asyncio.gather(*[socket.close() for socket in connections])


async def test_a_peer_that_answers_no_ping_is_found_and_its_place_is_free(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        here.server.config.ws_ping_interval = here.server.config.ws_ping_timeout = 0.3
        session = await here.session()
        async with (
            here.connect(session) as lively,
            raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}") as gone,
        ):
            assert gone.status == 101
            await until(lambda: here.metric("websocket_connections_active", tier="open_source") == 2)
            assert (await gone.frame())[0] == 9  # a ping, as to one whose cable is cut
            await until(lambda: here.metric("websocket_connections_active", tier="open_source") == 1)
            assert await gone.close_code() == 1011
            await asyncio.sleep(1)
            await say(lively, "ping")  # which has answered each of its own
            await said(lively, "pong")


# --- credentials and places that end --------------------------------------------------------------


async def test_a_revoked_key_closes_its_sockets_within_a_second(here: Place) -> None:
    other = await here.gateway.plugin("api_key").create(organization="acme", user="bob", tier="teams")
    session = await here.session()
    _, ticket = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
    async with (
        here.connect(session) as mine,
        here.connect(session, key="", query={"ticket": ticket["ticket"]}) as by_ticket,
        here.connect(session, key=other.key) as theirs,
    ):
        await here.gateway.plugin("api_key").revoke(here.key_id)
        started = time.monotonic()
        for socket in (mine, by_ticket):
            assert await closed(socket) == (1008, "the credential was revoked")
        assert time.monotonic() - started < 1
        await say(theirs, "ping")
        await said(theirs, "pong")


async def test_an_outage_of_the_key_store_closes_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: Any) -> Any:
        raise StoreUnavailable("database", "down")

    async with here.connect(await here.session()) as socket:
        monkeypatch.setattr(here.gateway.plugin("api_key"), "ended", down)
        await asyncio.sleep(1)
        await say(socket, "ping")
        await said(socket, "pong")


async def test_a_token_that_expires_closes_its_socket(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"plugins.jwt.leeway": "0s"}) as here:
        token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source", ttl=2)
        async with here.connect(await here.session(), key="", query={"token": token}) as socket:
            await say(socket, "ping")
            await said(socket, "pong")
            assert await closed(socket) == (1008, "the credential has expired")


async def test_a_place_that_was_lost_closes_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        place(tmp_path, edit={"plugins.counters.lease_ttl": "600ms"}) as here,
        here.connect(await here.session()) as socket,
    ):

        async def lost(*_: Any) -> bool:
            return False

        monkeypatch.setattr(here.gateway.plugin("counters"), "renew", lost)
        assert (await closed(socket))[0] == 1013


async def test_a_holder_that_cannot_renew_ends_before_its_place_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        place(tmp_path, edit={"plugins.counters.lease_ttl": "3s"}) as here,
        here.connect(await here.session()) as socket,
    ):
        started = time.monotonic()

        async def hangs(*_: Any) -> bool:
            await asyncio.sleep(60)
            return True

        monkeypatch.setattr(here.gateway.plugin("counters"), "renew", hangs)
        assert (await closed(socket))[0] == 1013
        assert time.monotonic() - started < 3.3


async def test_a_silent_client_is_closed(tmp_path: Path) -> None:
    async with (
        place(tmp_path, edit={"plugins.realtime.idle": "300ms"}) as here,
        here.connect(await here.session()) as socket,
    ):
        assert await closed(socket) == (1001, "idle")


# --- a stop ---------------------------------------------------------------------------------------


async def test_a_stop_finishes_a_running_turn(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"gateway.drain_timeout": "8s"}) as here:
        here.upstream.script = slowly(words=20)
        session = await here.session()
        async with here.connect(session) as socket, here.connect(session) as idle:
            await say(socket, "message", id="m", content="go", model="slow", stream=True)
            await said(socket, "stream")
            draining = asyncio.create_task(here.drain())
            await said(socket, "going_away")
            assert (await closed(idle))[0] == 1001
            await say(socket, "message", id="late", content="go")
            late = await said(socket, "error")
            assert (late["code"], late["ref"], late["retryable"]) == ("SERVICE_UNAVAILABLE", "late", True)
            answer = await said(socket, "message")
            assert "cut" not in answer["metadata"]
            assert (await closed(socket))[0] == 1001
            await draining


async def test_a_stop_cuts_what_does_not_end_and_stores_it(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"gateway.drain_timeout": "2s"}) as here:
        here.upstream.script = slowly(words=2000)
        async with here.connect(await here.session()) as socket:
            await say(socket, "message", id="m", content="go", model="slow", stream=True)
            await said(socket, "stream")
            started = time.monotonic()
            draining = asyncio.create_task(here.drain())
            answer = await said(socket, "message")
            assert answer["metadata"]["cut"] == "shutdown"
            assert (await closed(socket))[0] == 1001
            await draining
            assert time.monotonic() - started < 2.5


async def test_a_stop_takes_a_crowd_along_and_gives_all_places_back(tmp_path: Path) -> None:
    async with place(tmp_path, tier="government", edit={"gateway.drain_timeout": "5s"}) as here:
        session = await here.session()
        sockets = await asyncio.gather(*[here.connect(session) for _ in range(60)])
        started = time.monotonic()
        await here.drain()
        assert time.monotonic() - started < 3
        assert {(await closed(socket))[0] for socket in sockets} == {1001}
        await until(lambda: here.metric("websocket_connections_active", tier="government") == 0)
        assert here.metric("websocket_connection_duration_seconds_count", tier="government") == 60


# --- numbers --------------------------------------------------------------------------------------


async def test_frames_and_connections_are_counted(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        assert here.metric("websocket_connections_active", tier="teams") == 1
        await say(socket, "message", content="two words", stream=True)
        await said(socket, "message")
        await socket.send("?")
        await said(socket, "error")
    await until(lambda: here.metric("websocket_connections_active", tier="teams") == 0)
    frames = {
        (direction, type): here.metric("websocket_messages_total", direction=direction, type=type)
        for direction in ("inbound", "outbound")
        for type in ("message", "invalid", "stream", "error")
    }
    assert frames == {
        ("inbound", "message"): 1,
        ("inbound", "invalid"): 1,
        ("inbound", "stream"): 0,
        ("inbound", "error"): 0,
        ("outbound", "message"): 1,
        ("outbound", "invalid"): 0,
        ("outbound", "stream"): 3,
        ("outbound", "error"): 1,
    }


async def test_a_peer_that_vanishes_during_the_handshake_leaves_nothing(here: Place) -> None:
    session = await here.session()
    for _ in range(10):
        async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}") as client:
            client.writer.write(frame(1, b'{"type":"message","content":"x"}'))
            client.writer.transport.abort()
    await until(lambda: here.metric("websocket_connections_active", tier="teams") == 0)
    await until(lambda: not here.gateway.plugin("realtime")._open)
