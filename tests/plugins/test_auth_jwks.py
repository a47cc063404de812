"""Keys of tokens by URL, against a key server on a real socket that turns, fails, lies and dawdles."""

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from plugins.auth_kit import answering, bearer, exchange, host

from openclaw_gateway.api import Principal, Refusal, StoreUnavailable
from openclaw_gateway.testing import ManualClock, build, configuration, serving
from openclaw_plugins.auth.jwt import JsonWebTokens
from openclaw_plugins.auth.key_source import KeySet

NOW = 1_800_000_000
CLAIMS = {"sub": "ada", "org_id": "acme", "tier": "teams", "exp": NOW + 600}
RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key, algorithm="RS256", **members):
    entry = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, **members}


def sign(key=RSA_KEYS[0], algorithm="RS256", claims=CLAIMS, **headers):
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers or None)


@asynccontextmanager
async def issuer():
    async with answering() as serves:
        serves.answer = {"keys": [jwk(RSA_KEYS[0], kid="one")]}
        yield serves


@asynccontextmanager
async def opened(directory, url, *, clock=None, algorithms=("RS256",), **jwks):
    clock = clock or ManualClock()
    config = JsonWebTokens.Config(algorithms=algorithms, jwks=KeySet(url=url, **jwks))
    plugin = JsonWebTokens(config, host(directory, id="jwt", clock=clock))
    plugin.at = clock
    async with plugin.lifespan():
        yield plugin


async def ask(plugin, token):
    return await plugin.authenticate(exchange(bearer(token)))


async def good(plugin, token):
    found = await ask(plugin, token)
    assert isinstance(found, Principal), found
    return True


async def refused(plugin, token):
    found = await ask(plugin, token)
    assert isinstance(found, Refusal), found
    assert found.status == 401
    return True


async def test_keys_are_fetched_before_the_first_token(tmp_path):
    async with issuer() as serves, opened(tmp_path, serves.url) as tokens:
        assert serves.asked == 1
        found = await ask(tokens, sign(kid="one"))
        assert (found.organization, found.user, found.tier, found.method) == ("acme", "ada", "teams", "jwt")
        assert await good(tokens, sign())  # no choice is left, so the key's id may be
        assert await refused(tokens, sign(RSA_KEYS[1], kid="one"))
        assert serves.asked == 1


async def test_a_new_key_is_found_by_its_id_and_an_old_one_ends_with_its_tokens(tmp_path):
    async with issuer() as serves, opened(tmp_path, serves.url) as tokens:
        old, new = sign(kid="one"), sign(RSA_KEYS[1], kid="two")
        assert await good(tokens, old)
        tokens.at.advance(10)
        serves.answer = {"keys": [jwk(RSA_KEYS[0], kid="one"), jwk(RSA_KEYS[1], kid="two")]}
        assert await good(tokens, new)
        assert await good(tokens, old)
        assert serves.asked == 2
        tokens.at.advance(10)
        serves.answer = {"keys": [jwk(RSA_KEYS[1], kid="two")]}
        assert await refused(tokens, sign(kid="three"))  # makes it ask
        assert await refused(tokens, old)  # verified before, but by a key that was withdrawn
        assert await good(tokens, new)


async def test_invented_key_ids_cause_one_fetch_in_a_while(tmp_path):
    async with issuer() as serves, opened(tmp_path, serves.url, unknown_key=10) as tokens:
        for _ in range(20):
            assert await refused(tokens, sign(kid="never"))
        assert serves.asked == 1  # it was asked just now
        tokens.at.advance(10)
        found = await asyncio.gather(*(ask(tokens, sign(kid=f"k{i}")) for i in range(50)))
        assert {f.status for f in found} == {401}
        assert serves.asked == 2
        assert await good(tokens, sign(kid="one"))


async def test_an_outage_at_the_start_is_503_until_keys_are_there(tmp_path, caplog):
    async with issuer() as serves:
        serves.answer = serves.down
        async with opened(tmp_path, serves.url) as tokens:
            found = await asyncio.gather(*(ask(tokens, sign(kid="one")) for _ in range(30)), return_exceptions=True)
            assert all(isinstance(f, StoreUnavailable) for f in found)
            assert serves.asked == 1
            with pytest.raises(StoreUnavailable):
                await tokens.health()[0].probe()
            tokens.at.advance(1)
            serves.answer = {"keys": [jwk(RSA_KEYS[0], kid="one")]}
            found = await asyncio.gather(*(ask(tokens, sign(kid="one")) for _ in range(30)))
            assert all(isinstance(f, Principal) for f in found)
            assert serves.asked == 2
            assert (await tokens.health()[0].probe())["keys"] == 1
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_the_last_good_keys_hold_through_an_outage_but_not_for_ever(tmp_path):
    async with issuer() as serves, opened(tmp_path, serves.url, keep=3600) as tokens:
        claims = {**CLAIMS, "exp": NOW + 10_000}
        serves.answer = serves.down
        tokens.at.advance(60)
        with pytest.raises(StoreUnavailable):  # it may be a new key's: nobody can say
            await ask(tokens, sign(claims=claims, kid="two"))
        assert await good(tokens, sign(claims=claims, kid="one"))
        assert await refused(tokens, sign(RSA_KEYS[1], claims=claims, kid="one"))
        tokens.at.advance(3600)
        with pytest.raises(StoreUnavailable):
            await ask(tokens, sign(claims={**claims, "jti": "fresh"}, kid="one"))


