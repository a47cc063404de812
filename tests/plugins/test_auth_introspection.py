"""Opaque tokens, against an authorisation server on a real socket that answers, lies, dawdles and fails."""

import asyncio
import base64
import time
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import aiohttp
import pytest
from aiohttp import web
from plugins.auth_kit import answering, bearer, exchange, host

from openclaw_gateway.api import Principal, Refusal, Secret, StoreUnavailable
from openclaw_gateway.testing import ManualClock, build, configuration, serving
from openclaw_plugins.auth.claims import Claims
from openclaw_plugins.auth.introspection import Introspection

NOW = 1_800_000_000
ACTIVE = {"active": True, "sub": "ada", "org_id": "acme", "tier": "teams", "scope": "chat admin", "exp": NOW + 600}


class Server:
    """An authorisation server: tokens that it knows are active, and what it was asked."""

    def __init__(self, service):
        self.service = service
        self.tokens = {"good": ACTIVE}
        self.questions = []
        service.answer = self.introspect

    async def introspect(self, request):
        form = parse_qs((await request.read()).decode(), keep_blank_values=True)
        self.questions.append((dict(request.headers), form))
        assert request.method == "POST"
        return web.json_response(self.tokens.get(form["token"][0], {"active": False}))


@asynccontextmanager
async def bench(directory, **config):
    async with answering() as service:
        server = Server(service)
        config = {"url": service.url, "client_id": "gate:way", "client_secret": Secret("s 3/cret"), **config}
        clock = ManualClock()
        plugin = Introspection(Introspection.Config(**config), host(directory, id="tokens", clock=clock))
        async with plugin.lifespan():
            yield plugin, server, clock


async def ask(plugin, token):
    return await plugin.authenticate(exchange(bearer(token)))


async def test_an_active_token_proves_its_caller(tmp_path):
    async with bench(tmp_path) as (plugin, server, _):
        found = await ask(plugin, "good")
        assert found == Principal(
            organization="acme",
            user="ada",
            tier="teams",
            scopes=frozenset({"chat", "admin"}),
            method="introspection",
            credential=found.credential,
            expires_at=float(NOW + 600),
        )
        assert "good" not in found.credential
        ((headers, form),) = server.questions
        assert form == {"token": ["good"], "token_type_hint": ["access_token"]}
        kind, _, pair = headers["Authorization"].partition(" ")
        assert (kind, base64.b64decode(pair)) == ("Basic", b"gate%3Away:s+3%2Fcret")
        assert headers["Content-Type"] == "application/x-www-form-urlencoded"


async def test_other_credentials_are_not_its_business(tmp_path):
    async with bench(tmp_path) as (plugin, server, _):
        for header in (bearer("ocg_x"), ("X-API-Key", "good"), ("Authorization", "Basic good")):
            assert await plugin.authenticate(exchange(header)) is None
        assert await plugin.authenticate(exchange()) is None
        for token in ("a b", "a\x00", "ü", "", "=", "a=b", "x" * 8193):
            assert (await ask(plugin, token)).status == 401
        assert server.questions == []


async def test_answers_are_remembered_by_the_whole_token_and_for_a_while(tmp_path):
    async with bench(tmp_path, cache_ttl=30, inactive_ttl=5) as (plugin, server, clock):
        long = "x" * 200
        server.tokens = {long + "1": ACTIVE}
        for _ in range(5):
            assert isinstance(await ask(plugin, long + "1"), Principal)
            assert (await ask(plugin, long + "2")).status == 401
            assert (await ask(plugin, long)).status == 401
        assert len(server.questions) == 3
        server.tokens = {long + "2": ACTIVE}
        clock.advance(4.9)
        assert (await ask(plugin, long + "2")).status == 401
        clock.advance(0.1)
        assert isinstance(await ask(plugin, long + "2"), Principal)
        clock.advance(24.9)
        assert isinstance(await ask(plugin, long + "1"), Principal)  # revoked meanwhile, and not known yet
        clock.advance(0.1)
        assert (await ask(plugin, long + "1")).status == 401


async def test_a_remembered_token_ends_to_the_second(tmp_path):
    async with bench(tmp_path, cache_ttl=60) as (plugin, server, clock):
        server.tokens = {"good": {**ACTIVE, "exp": NOW + 3}}
        assert isinstance(await ask(plugin, "good"), Principal)
        clock.advance(3)
        assert (await ask(plugin, "good")).status == 401


async def test_what_is_remembered_is_bounded_and_bad_tokens_push_no_good_ones_out(tmp_path):
    async with bench(tmp_path, cache_size=10) as (plugin, server, _):
        assert isinstance(await ask(plugin, "good"), Principal)
        for i in range(50):
            await ask(plugin, f"bad{i}")
        assert len(plugin._inactive) == 10
        asked = len(server.questions)
        assert isinstance(await ask(plugin, "good"), Principal)
        assert len(server.questions) == asked


