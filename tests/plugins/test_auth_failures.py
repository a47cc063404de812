"""Who guesses is slowed down; who has been good is not, whatever others try."""

import logging

import aiohttp
import pytest
from plugins.auth_kit import bearer, exchange, host

from openclaw_gateway.api import PRINCIPAL, Principal, StoreUnavailable, unauthorized
from openclaw_gateway.testing import ManualClock, build, configuration, serving
from openclaw_plugins.auth import keys
from openclaw_plugins.auth.failed_attempts import FailureLimits
from openclaw_plugins.auth.step import Auth

ADA = Principal(organization="acme", user="ada", tier="teams", method="m", credential="c")
KEY_ID, GOOD_KEY = keys.new_key()


class Method:
    """Lets in what it was told is good; fails on demand."""

    def __init__(self, *good):
        self.good, self.asked, self.down = set(good), 0, False

    async def authenticate(self, x):
        self.asked += 1
        if self.down:
            raise StoreUnavailable("store", "down")
        value = (x.header(b"authorization") or x.header(b"x-api-key") or b"").decode().removeprefix("Bearer ")
        return ADA if value in self.good else unauthorized("bad")


class Door:
    def __init__(self, directory, *good, **limits):
        self.method, self.clock = Method(*good), ManualClock()
        view = host(directory, id="auth", instances={"m": self.method}, clock=self.clock)
        self.auth = Auth(Auth.Config(methods=("m",), failures=FailureLimits(**limits)), view)
        self.registry = view.registry

    async def try_(self, token, address="192.0.2.1"):
        x = exchange(bearer(token))
        x.client = address
        found = await self.auth.on_request(x)
        assert (found is None) == (PRINCIPAL in x)
        return found.status if found is not None else 200


def wrong_key(i):
    """A key with the id of a real one, another secret, and the checksum that fits."""
    body = f"ocg_{KEY_ID}_{i:030d}"
    return body + keys._checksum(body.encode()).decode()


async def test_an_address_that_guesses_is_held_back_for_the_rest_of_the_window(tmp_path, caplog):
    door = Door(tmp_path, "good", per_address=3, window=60)
    assert [await door.try_(f"bad{i}") for i in range(5)] == [401, 401, 401, 429, 429]
    assert door.method.asked == 3
    assert await door.try_("bad", "192.0.2.2") == 401
    door.clock.advance(20)
    x = exchange(bearer("bad"))
    x.client = "192.0.2.1"
    found = await door.auth.on_request(x)
    headers, body = found.render("/x", None)
    assert dict(headers)[b"retry-after"] == b"40"
    assert found.extra["limit"]["scope"] == "client"
    assert b"192.0.2" not in body
    door.clock.advance(40)
    assert [await door.try_(f"bad{i}") for i in range(4)] == [401, 401, 401, 429]
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 2
    assert door.registry.get_sample_value("auth_failures_total", {"result": "refused"}) == 7
    assert door.registry.get_sample_value("auth_failures_total", {"result": "held_back"}) == 4


async def test_who_has_been_good_is_not_shut_out_by_neighbours(tmp_path):
    door = Door(tmp_path, "good", "new", per_address=3)
    assert await door.try_("good") == 200
    for i in range(10):
        await door.try_(f"bad{i}")
    assert await door.try_("good") == 200
    assert await door.try_("new") == 429
    # once it is bad it counts as any other
    door.method.good.clear()
    assert [await door.try_("good") for _ in range(2)] == [401, 429]


async def test_who_is_remembered_as_good_is_who_came_last(tmp_path):
    door = Door(tmp_path, "busy", "seldom", "new", per_address=3, size=2)
    for name in ("busy", "seldom", "busy", "new"):  # there is room for two
        assert await door.try_(name) == 200
    for i in range(4):
        await door.try_(f"bad{i}")
    assert [await door.try_(name) for name in ("busy", "new", "seldom")] == [200, 200, 429]


async def test_where_all_are_in_use_one_leaves_all_the_same(tmp_path):
    names = [f"good{i}" for i in range(20)]
    door = Door(tmp_path, *names, "new", per_address=3, size=20)
    for name in (*names, *names, "new"):
        assert await door.try_(name) == 200
    assert len(door.auth._failures._good) == 20
    for i in range(4):
        await door.try_(f"bad{i}")
    assert await door.try_("new") == 200
    assert sorted([await door.try_(name) for name in names]) == [200] * 19 + [429]