async def test_it_comes_back_by_itself(tmp_path):
    async with issuer() as serves:
        serves.answer = serves.down
        async with opened(tmp_path, serves.url) as tokens:
            serves.answer = {"keys": [jwk(RSA_KEYS[0], kid="one")]}
            async with asyncio.timeout(5):
                while serves.asked < 2:
                    await asyncio.sleep(0.02)
                while not tokens._source._good:
                    await asyncio.sleep(0.02)
            assert await good(tokens, sign(kid="one"))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"keys": 1}',
        b'{"keys": []}',
        b'{"keys": ["a"]}',
        b"\xff" * 100,
        b"[" * 100_000,
        b'{"keys": [' + b" " * 300_000 + b"]}",
        {"keys": [{"kty": "oct", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0", "kid": "one", "alg": "HS256"}]},
        {"keys": [{"kty": "RSA", "kid": "one", "n": "!", "e": "AQAB"}]},
        {"keys": [jwk(RSA_KEYS[0], kid="one", use="enc")]},
        {"keys": [jwk(RSA_KEYS[0], kid="one", alg="RS512")]},
        {"keys": [jwk(RSA_KEYS[0], kid="one", key_ops=["encrypt"])]},
        {"keys": [jwk(RSA_KEYS[0], kid=1)]},
        {"keys": [jwk(rsa.generate_private_key(65537, 1024), kid="one")]},
        {"keys": [jwt.get_algorithm_by_name("RS256").to_jwk(RSA_KEYS[0], as_dict=True) | {"kid": "one"}]},
    ],
    ids=range(17),
)
async def test_what_is_no_usable_key_set_is_an_outage_and_never_forgets_good_keys(tmp_path, answer):
    async with issuer() as serves:
        good_answer, serves.answer = serves.answer, answer
        async with opened(tmp_path / "a", serves.url) as tokens:
            with pytest.raises(StoreUnavailable):
                await ask(tokens, sign(kid="one"))
        serves.answer = good_answer
        async with opened(tmp_path / "b", serves.url) as tokens:
            serves.answer = answer
            tokens.at.advance(10)
            with pytest.raises(StoreUnavailable):
                await ask(tokens, sign(kid="two"))
            assert await good(tokens, sign(kid="one"))


async def test_one_bad_entry_does_not_take_the_good_ones_with_it(tmp_path):
    async with issuer() as serves:
        serves.answer = {
            "keys": [
                {"kty": "new"},
                {"kty": "RSA"},
                jwk(RSA_KEYS[1], kid="both"),
                jwk(EC_KEY, "ES256", kid="both", use="sig", alg="ES256"),
            ]
        }
        async with opened(tmp_path, serves.url, algorithms=("RS256", "ES256", "PS256")) as tokens:
            assert await good(tokens, sign(RSA_KEYS[1], kid="both"))
            assert await good(tokens, sign(RSA_KEYS[1], "PS256", kid="both"))
            assert await good(tokens, sign(EC_KEY, "ES256", kid="both"))
            assert await refused(tokens, sign(RSA_KEYS[0], kid="both"))


async def test_a_key_bound_to_an_algorithm_verifies_no_other(tmp_path):
    async with issuer() as serves:
        serves.answer = {"keys": [jwk(RSA_KEYS[0], kid="one", alg="RS256")]}
        async with opened(tmp_path, serves.url, algorithms=("RS256", "PS256")) as tokens:
            assert await good(tokens, sign(kid="one"))
            assert await refused(tokens, sign(algorithm="PS256", kid="one"))


async def test_a_slow_or_endless_server_is_given_up_in_time(tmp_path):
    async with issuer() as serves:

        async def silent(request):
            await asyncio.sleep(30)

        async def trickling(request):
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.05)

        for serves.answer in (silent, trickling):
            started = time.monotonic()
            async with opened(tmp_path, serves.url, timeout=0.3) as tokens:
                assert 0.25 < time.monotonic() - started < 10  # and not for ever
                with pytest.raises(StoreUnavailable):
                    await ask(tokens, sign(kid="one"))


