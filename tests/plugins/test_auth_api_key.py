import asyncio
import logging
import re
import stat
import string
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugins.auth_kit import SqliteKeys, bearer, exchange, host

from openclaw_gateway.api import NotGrantable, Principal, Refusal, Secret, StoreUnavailable, UnknownKey
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth import keys, tables
from openclaw_plugins.auth.api_key import ApiKeys

ACME = {"organization": "acme", "user": "ada", "tier": "teams"}


class Bench:
    """An opened plugin, its store and its clock."""

    def __init__(self, plugin, store, clock):
        self.plugin, self.store, self.clock = plugin, store, clock

    async def ask(self, key, *, bearing=False):
        return await self.plugin.authenticate(exchange(bearer(key) if bearing else ("X-API-Key", key)))

    async def row(self, key_id):
        (found,) = [r for r in await self.plugin.list() if r.key_id == key_id]
        return found


@asynccontextmanager
async def bench(directory, *, tiers=None, clock=None, dialect="sqlite", **config):
    store = SqliteKeys(directory / "keys.db")
    store.dialect = dialect
    await store.create()
    clock = clock or ManualClock()
    view = host(directory, id="api_key", tiers=tiers, instances={"database": store}, clock=clock)
    view.gateway = SimpleNamespace(url="http://127.0.0.1:4321")
    plugin = ApiKeys(ApiKeys.Config(**config), view)
    try:
        async with plugin.lifespan():
            yield Bench(plugin, store, clock)
    finally:
        await store.engine.dispose()


def test_the_form_of_a_key():
    made = {keys.new_key() for _ in range(200)}
    assert len({key_id for key_id, _ in made}) == 200
    for key_id, key in made:
        assert re.fullmatch(r"ocg_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}", key)
        assert keys.key_id(key.encode()) == key_id
    # 30 random characters of 62 are more than 160 bits
    assert 62**30 > 2**160


@settings(max_examples=500)
@given(data=st.data())
def test_any_changed_character_breaks_the_form_or_the_checksum(data):
    _, key = keys.new_key()
    place = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.characters(max_codepoint=255).filter(lambda c: c != key[place]))
    assert keys.key_id((key[:place] + other + key[place + 1 :]).encode("latin-1")) is None


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=100), st.from_regex(rb"ocg_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}", fullmatch=True)))
def test_an_invented_key_hardly_ever_has_the_checksum(text):
    assert keys.key_id(text) is None


@pytest.mark.parametrize("bearing", [False, True])
async def test_a_key_proves_its_caller_in_both_headers(tmp_path, bearing):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME, scopes=("admin", "chat", "admin"), expires_in=3600, name="ci")
        assert await b.ask(issued.key, bearing=bearing) == Principal(
            organization="acme",
            user="ada",
            tier="teams",
            scopes=frozenset({"admin", "chat"}),
            method="api_key",
            credential=issued.record.key_id,
            expires_at=b.clock.now() + 3600,
        )
        assert issued.key not in repr(issued)


async def test_other_credentials_are_not_its_business(tmp_path):
    async with bench(tmp_path) as b:
        for header in [bearer("a.b.c"), bearer("opaque"), ("Authorization", "Basic YTpi")]:
            assert await b.plugin.authenticate(exchange(header)) is None
        assert await b.plugin.authenticate(exchange()) is None


