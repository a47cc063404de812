"""What users of the WebSocket were promised, sentence by sentence, on the gateway as it is shipped."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from socket_kit import Place, closed, place, said, say
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path) as found:
        yield found


async def refused(here: Place, target: str, **headers: str) -> int:
    """Try to connect; the client must never see an open socket."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(target, additional_headers=headers):
            pytest.fail("it opened")
    response = caught.value.response
    body = json.loads(response.body or b"{}")
    assert body["error"]["code"], body
    return response.status_code


async def test_w1_a_session_and_a_valid_token_open_it(here: Place) -> None:
    token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source")
    target = here.at(await here.session())
    async with connect(target, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        await say(socket, "ping")
        assert (await said(socket, "pong"))["type"] == "pong"


async def test_w1_the_token_may_be_in_the_query(here: Place) -> None:
    token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source")
    async with connect(here.at(await here.session(), token=token)) as socket:
        await say(socket, "ping")
        await said(socket, "pong")


async def test_w2_without_a_token_it_never_opens(here: Place) -> None:
    assert await refused(here, here.at(await here.session())) == 401


async def test_w3_with_an_invalid_token_it_never_opens(here: Place) -> None:
    session = await here.session()
    assert await refused(here, here.at(session), Authorization="Bearer not.a.token") == 401
    assert await refused(here, here.at(session, token="not.a.token")) == 401
    # An API key in a URL is refused, however good it is: URLs are written down in too many places.
    assert await refused(here, here.at(session, token=here.key)) == 401


async def test_w4_without_a_session_it_never_opens(here: Place) -> None:
    headers: dict[str, Any] = {"X-API-Key": here.key}
    assert await refused(here, here.at(None), **headers) == 400
    assert await refused(here, here.at("no-such-session"), **headers) == 404


async def test_w5_a_message_is_answered_by_a_message(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        await say(socket, "message", content="Good morning")
        answer = await said(socket, "message", "error")
    assert answer["type"] == "message"
    assert answer["messageId"]
    assert (answer["sessionId"], answer["role"]) == (session, "assistant")
    assert answer["content"] == "Good morning"
    assert answer["timestamp"].endswith("Z")
    assert answer["usage"]["total_tokens"] == 4


async def test_w6_a_streamed_answer_ends_with_done(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        await say(socket, "message", content="one two three", stream=True, id="m1")
        frames = []
        while not frames or not frames[-1]["done"]:
            frames.append(await said(socket, "stream"))
    assert "".join(frame["chunk"] for frame in frames) == "one two three"
    assert [frame["done"] for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert {frame["ref"] for frame in frames} == {"m1"}


async def test_w8_what_is_no_json_is_answered_by_an_error(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        await socket.send("this is not JSON")
        error = await said(socket, "error")
        assert (error["code"], bool(error["message"])) == ("BAD_REQUEST", True)
        await say(socket, "ping")
        await said(socket, "pong")


async def test_w9_a_flood_is_limited_and_told_when_to_come_back(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        started = time.monotonic()
        for i in range(250):
            await say(socket, "message", content=f"message {i}")
        while (error := await said(socket, "error"))["code"] != "RATE_LIMIT_EXCEEDED":
            pass
        assert time.monotonic() - started < 5
        assert 0 < error["retryAfter"] <= 61
        assert error["retryable"] is True
        assert error["limit"]["name"] == "ratelimit.ws_messages"


async def test_w10_of_six_at_once_five_are_open(here: Place) -> None:
    session = await here.session()

    async def attempt() -> ClientConnection | None:
        try:
            return await here.connect(session)
        except InvalidStatus as error:
            assert error.response.status_code == 429
            assert int(error.response.headers["Retry-After"]) >= 1
            return None

    sockets = [socket for socket in await asyncio.gather(*[attempt() for _ in range(6)]) if socket is not None]
    try:
        await asyncio.sleep(1)
        assert len(sockets) == 5
        assert here.metric("websocket_connections_active", tier="open_source") == 5
    finally:
        await asyncio.gather(*[socket.close() for socket in sockets])


async def test_w11_a_closed_session_can_be_connected_again(here: Place) -> None:
    session = await here.session()
    for i in range(12):  # more often than places would last, were they not given back
        async with here.connect(session) as socket:
            await say(socket, "message", content=f"round {i}")
            await said(socket, "message")


async def test_w12_a_protocol_ping_gets_its_pong(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        assert await (await socket.ping(b"are you there")) >= 0


async def keeps_up(here: Place, *, every: float, times: int) -> None:
    async with here.connect(await here.session()) as socket:
        for _ in range(times):
            await asyncio.sleep(every)
            assert await (await socket.ping()) >= 0
        await say(socket, "message", content="still here")
        assert (await said(socket, "message"))["content"] == "still here"


async def test_w13_pings_keep_the_link_up(tmp_path: Path) -> None:
    # A hundredth of the times of the long run; places are renewed three times as often as they would be lost.
    async with place(tmp_path, edit={"plugins.counters.lease_ttl": "300ms"}) as here:
        await keeps_up(here, every=0.1, times=10)


@pytest.mark.long
async def test_w13_pings_keep_the_link_up_for_half_a_minute(here: Place) -> None:
    await keeps_up(here, every=10, times=3)


async def test_a_ticket_opens_it_once(here: Place) -> None:
    session = await here.session()
    status, ticket = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
    assert status == 201
    assert ticket["expiresAt"].endswith("Z")
    async with connect(here.at(session, ticket=ticket["ticket"])) as socket:
        await say(socket, "message", content="by ticket")
        assert (await said(socket, "message"))["content"] == "by ticket"
    assert await refused(here, here.at(session, ticket=ticket["ticket"])) == 401


async def test_the_model_sees_the_history_and_both_sides_are_stored(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        for content in ("first", "second"):
            await say(socket, "message", content=content)
            answer = await said(socket, "message")
    assert answer["content"] == "first\nfirst\nsecond"
    _, page = await here.ask("GET", f"/api/v1/sessions/{session}/messages")
    assert [(m["role"], m["content"]) for m in page["messages"]] == [
        ("user", "first"),
        ("assistant", "first"),
        ("user", "second"),
        ("assistant", "first\nfirst\nsecond"),
    ]
    assert page["messages"][-1]["messageId"] == answer["messageId"]


async def test_a_turn_is_one_of_the_months_messages(here: Place) -> None:
    async with here.connect(await here.session()) as socket:
        await say(socket, "ping")
        for _ in range(3):
            await say(socket, "message", content="count me")
            await said(socket, "message")
    _, usage = await here.ask("GET", "/api/v1/usage")
    rows = {row["name"]: row["used"] for row in usage["limits"]} if "limits" in usage else {}
    assert rows["quota.messages"] == 3
    assert rows["ratelimit.ws_messages"] == 3


async def test_a_stop_says_goodbye_first(tmp_path: Path) -> None:
    async with (
        place(tmp_path, edit={"gateway.drain_timeout": "5s"}) as here,
        here.connect(await here.session()) as socket,
    ):
        await here.drain()
        assert (await said(socket, "going_away"))["retryAfter"] >= 0
        assert (await closed(socket))[0] == 1001