async def test_whoever_stops_waiting_does_not_stop_the_fetch(tmp_path):
    async with issuer() as serves, opened(tmp_path, serves.url) as tokens:
        tokens.at.advance(10)
        held = asyncio.Event()

        async def waits(request):
            await held.wait()
            return web.json_response({"keys": [jwk(RSA_KEYS[1], kid="two")]})

        serves.answer = waits
        first, second = (asyncio.create_task(ask(tokens, sign(RSA_KEYS[1], kid="two"))) for _ in range(2))
        async with asyncio.timeout(5):
            while serves.asked < 2:
                await asyncio.sleep(0.01)
        first.cancel()
        held.set()
        assert isinstance(await second, Principal)
        assert serves.asked == 2


async def test_no_token_and_no_answer_leads_it_elsewhere(tmp_path):
    async with issuer() as serves, issuer() as trap:
        trap.answer = {"keys": [jwk(RSA_KEYS[1], kid="two")]}
        async with opened(tmp_path, serves.url) as tokens:
            for member in ("jku", "x5u"):
                tokens.at.advance(10)
                assert await refused(tokens, sign(RSA_KEYS[1], kid="two", **{member: trap.url}))
                assert await refused(tokens, sign(RSA_KEYS[1], kid=trap.url))
            embedded = sign(RSA_KEYS[1], kid="one", jwk=jwk(RSA_KEYS[1]))
            assert await refused(tokens, embedded)

            async def elsewhere(request):
                raise web.HTTPFound(trap.url)

            serves.answer = elsewhere
            tokens.at.advance(10)
            with pytest.raises(StoreUnavailable):
                await ask(tokens, sign(RSA_KEYS[1], kid="two"))
        assert trap.asked == 0


@pytest.mark.parametrize(
    ("jwks", "message"),
    [
        ({"url": "http://auth.example.com/keys"}, "jwks.url: http"),
        ({"url": "http://127.0.0.1.example.com/keys"}, "jwks.url: http"),
        ({"url": "https://user:password@auth.example.com/keys"}, "jwks.url: holds a user"),
        ({"url": "https:///keys"}, "jwks.url: not an address"),
        ({"url": "https://a/keys#b"}, "fragment"),
        ({"url": "https://a/keys", "keep": 90_000}, "jwks.keep"),
        ({"url": "https://a/keys", "refresh": 0.1}, "jwks.refresh"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(tmp_path, jwks, message):
    with pytest.raises(ValueError, match=message) as error:
        JsonWebTokens(JsonWebTokens.Config(algorithms=("RS256",), jwks=KeySet(**jwks)), host(tmp_path))
    assert "password@" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algorithms": ("HS256",)}, "jwks: HMAC"),
        ({"algorithms": ("RS256",), "public_key_file": "key"}, "jwks: public_key_file"),
    ],
)
def test_keys_come_from_one_place(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        JsonWebTokens(JsonWebTokens.Config(**config, jwks=KeySet(url="https://a/keys")), host(tmp_path))


async def test_served_with_a_key_server_that_comes_and_goes(tmp_path):
    """From the outside: 200 while keys are known, 503 with Retry-After and never 401 while nobody can know."""
    async with issuer() as serves:
        edit = {
            "plugins.jwt.algorithms": ["RS256"],
            "plugins.jwt.jwks.url": serves.url,
            "plugins.jwt.jwks.unknown_key": "100ms",
        }
        gateway = build(configuration(tmp_path, edit=edit))
        claims = {**CLAIMS, "exp": int(time.time()) + 600}
        async with serving(gateway) as url, aiohttp.ClientSession() as client:

            async def status(token):
                async with client.get(url + "/api/v1/usage", headers=dict([bearer(token)])) as answer:
                    body = json.loads(await answer.read())
                    if answer.status == 503:
                        assert int(answer.headers["Retry-After"]) >= 1
                        assert body["error"]["code"] == "SERVICE_UNAVAILABLE"
                        assert "127.0.0.1" not in json.dumps(body)
                    return answer.status

            assert await status(sign(claims=claims, kid="one")) == 200
            assert await status(sign(claims=claims, kid="two")) == 401
            serves.answer = serves.down
            await asyncio.sleep(0.15)
            assert await status(sign(RSA_KEYS[1], claims=claims, kid="two")) == 503
            assert await status(sign(claims=claims, kid="one")) == 200
            serves.answer = {"keys": [jwk(RSA_KEYS[1], kid="two")]}
            await asyncio.sleep(0.15)
            assert await status(sign(RSA_KEYS[1], claims=claims, kid="two")) == 200
            assert await status(sign(claims=claims, kid="one")) == 401
            failed = {"target": "jwt", "operation": "jwks", "error_type": "HTTP_500"}
            assert gateway.registry.get_sample_value("external_service_errors_total", failed) >= 1