async def test_requests_at_the_same_moment_share_one_question(tmp_path):
    async with bench(tmp_path) as (plugin, server, _):
        found = await asyncio.gather(*(ask(plugin, token) for _ in range(50) for token in ("good", "bad")))
        assert sorted({type(f) for f in found}, key=str) == sorted({Principal, Refusal}, key=str)
        assert len(server.questions) == 2
        assert len(plugin._flights) == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"active": "true"}',
        b'{"active": 1}',
        b"\xff",
        b"[" * 100_000,
        b'{"active": true, "x": "' + b"a" * 70_000 + b'"}',
    ],
    ids=range(9),
)
async def test_an_answer_that_is_none_is_an_outage(tmp_path, answer):
    async with bench(tmp_path) as (plugin, server, _):
        server.service.answer = answer
        with pytest.raises(StoreUnavailable):
            await ask(plugin, "good")
        server.service.answer = server.introspect
        assert isinstance(await ask(plugin, "good"), Principal)


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 500, 503])
async def test_a_service_that_refuses_the_gateway_is_an_outage_and_never_a_refusal(tmp_path, status):
    async with bench(tmp_path) as (plugin, server, _):

        async def refuse(request):
            return web.Response(status=status, headers={"Location": server.service.url})

        server.service.answer = refuse
        found = await asyncio.gather(*(ask(plugin, "good") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(f, StoreUnavailable) for f in found)
        assert server.service.asked == 1


async def test_a_slow_service_is_given_up_in_time_and_one_that_is_gone_too(tmp_path):
    async with bench(tmp_path, timeout=0.2) as (plugin, server, _):

        async def silent(request):
            await asyncio.sleep(30)

        server.service.answer = silent
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await ask(plugin, "good")
        assert time.monotonic() - started < 10  # of the 30 that the service would take
    async with answering() as service:
        url = service.url
    async with bench(tmp_path, url=url) as (plugin, _, _):
        with pytest.raises(StoreUnavailable) as error:
            await ask(plugin, "good")
        assert "127.0.0.1" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"active": False},
        {"iss": "https://other"},
        {"aud": "other"},
        {"aud": ["other"]},
        {"exp": NOW},
        {"exp": "soon"},
        {"exp": True},
        {"nbf": NOW + 60},
        {"org_id": None},
        {"org_id": 5},
        {"sub": ""},
        {"tier": 5},
        {"scope": {"a": 1}},
    ],
    ids=str,
)
async def test_a_token_that_is_not_for_us_or_says_too_little_is_refused(tmp_path, change):
    async with bench(tmp_path, issuer="https://issuer", audience="gateway") as (plugin, server, _):
        fitting = {**ACTIVE, "iss": "https://issuer", "aud": ["gateway", "more"]}
        server.tokens = {"good": fitting, "bad": {**fitting, **change}}
        assert isinstance(await ask(plugin, "good"), Principal)
        assert (await ask(plugin, "bad")).status == 401


async def test_names_of_members_can_be_told(tmp_path):
    claims = Claims(organization="tenant", user="username", scopes="permissions")
    async with bench(tmp_path, claims=claims) as (plugin, server, _):
        server.tokens = {
            "good": {"active": True, "tenant": "acme", "username": "ada", "permissions": ["chat"], "jti": "t1"}
        }
        found = await ask(plugin, "good")
        assert (found.organization, found.user, found.tier) == ("acme", "ada", "")
        assert (found.scopes, found.credential, found.expires_at) == ({"chat"}, "t1", None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"url": "http://auth.example.com/introspect"}, "url: http"),
        ({"cache_ttl": 61.0}, "cache_ttl"),
        ({"inactive_ttl": 61.0}, "inactive_ttl"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(tmp_path, config, message):
    config = {"url": "https://a/i", "client_id": "g", "client_secret": Secret("s"), **config}
    with pytest.raises(ValueError, match=message):
        Introspection(Introspection.Config(**config), host(tmp_path))


async def test_served(tmp_path):
    async with answering() as service:
        server = Server(service)
        server.tokens = {"good": {**ACTIVE, "exp": int(time.time()) + 600}}
        edit = {
            "plugins.auth.methods": ["api_key", "jwt", "tokens"],
            "plugins.tokens.use": "auth.introspection",
            "plugins.tokens.url": service.url,
            "plugins.tokens.client_id": "gateway",
            "plugins.tokens.client_secret": "not a real one",
            "plugins.tokens.cache_ttl": "1s",
        }
        gateway = build(configuration(tmp_path, edit=edit))
        async with serving(gateway) as url, aiohttp.ClientSession() as client:

            async def status(token):
                async with client.get(url + "/api/v1/usage", headers=dict([bearer(token)])) as answer:
                    await answer.read()
                    assert answer.status != 503 or int(answer.headers["Retry-After"]) >= 1
                    return answer.status

            assert [await status("good"), await status("bad")] == [200, 401]
            service.answer = service.down
            assert [await status("good"), await status("other")] == [200, 503]
            await asyncio.sleep(1.05)
            assert await status("good") == 503
            service.answer = server.introspect
            assert await status("good") == 200
