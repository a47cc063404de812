"""A key takes effect once: what duplicates are answered, what they cost, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import aiosqlite
import pytest
from fire.watch import SCALE, Recorder
from servers import Postgres
from sqlalchemy import text
from upstreams import Cut, Pause, ScriptedUpstream, scripted

from openclaw_gateway.api import Limit, Take
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.idempotency.claims import Claims, Done, Lost, Running, Wanted, Won

ASK = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n'
TIER = """
[ratelimit.requests]
limit = 1000
per = "minute"
[ratelimit.ws_messages]
limit = 100
per = "minute"
[quota.sessions]
limit = 100
per = "month"
[quota.messages]
limit = 100
per = "month"
[concurrency.sessions]
limit = 100
[concurrency.ws_connections]
limit = 5
"""


class Caller:
    def __init__(self, gateway: Gateway, url: str, http: aiohttp.ClientSession, upstream: ScriptedUpstream) -> None:
        self.gateway, self.url, self.http, self.upstream = gateway, url, http, upstream
        self._token = self.token("acme")

    def token(self, organization: str, user: str = "ada") -> str:
        return self.gateway.plugin("jwt").mint(organization=organization, user=user, tier="t")

    async def post(
        self, path: str, body: Any, key: str | None = "k", organization: str | None = None
    ) -> tuple[int, Any, bytes]:
        token = self.token(organization) if organization else self._token
        headers = {"Authorization": f"Bearer {token}"} | ({"Idempotency-Key": key} if key is not None else {})
        async with self.http.post(self.url + path, json=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    async def chat(self, key: str | None = "k", **more: Any) -> tuple[int, Any, bytes]:
        return await self.post("/v1/chat/completions", {**ASK, **more}, key)

    async def usage(self) -> dict[str, int]:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with self.http.get(self.url + "/api/v1/usage", headers=headers) as answer:
            rows = json.loads(await answer.read())
        return {row["name"]: row["used"] for row in rows["limits"]}

    async def session(self) -> str:
        _, _, body = await self.post("/api/v1/sessions", {}, None)
        return str(json.loads(body)["sessionId"])

    async def history(self, session: str) -> list[Any]:
        page = await self.gateway.plugin("sessions").messages("acme", session, limit=100, cursor=None)
        return list(page.items)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    if request.param == "sqlite":
        yield {}
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield {"plugins.database.url": postgres.url(name), "plugins.database.auto_upgrade": True}
    postgres.drop(name)


@asynccontextmanager
async def calling(folder: Path, edit: dict[str, Any], tier: str = TIER) -> AsyncIterator[Caller]:
    async with scripted() as upstream:
        edit = {
            "plugins.up": {"use": "providers.openai", "url": upstream.url, "api_key": "unused"},
            "models.far": {"provider": "up"},
            **edit,
        }
        gateway = build(configuration(folder, edit=edit, tiers={"t": tier}))
        async with serving(gateway) as url, aiohttp.ClientSession() as http:
            yield Caller(gateway, url, http, upstream)


@pytest.fixture
async def caller(tmp_path: Path, database: dict[str, Any]) -> AsyncIterator[Caller]:
    async with calling(tmp_path, database) as opened:
        yield opened


async def test_a_duplicate_gets_the_first_answer_and_costs_nothing(caller: Caller) -> None:
    status, first_headers, first = await caller.chat()
    before = await caller.usage()
    again, headers, second = await caller.chat()
    assert (status, again, second) == (200, 200, first)
    assert "Idempotency-Replayed" not in first_headers and headers["Idempotency-Replayed"] == "true"
    assert headers["content-type"] == first_headers["content-type"]
    assert headers["x-request-id"] != first_headers["x-request-id"]
    after = await caller.usage()
    assert before["quota.messages"] == after["quota.messages"] == 1
    # a rate counts attempts: the duplicate, and the two looks at the usage
    assert after["ratelimit.requests"] == before["ratelimit.requests"] + 2
    fresh = await caller.chat("another")
    assert fresh[2] != first and (await caller.usage())["quota.messages"] == 2


async def test_a_stream_is_repeated_to_the_byte(caller: Caller) -> None:
    _, headers, first = await caller.chat(stream=True)
    _, again, second = await caller.chat(stream=True)
    assert second == first and first.endswith(b"data: [DONE]\n\n")
    assert again["content-type"] == headers["content-type"] == "text/event-stream; charset=utf-8"
    assert again["Idempotency-Replayed"] == "true"
    assert (await caller.usage())["quota.messages"] == 1


async def test_sessions_and_messages_are_made_once(caller: Caller) -> None:
    made = [await caller.post("/api/v1/sessions", {"metadata": {"n": 1}}) for _ in range(3)]
    assert {status for status, _, _ in made} == {201}
    (session,) = {json.loads(body)["sessionId"] for _, _, body in made}
    path = f"/api/v1/sessions/{session}/messages"
    posted = [await caller.post(path, {"content": "hi"}) for _ in range(3)]
    assert len({body for _, _, body in posted}) == 1
    assert len(await caller.history(session)) == 1
    used = await caller.usage()
    assert (used["quota.sessions"], used["quota.messages"], used["concurrency.sessions"]) == (1, 1, 1)


async def test_a_key_belongs_to_one_request_of_one_organization_and_route(caller: Caller) -> None:
    _, _, first = await caller.chat()
    status, _, body = await caller.chat(temperature=0.5)
    assert status == 422 and json.loads(body)["error"]["code"] == "IDEMPOTENCY_KEY_REUSED"
    status, headers, other = await caller.post("/v1/chat/completions", ASK, organization="rival")
    assert status == 200 and other != first and "Idempotency-Replayed" not in headers
    assert (await caller.post("/api/v1/sessions", {}))[0] == 201
    one, two = await caller.session(), await caller.session()
    assert (await caller.post(f"/api/v1/sessions/{one}/messages", {"content": "x"}))[0] == 201
    assert (await caller.post(f"/api/v1/sessions/{two}/messages", {"content": "x"}))[0] == 422


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb", "caf\xe9"])
async def test_a_key_that_is_none_is_refused(tmp_path: Path, key: str) -> None:
    async with calling(tmp_path, {}) as caller:
        status, _, body = await caller.chat(key)
        assert status == 400 and json.loads(body)["error"]["param"] == "Idempotency-Key"
        assert (await caller.chat("k" * 255))[0] == 200
        assert (await caller.usage())["quota.messages"] == 1


async def test_the_last_unit_of_a_quota_can_be_asked_for_again(tmp_path: Path, database: dict[str, Any]) -> None:
    tier = TIER.replace("[quota.messages]\nlimit = 100", "[quota.messages]\nlimit = 1")
    async with calling(tmp_path, database, tier) as caller:
        _, _, first = await caller.chat()
        status, _, again = await caller.chat()
        assert (status, again) == (200, first)
        assert (await caller.chat("new"))[0] == 403
        # the refusal has freed its key
        assert (await caller.chat("new", temperature=1))[0] == 403


async def test_a_duplicate_past_its_rate_is_refused_as_ever(tmp_path: Path) -> None:
    tier = TIER.replace("[ratelimit.requests]\nlimit = 1000", "[ratelimit.requests]\nlimit = 2")
    async with calling(tmp_path, {}, tier) as caller:
        assert [(await caller.chat())[0] for _ in range(3)] == [200, 200, 429]


async def test_racing_duplicates_are_one_charge_one_turn_and_one_call(
    caller: Caller, record_property: Recorder
) -> None:
    await race(caller, ["a", "b", "c"], pause=0.3)
    record_property("racing requests", 3 * 64)
    record_property("keys", 3)
    record_property("charged, stored or sent twice", 0)


@pytest.mark.long
@pytest.mark.timeout(7_200)
async def test_many_racing_duplicates(tmp_path: Path, postgres: Postgres, record_property: Recorder) -> None:
    name = postgres.create()
    edit = {"plugins.database.url": postgres.url(name), "plugins.database.auto_upgrade": True}
    keys = [f"k{i}" for i in range(max(3, round(1_000 * SCALE)))]
    wide = TIER.replace("limit = 1000\n", "limit = 10_000_000\n").replace("limit = 100\n", "limit = 1_000_000\n")
    async with calling(tmp_path, edit, wide) as caller:
        await race(caller, keys, pause=0.02)
    postgres.drop(name)
    record_property("racing requests", len(keys) * 64)
    record_property("keys", len(keys))
    record_property("charged, stored or sent twice", 0)


async def race(caller: Caller, keys: list[str], *, pause: float) -> None:
    """Sixty-four requests at once for each key, one key after the other."""
    session = await caller.session()
    message = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    whole = json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "far", "choices": [choice]}
    ).encode()
    caller.upstream.headers = {"Content-Type": "application/json"}
    caller.upstream.script = (Pause(pause), whole)
    for key in keys:
        asked = [caller.chat(key, model="far", sessionId=session) for _ in range(64)]
        answers = await asyncio.gather(*asked)
        # 503 is the store's back-pressure on a slow machine: refused before anything was done.
        counts = {code: sum(status == code for status, _, _ in answers) for code in (200, 409, 503)}
        assert counts[200] >= 1 and sum(counts.values()) == 64, answers
        assert all(int(headers["Retry-After"]) >= 1 for status, headers, _ in answers if status != 200)
        assert sum("Idempotency-Replayed" not in headers for status, headers, _ in answers if status == 200) == 1
    assert len(caller.upstream.received) == len(keys)
    assert (await caller.usage())["quota.messages"] == len(keys)
    history = [message.content for message in await caller.history(session)]
    assert len(history) == min(100, 2 * len(keys))  # a page of it
    async with caller.gateway.plugin("database").transaction("acme", operation="select", table="t") as connection:
        stored = await connection.execute(text("SELECT count(*) FROM openclaw_messages"))
        assert stored.scalar_one() == 2 * len(keys)


async def test_what_failed_and_cost_nothing_can_be_tried_again(caller: Caller) -> None:
    caller.upstream.status = 500
    assert (await caller.chat(model="far"))[0] == 502
    caller.upstream.status = 200
    caller.upstream.script = (PIECE % b"hi", b"data: [DONE]\n\n")
    assert (await caller.chat(model="far", stream=True))[0] == 200
    assert (await caller.usage())["quota.messages"] == 1
    assert (await caller.post("/v1/chat/completions", {"model": "echo"}, "bad"))[0] == 400
    assert (await caller.post("/v1/chat/completions", ASK, "bad"))[0] == 200


async def test_a_stream_that_was_cut_and_charged_is_not_run_again(caller: Caller) -> None:
    caller.upstream.script = (PIECE % b"hi", Pause(0.05), Cut)
    status, _, first = await caller.chat(model="far", stream=True)
    assert status == 200 and b'"error"' in first and b"[DONE]" not in first
    status, _, body = await caller.chat(model="far", stream=True)
    assert status == 409 and json.loads(body)["error"]["code"] == "CONFLICT"
    assert len(caller.upstream.received) == 1 and (await caller.usage())["quota.messages"] == 1


async def test_a_client_that_left_a_charged_stream_does_not_pay_twice(caller: Caller) -> None:
    caller.upstream.script = (PIECE % b"hi", Pause(20), b"data: [DONE]\n\n")
    headers = {"Authorization": f"Bearer {caller._token}", "Idempotency-Key": "k"}
    body = {**ASK, "model": "far", "stream": True}
    answer = await caller.http.post(caller.url + "/v1/chat/completions", json=body, headers=headers)
    await answer.content.readany()
    answer.close()
    async with asyncio.timeout(10):
        while (await caller.chat(model="far", stream=True))[1].get("Retry-After") is not None:
            await asyncio.sleep(0.05)
    assert (await caller.chat(model="far", stream=True))[0] == 409
    assert len(caller.upstream.received) == 1 and (await caller.usage())["quota.messages"] == 1


async def test_an_answer_past_the_size_is_not_kept_and_not_run_again(tmp_path: Path) -> None:
    async with calling(tmp_path, {"plugins.idempotency.max_answer": "100B"}) as caller:
        status, _, body = await caller.chat()
        assert status == 200 and len(body) > 100
        status, headers, _ = await caller.chat()
        assert status == 409 and "Retry-After" not in headers
        assert (await caller.usage())["quota.messages"] == 1


async def test_an_answer_that_must_not_be_stored_is_not(tmp_path: Path) -> None:
    async with calling(tmp_path, {}) as caller:
        session = await caller.session()
        status, headers, ticket = await caller.post("/api/v1/ws-tickets", {"sessionId": session})
        assert status == 201 and headers["cache-control"] == "no-store"
        assert (await caller.post("/api/v1/ws-tickets", {"sessionId": session}))[0] == 409
        secret = json.loads(ticket)["ticket"].encode()
        assert not any(secret in path.read_bytes() for path in tmp_path.rglob("gateway.db*"))


async def test_a_request_without_a_key_leaves_nothing(tmp_path: Path) -> None:
    async with calling(tmp_path, {}) as caller:
        assert (await caller.chat(None))[0] == 200
        assert (await caller.chat(None))[0] == 200
        assert caller.gateway.registry.get_sample_value("idempotent_requests_total", {"outcome": "first"}) is None
        assert (await caller.usage())["quota.messages"] == 2


async def test_a_key_is_two_steps_of_the_embedded_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a switch to its thread and back, which costs a request more than the work that is done there."""
    steps: list[None] = []
    call = aiosqlite.Connection._execute

    async def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        steps.append(None)
        return await call(self, *arguments, **named)

    async with calling(tmp_path, {}) as caller:
        assert (await caller.chat("warm"))[0] == 200
        monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
        counts = []
        for key in (None, "k"):
            steps.clear()
            assert (await caller.chat(key))[0] == 200
            counts.append(len(steps))
    assert counts == [2, 4]  # a quota that is held and charged; and a claim that is made and ended