async def test_what_cannot_be_a_key_never_costs_a_look_up(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        before = b.store.transactions
        for place in range(len(issued.key)):
            swap = "b" if issued.key[place] == "a" else "a"
            found = await b.ask(issued.key[:place] + swap + issued.key[place + 1 :])
            assert isinstance(found, Refusal)
        for text in ("", "x", "ocg_", "a" * 100_000, issued.key + "0", issued.key[:-1], issued.key + "\n"):
            assert isinstance(await b.ask(text), Refusal)
        assert b.store.transactions == before


async def test_only_a_digest_is_stored_and_the_digest_is_no_credential(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        stored = await b.plugin._records.find(issued.record.key_id)
        for text in (stored.digest.hex(), f"ocg_{issued.record.key_id}_{stored.digest.hex()[:36]}"):
            assert isinstance(await b.ask(text), Refusal)
        secret = issued.key.split("_")[2].encode()
    content = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert issued.record.key_id.encode() in content
    assert secret not in content


async def test_unknown_wrong_expired_and_revoked_look_the_same(tmp_path):
    async with bench(tmp_path, cache_ttl=0.5) as b:
        expired = await b.plugin.create(**ACME, expires_in=5)
        revoked = await b.plugin.create(**ACME)
        await b.plugin.revoke(revoked.record.key_id)
        _, unknown = keys.new_key()
        # a well-formed key with a known id and another secret
        body = f"ocg_{revoked.record.key_id}_{'A' * 30}"
        wrong = body + keys._checksum(body.encode()).decode()
        b.clock.advance(5)
        found = [await b.ask(key) for key in (unknown, wrong, expired.key, revoked.key)]
        assert {f.status for f in found} == {401}
        assert found[0] == found[1] == found[2] == found[3]
        assert len(b.plugin._check.verified) == 0


async def test_refusals_of_well_formed_keys_cost_the_same_work(tmp_path, monkeypatch):
    """What may be told apart by time is how often the store is asked and how often a key is hashed: once each."""
    async with bench(tmp_path) as b:
        expired = await b.plugin.create(**ACME, expires_in=5)
        revoked = await b.plugin.create(**ACME)
        await b.plugin.revoke(revoked.record.key_id)
        old_pepper = await b.plugin.create(**ACME)
        await b.store.write(sa.update(tables.keys).values(pepper_version=7), key_id=old_pepper.record.key_id)
        body = f"ocg_{revoked.record.key_id}_{'A' * 30}"
        wrong = body + keys._checksum(body.encode()).decode()
        b.clock.advance(5)
        hashed = []
        real = keys.digest
        monkeypatch.setattr(keys, "digest", lambda pepper, text: hashed.append(text) or real(pepper, text))
        for key in (keys.new_key()[1], wrong, expired.key, revoked.key, old_pepper.key):
            asked = b.store.transactions
            hashed.clear()
            assert isinstance(await b.ask(key), Refusal)
            assert (b.store.transactions - asked, len(hashed)) == (1, 1)


async def test_a_key_expires_to_the_second_even_while_it_is_remembered(tmp_path):
    async with bench(tmp_path, cache_ttl=1.0) as b:
        issued = await b.plugin.create(**ACME, expires_in=0.5)
        assert isinstance(await b.ask(issued.key), Principal)
        b.clock.advance(0.5)
        assert isinstance(await b.ask(issued.key), Refusal)


async def test_a_good_key_is_looked_up_once_while_it_is_remembered(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        before = b.store.transactions
        for _ in range(50):
            assert isinstance(await b.ask(issued.key), Principal)
        assert b.store.transactions == before + 1
        b.clock.advance(0.8)
        await b.ask(issued.key)
        assert b.store.transactions == before + 2


async def test_a_revocation_elsewhere_holds_in_less_than_a_second(tmp_path):
    async with bench(tmp_path) as here, bench(tmp_path, clock=here.clock) as there:
        issued = await here.plugin.create(**ACME)
        assert isinstance(await there.ask(issued.key), Principal)
        assert isinstance(await here.ask(issued.key), Principal)
        await here.plugin.revoke(issued.record.key_id)
        assert isinstance(await here.ask(issued.key), Refusal)
        here.clock.advance(0.999)
        assert isinstance(await there.ask(issued.key), Refusal)


async def test_requests_at_the_same_moment_share_one_look_up(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        before = b.store.transactions
        found = await asyncio.gather(*(b.ask(issued.key) for _ in range(100)))
        assert all(isinstance(f, Principal) for f in found)
        assert b.store.transactions == before + 1
        assert len(b.plugin._check.flights) == 0


async def test_a_cancelled_look_up_does_not_fail_those_that_joined_it(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        first = asyncio.create_task(b.ask(issued.key))
        await asyncio.sleep(0)
        others = [asyncio.create_task(b.ask(issued.key)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        assert all(isinstance(f, Principal) for f in await asyncio.gather(*others))
        assert first.cancelled() or isinstance(first.result(), Principal)


async def test_a_store_that_is_down_is_no_refusal(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        b.store.down = True
        found = await asyncio.gather(*(b.ask(issued.key) for _ in range(10)), return_exceptions=True)
        assert all(isinstance(f, StoreUnavailable) for f in found)
        b.store.down = False
        assert isinstance(await b.ask(issued.key), Principal)


async def test_the_pepper_is_part_of_the_proof_and_can_be_rotated(tmp_path):
    old, new = Secret("o" * 32), Secret("n" * 32)
    async with bench(tmp_path, pepper=old) as b:
        issued = await b.plugin.create(**ACME)
    async with bench(tmp_path, pepper=new) as b:
        assert isinstance(await b.ask(issued.key), Refusal)
    async with bench(tmp_path, pepper=new, pepper_version=2, previous_pepper=old) as b:
        assert isinstance(await b.ask(issued.key), Principal)
        assert isinstance(await b.ask((await b.plugin.create(**ACME)).key), Principal)
    async with bench(tmp_path, pepper=new, pepper_version=2) as b:
        assert isinstance(await b.ask(issued.key), Refusal)


async def test_the_embedded_pepper_is_kept(tmp_path):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
    path = tmp_path / ".openclaw" / "api_key.pepper"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with bench(tmp_path) as b:
        assert isinstance(await b.ask(issued.key), Principal)


async def test_a_rotated_key_overlaps_its_successor(tmp_path):
    async with bench(tmp_path) as b:
        old = await b.plugin.create(**ACME, scopes=("chat",), name="ci", expires_in=1000)
        new = await b.plugin.rotate(old.record.key_id, overlap=60)
        assert (new.record.organization_id, new.record.user_id, new.record.tier) == ("acme", "ada", "teams")
        assert (new.record.scopes, new.record.name, new.record.expires_at) == (("chat",), "ci", old.record.expires_at)
        assert (await b.row(old.record.key_id)).replaced_by == new.record.key_id
        assert isinstance(await b.ask(old.key), Principal)
        assert isinstance(await b.ask(new.key), Principal)
        with pytest.raises(UnknownKey):
            await b.plugin.rotate(old.record.key_id, overlap=60)
        b.clock.advance(60)
        assert isinstance(await b.ask(old.key), Refusal)
        assert isinstance(await b.ask(new.key), Principal)


async def test_an_overlap_never_prolongs_a_key_and_two_rotations_leave_one_successor(tmp_path):
    async with bench(tmp_path) as b:
        old = await b.plugin.create(**ACME, expires_in=10)
        results = await asyncio.gather(
            *(b.plugin.rotate(old.record.key_id, overlap=60) for _ in range(2)), return_exceptions=True
        )
        assert sorted(type(r).__name__ for r in results) == ["IssuedKey", "UnknownKey"]
        assert len(await b.plugin.list()) == 2
        b.clock.advance(10)
        assert isinstance(await b.ask(old.key), Refusal)


async def test_unknown_keys_cannot_be_rotated_or_revoked(tmp_path):
    async with bench(tmp_path) as b:
        with pytest.raises(UnknownKey):
            await b.plugin.rotate("nobody", overlap=1)
        with pytest.raises(UnknownKey):
            await b.plugin.revoke("nobody")
        issued = await b.plugin.create(**ACME)
        await b.plugin.revoke(issued.record.key_id)
        first = (await b.row(issued.record.key_id)).revoked_at
        b.clock.advance(5)
        await b.plugin.revoke(issued.record.key_id)
        assert (await b.row(issued.record.key_id)).revoked_at == first
        with pytest.raises(UnknownKey):
            await b.plugin.rotate(issued.record.key_id, overlap=1)


async def test_a_listing_can_be_held_to_an_organisation(tmp_path):
    async with bench(tmp_path) as b:
        await b.plugin.create(**ACME)
        b.clock.advance(1)
        await b.plugin.create(**{**ACME, "organization": "other"})
        assert [r.organization_id for r in await b.plugin.list()] == ["other", "acme"]
        assert [r.organization_id for r in await b.plugin.list("acme")] == ["acme"]


async def test_a_grant_must_be_storable_and_of_a_known_tier(tmp_path):
    async with bench(tmp_path) as b:
        for change in (
            {"tier": "team"},
            {"tier": ""},
            {"organization": ""},
            {"user": "a\x00"},
            {"organization": "o" * 256},
            {"scopes": ("two words",)},
        ):
            with pytest.raises(NotGrantable):
                await b.plugin.create(**{**ACME, **change})
        assert await b.plugin.list() == []


async def test_last_use_is_written_later_and_survives_an_outage(tmp_path, caplog):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        await b.ask(issued.key)
        assert (await b.row(issued.record.key_id)).last_used_at is None
        b.store.down = True
        with caplog.at_level(logging.WARNING, "openclaw.api_key"):
            await b.plugin._last_used.flush()
        assert "not written" in caplog.text
        b.store.down = False
        await b.plugin._last_used.flush()
        assert (await b.row(issued.record.key_id)).last_used_at.timestamp() == b.clock.now()
        b.clock.advance(7)
        await b.ask(issued.key)
        later = b.clock.now()
    async with bench(tmp_path) as b:
        assert (await b.row(issued.record.key_id)).last_used_at.timestamp() == later


async def test_last_use_is_written_by_itself(tmp_path):
    async with bench(tmp_path, last_used_every=0.01) as b:
        issued = await b.plugin.create(**ACME)
        await b.ask(issued.key)
        async with asyncio.timeout(5):
            while (await b.row(issued.record.key_id)).last_used_at is None:
                await asyncio.sleep(0.01)


async def test_the_first_start_shows_a_key_that_works_at_once_and_later_ones_do_not(tmp_path):
    async with bench(tmp_path) as b:
        lines = "\n".join(b.plugin.notices())
        (key,) = set(re.findall(r"ocg_\w+", lines))
        assert f"curl -s http://127.0.0.1:4321/v1/chat/completions -H 'Authorization: Bearer {key}'" in lines
        assert '"model":"echo"' in lines
        found = await b.ask(key)
        assert (found.organization, found.user, found.tier, found.scopes) == ("dev", "dev", "teams", frozenset())
        assert len(await b.plugin.list()) == 1
    async with bench(tmp_path) as b:
        (line,) = b.plugin.notices()
        assert "openclaw-gateway keys create --org dev --user dev --tier teams" in line
        assert not re.search(r"ocg_\w+", line)
        assert len(await b.plugin.list()) == 1


async def test_a_command_does_not_use_up_the_development_key(tmp_path):
    async with bench(tmp_path) as b:
        assert await b.plugin.list() == []
    async with bench(tmp_path) as b:
        assert "ocg_" in b.plugin.notices()[0]


@pytest.mark.parametrize("config", [{"development_key": False}, {"dialect": "postgresql"}])
async def test_no_development_key_where_it_is_not_wanted(tmp_path, config):
    async with bench(tmp_path, **config) as b:
        assert b.plugin.notices() == []
        assert await b.plugin.list() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cache_ttl": 1.1}, "cache_ttl"),
        ({"pepper": Secret("short")}, "pepper: shorter"),
        ({"previous_pepper": Secret("short")}, "previous_pepper: shorter"),
    ],
)
def test_settings_that_break_a_promise_refuse_the_start(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        ApiKeys(ApiKeys.Config(**config), host(tmp_path, instances={"database": object()}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_changed_character_is_refused(tmp_path, data):
    async with bench(tmp_path) as b:
        issued = await b.plugin.create(**ACME)
        place = data.draw(st.integers(0, len(issued.key) - 1))
        other = data.draw(st.sampled_from([c for c in string.printable[:95] if c != issued.key[place]]))
        assert isinstance(await b.ask(issued.key[:place] + other + issued.key[place + 1 :]), Refusal)
