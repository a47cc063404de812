"""The socket over a shared store: tickets, and what a client sees of an outage and of a reload."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
from servers import start_valkey
from socket_kit import place, said, say
from websockets.exceptions import InvalidStatus


async def test_an_outage_of_the_store_does_not_fail_a_turn_and_is_told(tmp_path: Path) -> None:
    with start_valkey() as valkey:
        edit = {
            "plugins.redis.url": valkey.url,
            "plugins.events.use": "events.redis",
            "plugins.chat.history": 0,  # the model echoes what it sees: only what was said
            "plugins.ws_tickets.redis": "redis",
        }
        async with (
            place(tmp_path, tier="teams", edit=edit) as here,
            here.connect(session := await here.session()) as socket,
        ):
            await say(socket, "message", id="m1", content="before")
            before = await said(socket, "message")
            assert before["seq"] > 0
            valkey.stop()
            await say(socket, "message", id="m2", content="while it is down", stream=True)
            answer = await said(socket, "message")
            assert (answer["ref"], answer["content"], "seq" in answer) == ("m2", "while it is down", False)
            with pytest.raises(InvalidStatus) as refused:
                await here.connect(session)
            assert refused.value.response.status_code == 503
            status, _ = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
            assert status == 503
            status, _ = await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": "by REST"})
            assert status == 201
            assert here.metric("events_failed_total") >= 2
            valkey.start()
            told = await said(socket, "error", within=15)
            assert told["code"] == "RESUME_UNAVAILABLE" and "seq" not in told
            async with asyncio.timeout(15):
                while True:
                    await say(socket, "message", id="m3", content="after")
                    after = await said(socket, "message")
                    if "seq" in after:
                        break
            assert after["seq"] > before["seq"]
            _, page = await here.ask("GET", f"/api/v1/sessions/{session}/messages?limit=100")
            kept = [message["content"] for message in page["messages"]]
            assert kept[:5] == ["before", "before", "while it is down", "while it is down", "by REST"]


async def test_a_ticket_in_the_store_is_hashed_bound_and_short(tmp_path: Path) -> None:
    with start_valkey() as valkey:
        edit = {"plugins.redis.url": valkey.url, "plugins.ws_tickets.redis": "redis", "plugins.ws_tickets.ttl": "700ms"}
        async with place(tmp_path, tier="teams", edit=edit) as here:
            session, other = await here.session(), await here.session()

            async def issue() -> str:
                _, body = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
                ticket: str = body["ticket"]
                return ticket

            ticket = await issue()
            store = redis.Redis.from_url(valkey.url)
            (key,) = store.keys("*ticket:*")
            assert ticket.encode() not in key + store.get(key)
            assert 0 < store.pttl(key) <= 700
            async with here.connect(session, key="", query={"ticket": ticket}) as socket:
                await say(socket, "ping")
                await said(socket, "pong")
            assert store.keys("*ticket:*") == []
            for given, where in ((ticket, session), (await issue(), other)):
                with pytest.raises(InvalidStatus) as refused:
                    await here.connect(where, key="", query={"ticket": given})
                assert refused.value.response.status_code == 401
            late = await issue()
            await asyncio.sleep(0.8)
            with pytest.raises(InvalidStatus):
                await here.connect(session, key="", query={"ticket": late})
            store.close()