# --- what a crash leaves behind -----------------------------------------------------------------

WANTED = Wanted("acme", "/v1/chat/completions", "k", "print")
QUOTA = Limit(name="quota.messages", meter="messages", kind="quota", limit=10)


def claims_of(caller: Caller, lease: float = 30.0, retention: float = 60.0) -> Claims:
    gateway = caller.gateway
    return Claims(gateway.plugin("database"), gateway.plugin("accounts"), lease=lease, retention=retention)


async def test_the_claim_of_the_dead_is_taken_over_where_nothing_was_charged(caller: Caller) -> None:
    claims, accounts = claims_of(caller, lease=0.2), caller.gateway.plugin("accounts")
    first = await claims.claim(WANTED)
    assert isinstance(first, Won) and isinstance(await claims.claim(WANTED), Running)
    _, holds = await accounts.reserve("acme", [Take(QUOTA, "-", 1, first.claim)])
    await asyncio.sleep(0.3)
    answers = await asyncio.gather(*(claims.claim(WANTED) for _ in range(8)))
    (second,) = [answer for answer in answers if isinstance(answer, Won)]
    # it was paused, not dead: what it charges now is not charged, what it answers is not kept
    await accounts.commit(holds)
    await claims.keep("acme", first.claim, Done(200, [], b"late"))
    assert (await caller.usage())["quota.messages"] == 0
    await claims.keep("acme", second.claim, Done(200, [("content-type", "text/plain")], b"good"))
    found = await claims.claim(WANTED)
    assert isinstance(found, Done) and (found.status, found.body) == (200, b"good")


