"""Refused handshakes on the wire: an HTTP status and the error body, and no WebSocket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from socket_kit import Place, Raw, place, raw, said, say

TOKENLESS = ("sec-websocket-accept", "upgrade")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path, edit={"plugins.realtime.origins": ["https://app.example.com"]}) as found:
        yield found


@pytest.fixture(autouse=True)
def nothing_of_ours_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A refusal is no error, neither the gateway's nor the server's."""
    yield
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


def assert_refused(answer: Raw, status: int, code: str) -> None:
    assert answer.status == status
    assert not any(name in answer.headers for name in TOKENLESS)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    body = json.loads(answer.body)
    assert (body["status"], body["instance"], body["error"]["code"]) == (status, "/ws", code)
    assert body["error"]["requestId"] == answer.headers["x-request-id"]


async def test_no_session_is_400(here: Place) -> None:
    async with raw(here, "/ws", f"X-API-Key: {here.key}") as answer:
        assert_refused(answer, 400, "BAD_REQUEST")
        assert json.loads(answer.body)["error"]["param"] == "sessionId"


async def test_two_sessions_are_400(here: Place) -> None:
    session = await here.session()
    async with raw(here, f"/ws?sessionId={session}&sessionId={session}", f"X-API-Key: {here.key}") as answer:
        assert_refused(answer, 400, "BAD_REQUEST")


async def test_no_credential_is_401_with_a_challenge(here: Place) -> None:
    async with raw(here, f"/ws?sessionId={await here.session()}") as answer:
        assert_refused(answer, 401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_another_organizations_session_is_403(here: Place) -> None:
    other = await here.gateway.plugin("api_key").create(organization="other", user="eve", tier="open_source")
    async with raw(here, f"/ws?sessionId={await here.session()}", f"X-API-Key: {other.key}") as answer:
        assert_refused(answer, 403, "FORBIDDEN")


@pytest.mark.parametrize("session", ["0190a000-0000-7000-8000-000000000000", "not-a-uuid", "%00", "%ff"])
async def test_an_unknown_session_is_404(here: Place, session: str) -> None:
    async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}") as answer:
        assert_refused(answer, 404, "NOT_FOUND")


async def test_an_unknown_path_is_404(here: Place) -> None:
    async with raw(here, "/wss?sessionId=x", f"X-API-Key: {here.key}") as answer:
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["code"] == "NOT_FOUND"


async def test_the_cap_is_429_and_its_places_come_back(here: Place) -> None:
    session = await here.session()
    sockets = [await here.connect(session) for _ in range(5)]
    async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}") as answer:
        assert_refused(answer, 429, "RATE_LIMIT_EXCEEDED")
        assert int(answer.headers["retry-after"]) >= 1
        assert json.loads(answer.body)["error"]["limit"]["name"] == "concurrency.ws_connections"
    await sockets[0].close()
    sockets[1].transport.abort()
    for _ in range(2):
        async with asyncio.timeout(5):
            while here.metric("websocket_connections_active", tier="open_source") > 3:
                await asyncio.sleep(0.01)
    again = [await here.connect(session) for _ in range(2)]
    await asyncio.gather(*[socket.close() for socket in (*sockets[2:], *again)])


async def test_a_refused_handshake_keeps_no_place(here: Place) -> None:
    for _ in range(8):
        async with raw(here, "/ws?sessionId=nothing", f"X-API-Key: {here.key}") as answer:
            assert answer.status == 404
    async with here.connect(await here.session()) as socket:
        await say(socket, "ping")
        await said(socket, "pong")


async def test_a_gateway_that_stops_is_503(here: Place) -> None:
    here.gateway.refuse_new_work()
    async with raw(here, "/ws?sessionId=x", f"X-API-Key: {here.key}") as answer:
        assert answer.status == 503
        assert json.loads(answer.body)["error"]["code"] == "SERVICE_UNAVAILABLE"
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://app.example.com.evil.example", ""])
async def test_a_foreign_origin_is_403(here: Place, origin: str) -> None:
    session = await here.session()
    async with raw(here, f"/ws?sessionId={session}", f"X-API-Key: {here.key}", f"Origin: {origin}") as answer:
        assert_refused(answer, 403, "FORBIDDEN")


async def test_an_allowed_origin_may_connect(here: Place) -> None:
    session = await here.session()
    headers = (f"X-API-Key: {here.key}", "Origin: https://APP.example.com")
    async with raw(here, f"/ws?sessionId={session}", *headers) as answer:
        assert answer.status == 101
        assert answer.headers["x-request-id"]


async def test_more_than_one_credential_is_refused(here: Place) -> None:
    token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source")
    target = f"/ws?sessionId={await here.session()}&token={token}"
    async with raw(here, target, f"X-API-Key: {here.key}") as answer:
        assert_refused(answer, 400, "BAD_REQUEST")


async def test_a_ticket_is_for_its_session_alone(here: Place) -> None:
    mine, other = await here.session(), await here.session()
    _, ticket = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": mine})
    async with raw(here, f"/ws?sessionId={other}&ticket={ticket['ticket']}") as answer:
        assert_refused(answer, 401, "UNAUTHORIZED")
    async with raw(here, f"/ws?sessionId={mine}&ticket={ticket['ticket']}") as answer:
        assert_refused(answer, 401, "UNAUTHORIZED")  # whoever tried it elsewhere has used it up


async def test_a_ticket_is_no_credential_of_a_request(here: Place) -> None:
    session = await here.session()
    _, ticket = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{here.url}/api/v1/sessions/{session}?ticket={ticket['ticket']}") as answer,
    ):
        assert answer.status == 401


async def test_a_ticket_ends(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"plugins.ws_tickets.ttl": "50ms"}) as here:
        session = await here.session()
        _, ticket = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
        await asyncio.sleep(0.1)
        async with raw(here, f"/ws?sessionId={session}&ticket={ticket['ticket']}") as answer:
            assert_refused(answer, 401, "UNAUTHORIZED")


async def test_tickets_that_wait_are_bounded(tmp_path: Path) -> None:
    async with place(tmp_path, edit={"plugins.ws_tickets.max_open": 2}) as here:
        session = await here.session()
        statuses = [(await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session}))[0] for _ in range(3)]
        assert statuses == [201, 201, 503]


async def test_a_ticket_needs_a_session_of_the_caller(here: Place) -> None:
    nobodys = {"sessionId": "0190a000-0000-7000-8000-000000000000"}
    assert (await here.ask("POST", "/api/v1/ws-tickets", nobodys))[0] == 404
    assert (await here.ask("POST", "/api/v1/ws-tickets", {}))[0] == 400


async def test_the_query_reaches_no_log(here: Place, caplog: pytest.LogCaptureFixture, capfd: object) -> None:
    session = await here.session()
    token = here.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source")
    with caplog.at_level(logging.DEBUG):
        async with raw(here, f"/ws?sessionId={session}&token={token}") as answer:
            assert answer.status == 101
        async with raw(here, f"/ws?sessionId={session}&token={token[:-4]}AAAA") as answer:
            assert answer.status == 401
    written = caplog.text + "".join(capfd.readouterr())  # type: ignore[attr-defined]
    assert token[:-8] not in written
    assert "sessionId=" not in written


async def test_no_extension_is_agreed_to(here: Place) -> None:
    """Compressed frames would cost memory a socket, and tell by their length what is in them."""
    wanted = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    async with raw(here, f"/ws?sessionId={await here.session()}", f"X-API-Key: {here.key}", wanted) as answer:
        assert answer.status == 101
        assert "sec-websocket-extensions" not in answer.headers
