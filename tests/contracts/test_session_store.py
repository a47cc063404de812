"""What every session store must hold, on every backend."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from sqlalchemy import text

from openclaw_gateway.api import Limit, NewMessage, Principal, Refused, Secret, Session, SessionStore, Take
from openclaw_plugins.redis import RedisConnection
from openclaw_plugins.sessions import lookup
from openclaw_plugins.sessions.cache import CachedSessions

from .conftest import Stores

LEASE = Limit(name="concurrency.sessions", meter="sessions", kind="lease", limit=3)
MONTHLY = Limit(name="quota.sessions", meter="sessions", kind="quota", limit=100)
MESSAGES = Limit(name="quota.messages", meter="messages", kind="quota", limit=5)
UNKNOWN = "0190b0e0-0000-7000-8000-000000000000"


@pytest.fixture(params=["plain", "cached"])
async def stores(request: pytest.FixtureRequest, config: dict[str, Any], tmp_path: Path) -> AsyncIterator[Stores]:
    async with Stores(tmp_path, config, {}).opened() as opened:
        if request.param == "plain":
            yield opened
            return
        settings = RedisConnection.Config(
            url=Secret(request.getfixturevalue("valkey_url")), prefix=f"t{uuid4().hex[:12]}:"
        )
        redis = RedisConnection(settings, opened.host("redis"))
        opened.instances["redis"] = redis
        cached: Any = CachedSessions(CachedSessions.Config(store="sessions"), opened.host("cached"))
        async with redis.lifespan(), cached.lifespan():
            opened.sessions = cached
            yield opened


def principal(organization: str = "acme") -> Principal:
    return Principal(organization=organization, user="ada", tier="teams", method="api_key", credential="k")


async def create(stores: Stores, organization: str = "acme", **fields: Any) -> Session:
    given = {"tier": "teams", "metadata": {}, "ttl": None, "holds": (), **fields}
    return await stores.sessions.create(principal(organization), **given)


async def say(stores: Stores, session: Session, content: Any, role: str = "user") -> None:
    await stores.sessions.append("acme", session.session_id, [NewMessage(role=role, content=content)])


async def used(stores: Stores, limit: Limit) -> int:
    (balance,) = await stores.accounts.peek("acme", [Take(limit, "-")])
    return balance.used


async def age(stores: Stores, session: Session) -> None:
    """Let a session's time come, by the database's clock."""
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        await connection.execute(
            text("UPDATE openclaw_sessions SET expires_at = created_at WHERE user_id = 'ada' AND tier = :tier"),
            {"tier": session.tier},
        )


def status_of(error: pytest.ExceptionInfo[Refused]) -> int:
    return error.value.refusal.status


async def test_it_is_a_store(stores: Stores) -> None:
    assert isinstance(stores.sessions, SessionStore)


async def test_what_was_created_is_found_as_it_was(stores: Stores) -> None:
    metadata = {"z": 1, "a": [None, True, {"ü": "🙂"}], "n": 1.5, "big": 2**70}
    made = await create(stores, metadata=metadata)
    assert made == await stores.sessions.get("acme", made.session_id)
    assert list(made.metadata) == ["z", "a", "n", "big"]
    assert made.status == "active" and made.session_id[14] == "7"
    assert (made.expires_at - made.created_at).total_seconds() == 86_400
    assert made.created_at.utcoffset() is not None
    assert made == await stores.sessions.get("acme", made.session_id.upper())


@pytest.mark.parametrize("id", ["", "x", "1", "../..", "0190b0e0", "\x00", "é" * 50, UNKNOWN])
async def test_an_unknown_session_is_404_for_every_call(stores: Stores, id: str) -> None:
    store = stores.sessions
    for call in (
        lambda: store.get("acme", id),
        lambda: store.update("acme", id, metadata={}, status=None),
        lambda: store.delete("acme", id),
        lambda: store.append("acme", id, [NewMessage(role="user", content="x")]),
        lambda: store.messages("acme", id, limit=5, cursor=None),
        lambda: store.history("acme", id, limit=5),
    ):
        with pytest.raises(Refused) as error:
            await call()
        assert status_of(error) == 404


async def test_another_organizations_session_is_403_for_every_call_and_untouched(stores: Stores) -> None:
    made = await create(stores, metadata={"canary": 1})
    await say(stores, made, "canary")
    store, id = stores.sessions, made.session_id
    for call in (
        lambda: store.get("other", id),
        lambda: store.update("other", id, metadata={}, status="inactive"),
        lambda: store.delete("other", id),
        lambda: store.append("other", id, [NewMessage(role="user", content="x")]),
        lambda: store.messages("other", id, limit=5, cursor=None),
        lambda: store.history("other", id, limit=5),
    ):
        with pytest.raises(Refused) as error:
            await call()
        assert status_of(error) == 403 and "acme" not in error.value.refusal.message
    assert (await store.list("other", status=None, limit=10, cursor=None)).items == []
    assert (await store.get("acme", id)).metadata == {"canary": 1}
    assert len(await store.history("acme", id, limit=10)) == 1


async def test_an_expired_session_is_gone_at_once(stores: Stores) -> None:
    old = await create(stores, tier="old")
    await say(stores, old, "x")
    await age(stores, old)
    for organization in ("acme", "other"):
        with pytest.raises(Refused) as error:
            await stores.sessions.get(organization, old.session_id)
        assert status_of(error) == 404
    with pytest.raises(Refused):
        await stores.sessions.history("acme", old.session_id, limit=5)
    with pytest.raises(Refused):
        await say(stores, old, "y")
    assert (await stores.sessions.list("acme", status=None, limit=10, cursor=None)).items == []
    (listed,) = (await stores.sessions.list("acme", status="expired", limit=10, cursor=None)).items
    assert listed.status == "expired"
    assert await stores.instances["sessions"].expire() == 1
    assert await stores.instances["sessions"].expire() == 0
    assert stores.registry.get_sample_value("session_duration_seconds_count", {"tier": "old"}) == 1


async def test_update_and_status_filter(stores: Stores) -> None:
    one, two = await create(stores), await create(stores)
    changed = await stores.sessions.update("acme", one.session_id, metadata={"a": 1}, status="inactive")
    assert changed.metadata == {"a": 1} and changed.status == "inactive" and changed.updated_at >= one.updated_at
    kept = await stores.sessions.update("acme", one.session_id, metadata=None, status=None)
    assert kept.metadata == {"a": 1} and kept.status == "inactive"

    async def listed(status: str | None) -> set[str]:
        page = await stores.sessions.list("acme", status=status, limit=10, cursor=None)
        return {session.session_id for session in page.items}

    assert await listed("inactive") == {one.session_id}
    assert await listed("active") == {two.session_id}
    assert await listed(None) == {one.session_id, two.session_id}


async def test_lists_page_newest_first_without_loss(stores: Stores) -> None:
    made = [(await create(stores)).session_id for _ in range(7)]
    await create(stores, "other")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await stores.sessions.list("acme", status="active", limit=3, cursor=cursor)
        seen += [session.session_id for session in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.items) == 3
    assert sorted(seen) == sorted(made) and len(seen) == 7
    times = [(await stores.sessions.get("acme", id)).created_at for id in seen]
    assert times == sorted(times, reverse=True)


async def test_messages_are_gapless_under_concurrency_and_page_oldest_first(stores: Stores) -> None:
    made = await create(stores)
    await asyncio.gather(
        *(
            stores.sessions.append(
                "acme",
                made.session_id,
                [NewMessage(role="user", content=f"q{i}"), NewMessage(role="assistant", content=f"a{i}")],
            )
            for i in range(10)
        )
    )
    async with stores.database.transaction("acme", operation="select", table="t") as connection:
        rows = await connection.execute(text("SELECT seq FROM openclaw_messages ORDER BY seq"))
        assert [row[0] for row in rows] == list(range(1, 21))
    contents: list[str] = []
    cursor: str | None = None
    while True:
        page = await stores.sessions.messages("acme", made.session_id, limit=7, cursor=cursor)
        contents += [message.content for message in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(contents) == 20
    # a turn's messages stand together, in order
    assert all(contents[i][1:] == contents[i + 1][1:] and contents[i][0] == "q" for i in range(0, 20, 2))
    last = await stores.sessions.history("acme", made.session_id, limit=3)
    assert [message.content for message in last] == contents[-3:]


async def test_a_history_stops_at_its_bytes(stores: Stores) -> None:
    made = await create(stores)
    contents: list[Any] = ["a" * 50, [1] * 40, "é" * 20, {"k": [1, "🙂"]}, "", "b" * 10]
    for content in contents:
        await say(stores, made, content)
    sizes = [len(msgspec.json.encode(content)) for content in contents]
    for most in range(sum(sizes) + 2):
        fit = sum(sum(sizes[start:]) <= most for start in range(len(sizes)))
        got = await stores.sessions.history("acme", made.session_id, limit=9, max_bytes=most)
        assert [message.content for message in got] == contents[len(contents) - fit :]
    two = await stores.sessions.history("acme", made.session_id, limit=2, max_bytes=1_000)
    assert [message.content for message in two] == contents[-2:]


async def test_a_long_history_is_not_read_to_its_end(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await create(stores)
    for _ in range(10):
        await say(stores, made, "x" * 1_000)
    taken: list[Any] = []
    sent: list[int] = []
    fitting = lookup._fitting

    def counted(rows: Any, max_bytes: int) -> Any:
        kept = fitting((taken.append(row) or row for row in rows), max_bytes)
        sent.append(len(rows.all()))
        return kept

    monkeypatch.setattr(lookup, "_fitting", counted)
    kept = await stores.sessions.history("acme", made.session_id, limit=9, max_bytes=2_100)
    assert len(kept) == 2
    assert len(taken) == 3, "the first that does not fit tells that the rest does not"
    if stores.database.dialect == "postgresql":
        assert sent == [1], "twice as many bytes at most are sent: four messages"
    else:
        assert sent == [6], "SQLite finds a row when it is asked for it"


async def test_content_comes_back_as_it_was(stores: Stores) -> None:
    made = await create(stores)
    for content in ("", "text", None, [{"type": "text", "text": "🙂", "b": 1, "a": 2}], {"deep": [1, 2.5, False]}):
        await say(stores, made, content, "tool")
    stored = await stores.sessions.history("acme", made.session_id, limit=10)
    assert [message.content for message in stored] == [
        "",
        "text",
        None,
        [{"type": "text", "text": "🙂", "b": 1, "a": 2}],
        {"deep": [1, 2.5, False]},
    ]
    assert {message.role for message in stored} == {"tool"}


async def test_wrong_cursors_are_400(stores: Stores) -> None:
    one, two = await create(stores), await create(stores)
    for session in (one, two):
        for _ in range(3):
            await say(stores, session, "x")
    mine = (await stores.sessions.list("acme", status=None, limit=1, cursor=None)).next_cursor
    theirs = (await stores.sessions.messages("acme", two.session_id, limit=1, cursor=None)).next_cursor
    assert mine and theirs
    encoded = base64.urlsafe_b64encode
    bad = ["", "x", "é", "\x00", "%%%", mine[:-3], encoded(b"[]").decode(), encoded(b'["m",1,2]').decode(), "A" * 5000]
    for cursor in [*bad, theirs]:
        with pytest.raises(Refused) as error:
            await stores.sessions.list("acme", status=None, limit=1, cursor=cursor)
        assert status_of(error) == 400 and error.value.refusal.param == "cursor"
    for cursor in [*bad, mine, theirs]:
        with pytest.raises(Refused) as error:
            await stores.sessions.messages("acme", one.session_id, limit=1, cursor=cursor)
        assert status_of(error) == 400
    for organization, status in (("other", None), ("acme", "active")):
        with pytest.raises(Refused) as error:
            await stores.sessions.list(organization, status=status, limit=1, cursor=mine)
        assert status_of(error) == 400


async def test_a_session_holds_its_lease_until_it_ends(stores: Stores) -> None:
    made = []
    for _ in range(3):
        _, holds = await stores.accounts.reserve("acme", [Take(LEASE, "-", 1, "x"), Take(MONTHLY, "-")])
        made.append(await create(stores, holds=holds))
    balances, holds = await stores.accounts.reserve("acme", [Take(LEASE, "-", 1, "x"), Take(MONTHLY, "-")])
    assert not holds and balances[0].refused
    await stores.sessions.delete("acme", made[0].session_id)
    with pytest.raises(Refused):
        await stores.sessions.delete("acme", made[0].session_id)
    assert (await used(stores, LEASE), await used(stores, MONTHLY)) == (2, 3)


async def test_what_is_not_stored_is_not_charged(stores: Stores) -> None:
    _, holds = await stores.accounts.reserve("acme", [Take(MONTHLY, "-")])
    with pytest.raises(Refused):
        await create(stores, metadata={"x": "y" * 70_000}, holds=holds)
    made = await create(stores)
    _, holds = await stores.accounts.reserve("acme", [Take(MESSAGES, "-")])
    with pytest.raises(Refused) as error:
        await stores.sessions.append("acme", made.session_id, [NewMessage(role="user", content="\ud800")], holds=holds)
    assert status_of(error) == 400
    assert (await used(stores, MONTHLY), await used(stores, MESSAGES)) == (0, 0)
    _, holds = await stores.accounts.reserve("acme", [Take(MESSAGES, "-")])
    await stores.sessions.append("acme", made.session_id, [NewMessage(role="user", content="x")], holds=holds)
    assert await used(stores, MESSAGES) == 1
    assert len(await stores.sessions.history("acme", made.session_id, limit=9)) == 1


async def test_the_holds_of_a_session_that_is_gone_are_left_to_the_caller(stores: Stores) -> None:
    """He knows whether what they are for was delivered: to end a session while it is answered must save nothing."""
    made = await create(stores)
    await stores.sessions.delete("acme", made.session_id)
    for charged in (False, True):
        _, holds = await stores.accounts.reserve("acme", [Take(MESSAGES, "-")])
        with pytest.raises(Refused) as error:
            await stores.sessions.append("acme", made.session_id, [NewMessage(role="user", content="x")], holds=holds)
        assert status_of(error) == 404
        await (stores.accounts.commit(holds) if charged else stores.accounts.void(holds))
        assert await used(stores, MESSAGES) == int(charged)


async def test_delete_takes_the_messages_along(stores: Stores) -> None:
    made = await create(stores)
    await say(stores, made, "x")
    await stores.sessions.delete("acme", made.session_id)
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        assert (await connection.execute(text("SELECT count(*) FROM openclaw_messages"))).scalar_one() == 0
    with pytest.raises(Refused) as error:
        await stores.sessions.get("acme", made.session_id)
    assert status_of(error) == 404


@pytest.mark.parametrize("ttl", [0, -1, 31 * 86_400, 1e18, float("nan")])
async def test_a_life_out_of_bounds_is_400(stores: Stores, ttl: float) -> None:
    with pytest.raises(Refused) as error:
        await create(stores, ttl=ttl)
    assert status_of(error) == 400


async def test_counts_are_read_from_the_store(stores: Stores) -> None:
    one, _ = await create(stores), await create(stores)
    await stores.sessions.delete("acme", one.session_id)
    async with Stores(stores.host("x").config_dir, stores.config, {}).opened() as other:
        assert other.registry.get_sample_value("sessions_active", {"tier": "teams"}) == 1
    assert stores.registry.get_sample_value("sessions_total", {"tier": "teams"}) == 2
    assert stores.registry.get_sample_value("session_duration_seconds_count", {"tier": "teams"}) == 1


async def test_work_of_a_charge_that_was_given_back_or_made_is_not_stored(stores: Stores) -> None:
    """Whoever was told that it had no effect may ask again; the work of one moment fails alone."""
    session = await create(stores)
    holds = {}
    for name in ("disowned", "charged", "good"):
        _, holds[name] = await stores.accounts.reserve("acme", [Take(MESSAGES, "-", 1, name)])
    await stores.accounts.commit(holds["charged"])
    assert not await stores.accounts.disown("acme", "disowned")

    async def append(name: str) -> None:
        new = [NewMessage(role="user", content=name)]
        await stores.sessions.append("acme", session.session_id, new, holds=holds[name])

    found = await asyncio.gather(*map(append, holds), return_exceptions=True)
    assert [e.refusal.status for e in found if isinstance(e, Refused)] == [409, 409] and found[2] is None
    page = await stores.sessions.messages("acme", session.session_id, limit=10, cursor=None)
    assert [message.content for message in page.items] == ["good"]
    assert await used(stores, MESSAGES) == 2