async def test_the_claim_of_the_dead_is_closed_where_it_was_charged(caller: Caller) -> None:
    claims, accounts = claims_of(caller, lease=0.1), caller.gateway.plugin("accounts")
    first = await claims.claim(WANTED)
    assert isinstance(first, Won)
    _, holds = await accounts.reserve("acme", [Take(QUOTA, "-", 1, first.claim)])
    await accounts.commit(holds)
    await asyncio.sleep(0.2)
    assert isinstance(await claims.claim(WANTED), Lost)
    assert (await caller.usage())["quota.messages"] == 1


@pytest.mark.parametrize("key", ["k", None], ids=["with a key", "without"])
async def test_a_turn_that_could_not_be_stored_in_time_is_not_stored_beside_its_repetition(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """The client was told to ask again; what waits in the store by then must not come after all."""
    name = postgres.create()
    edit = {"plugins.database.url": postgres.url(name), "plugins.database.auto_upgrade": True}
    async with calling(tmp_path, edit) as caller:
        session = await caller.session()
        database = caller.gateway.plugin("database")
        with monkeypatch.context() as patched:
            patched.setattr("openclaw_plugins.chat.turns._SETTLE", 0.3)
            async with database.transaction("acme", operation="update", table="t") as connection:
                lock = text("SELECT 1 FROM openclaw_sessions WHERE session_id = :id FOR UPDATE")
                await connection.execute(lock, {"id": session})
                assert (await caller.chat(key, sessionId=session))[0] == 503
                assert (await caller.usage())["quota.messages"] == 0
                again = asyncio.create_task(caller.chat(key, sessionId=session))
                await asyncio.sleep(0.1)
        status, _, _ = await again
        while status != 200:
            assert status in (409, 503)
            status, _, _ = await caller.chat(key, sessionId=session)
        assert [message.role for message in await caller.history(session)] == ["user", "assistant"]
        assert (await caller.usage())["quota.messages"] == 1
    postgres.drop(name)


async def test_a_claim_that_is_renewed_is_not_taken_over(caller: Caller) -> None:
    claims = claims_of(caller, lease=0.3)
    first = await claims.claim(WANTED)
    assert isinstance(first, Won)
    for _ in range(4):
        await asyncio.sleep(0.1)
        await claims.renew({first.claim})
    assert isinstance(await claims.claim(WANTED), Running)


async def test_keys_are_forgotten_after_their_retention(caller: Caller) -> None:
    claims = claims_of(caller, lease=0.1, retention=0.2)
    first = await claims.claim(WANTED)
    assert isinstance(first, Won)
    await claims.keep("acme", first.claim, Done(200, [], b"x"))
    await asyncio.sleep(0.3)
    again = await claims.claim(WANTED)  # also before any sweep
    assert isinstance(again, Won)
    await asyncio.sleep(0.2)
    assert await claims.sweep() == 1
    assert isinstance(await claims.claim(WANTED), Won)