async def test_a_key_that_is_guessed_from_many_addresses_is_held_back_but_not_from_its_owner(tmp_path):
    door = Door(tmp_path, GOOD_KEY, per_key=5, per_address=0)
    assert await door.try_(GOOD_KEY) == 200
    tried = [await door.try_(wrong_key(i), f"198.51.100.{i}") for i in range(8)]
    assert tried == [401] * 5 + [429] * 3
    assert await door.try_(GOOD_KEY, "203.0.113.9") == 200
    # what lacks a key's checksum says nothing of the key
    assert await door.try_(GOOD_KEY[:-1] + "!") == 401


async def test_mistyped_keys_do_not_count_against_the_key(tmp_path):
    door = Door(tmp_path, GOOD_KEY, per_key=2, per_address=0)
    for place in range(20, 40):
        assert await door.try_(GOOD_KEY[:place] + "~" + GOOD_KEY[place + 1 :]) == 401
    assert await door.try_(wrong_key(1)) == 401


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
async def test_an_address_is_what_one_client_can_choose_from(tmp_path, one, other, same):
    door = Door(tmp_path, per_address=1)
    assert await door.try_("bad", one) == 401
    assert await door.try_("bad", other) == (429 if same else 401)


async def test_outages_and_missing_credentials_do_not_count(tmp_path):
    door = Door(tmp_path, "good", per_address=1)
    door.method.down = True
    assert [await door.try_("good") for _ in range(3)] == [503] * 3
    for _ in range(3):
        x = exchange()
        x.client = "192.0.2.1"
        assert (await door.auth.on_request(x)).status == 401
    door.method.down = False
    assert await door.try_("good") == 200


async def test_limits_can_be_switched_off(tmp_path):
    door = Door(tmp_path, per_address=0, per_key=0)
    assert {await door.try_(wrong_key(i)) for i in range(100)} == {401}
    assert len(door.auth._failures._counts) == 0


async def test_what_is_counted_is_bounded_and_the_oldest_leaves(tmp_path):
    door = Door(tmp_path, *(f"good{i}" for i in range(50)), per_address=1, size=10)
    for i in range(200):
        assert await door.try_("bad", f"198.51.100.{i}") == 401
        assert len(door.auth._failures._counts) <= 11
    for i in range(50):
        assert await door.try_(f"good{i}", "203.0.113.1") == 200
    assert len(door.auth._failures._good) == 10
    assert await door.try_("bad", "198.51.100.199") == 429
    door.clock.advance(60)
    await door.try_("bad", "192.0.2.7")
    assert len(door.auth._failures._counts) == 1


async def test_a_credential_in_the_query_or_the_body_lets_nobody_in_and_is_not_written(tmp_path):
    edit = {"plugins.access_log.file": "gateway.log", "plugins.access_log.level": "debug"}
    gateway = build(configuration(tmp_path, edit=edit))
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        key = (await gateway.plugin("api_key").create(organization="acme", user="ada", tier="teams")).key
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams")
        for secret in (key, token):
            for name in ("token", "ticket", "access_token", "api_key", "apikey", "key", "X-API-Key", "authorization"):
                for given in ({"params": {name: secret}}, {"json": {name: secret}}, {"data": {name: secret}}):
                    async with client.post(url + "/api/v1/sessions", **given) as answer:
                        assert answer.status == 401
                        assert secret not in f"{answer.headers}{await answer.text()}"
        async with client.get(url + "/metrics") as answer:
            assert key.split("_")[1] not in await answer.text()
    written = (tmp_path / "gateway.log").read_text()
    assert written.count('"status":401') == 2 * 8 * 3
    assert key not in written and token not in written and token.split(".")[1] not in written


async def test_served(tmp_path):
    gateway = build(configuration(tmp_path, edit={"plugins.auth.failures.per_address": 3}))
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        key = (await gateway.plugin("api_key").create(organization="acme", user="ada", tier="teams")).key

        async def get(key):
            async with client.get(url + "/api/v1/usage", headers={"X-API-Key": key}) as answer:
                return answer.status, await answer.json(), answer.headers

        assert (await get(key))[0] == 200
        assert [(await get("nonsense"))[0] for _ in range(3)] == [401] * 3
        status, body, headers = await get("nonsense")
        assert (status, body["error"]["code"]) == (429, "RATE_LIMIT_EXCEEDED")
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert (await get(key))[0] == 200
