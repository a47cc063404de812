"""What every store that searches messages must hold, on every backend."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Select, Subquery, text
from sqlalchemy.sql import visitors

from openclaw_gateway.api import MessageSearch, NewMessage, Principal, Refused, Session

from .conftest import Stores


async def session(stores: Stores, *said: str, user: str = "ada", organization: str = "acme") -> Session:
    who = Principal(organization=organization, user=user, tier="teams", method="api_key", credential="k")
    made = await stores.sessions.create(who, tier="teams", metadata={}, ttl=None, holds=())
    for content in said:
        await stores.sessions.append(organization, made.session_id, [NewMessage(role="user", content=content)])
    return made


async def found(
    stores: Stores,
    query: str,
    *,
    of: Session | None = None,
    user: str | None = "ada",
    organization: str = "acme",
    limit: int = 10,
) -> list[str]:
    session_id = of.session_id if of is not None else None
    messages = await stores.sessions.search(organization, text=query, session_id=session_id, user=user, limit=limit)
    return [message.content for message in messages]


async def test_it_can_search(stores: Stores) -> None:
    assert isinstance(stores.sessions, MessageSearch)


async def test_messages_that_hold_every_word(stores: Stores) -> None:
    mine = await session(stores, "The quick brown fox", "A quick dog", "grüne Äpfel 東京")
    assert await found(stores, "quick", of=mine) == ["A quick dog", "The quick brown fox"]
    assert await found(stores, "FOX quick", of=mine) == ["The quick brown fox"]
    assert await found(stores, "grüne", of=mine) == ["grüne Äpfel 東京"]
    assert await found(stores, "fox dog", of=mine) == []
    assert await found(stores, "qui", of=mine) == []
    assert await found(stores, "ÄPFEL", of=mine) == ["grüne Äpfel 東京"]
    assert await found(stores, "quick", of=mine, limit=1) == ["A quick dog"]


@pytest.mark.parametrize(
    "query", ["", "   ", "!!!", "'; DROP TABLE x; --", "a:* & !b | (c", "%", "_", "\\", '"', "x" * 1000, "🙂"]
)
async def test_odd_queries_find_nothing_and_break_nothing(stores: Stores, query: str) -> None:
    mine = await session(stores, "The quick brown fox")
    assert await found(stores, query, of=mine) == []
    assert await found(stores, "fox", of=mine) == ["The quick brown fox"]


async def test_all_sessions_of_one_user_and_nobody_elses(stores: Stores) -> None:
    await session(stores, "first fox")
    await session(stores, "second fox")
    await session(stores, "another user's fox", user="eve")
    await session(stores, "another organisation's fox", organization="other")
    old = await session(stores, "expired fox")
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        await connection.execute(
            text("UPDATE openclaw_sessions SET expires_at = created_at WHERE CAST(session_id AS TEXT) IN (:id, :hex)"),
            {"id": old.session_id, "hex": old.session_id.replace("-", "")},
        )
    assert await found(stores, "fox") == ["second fox", "first fox"]
    assert await found(stores, "fox", user=None) == []
    assert await found(stores, "fox", organization="third") == []


async def test_a_session_that_is_not_there_is_refused(stores: Stores) -> None:
    mine = await session(stores, "fox")
    with pytest.raises(Refused) as error:
        await found(stores, "fox", of=mine, organization="other")
    assert error.value.refusal.status == 403


async def test_contents_of_other_shapes_do_not_stand_in_the_way(stores: Stores) -> None:
    mine = await session(stores, "plain fox")
    await stores.sessions.append(
        "acme", mine.session_id, [NewMessage(role="tool", content=[{"type": "text", "text": "x"}])]
    )
    assert await found(stores, "fox", of=mine) == ["plain fox"]


async def test_the_index_of_sqlite_follows_the_messages(stores: Stores) -> None:
    if stores.database.dialect != "sqlite":
        pytest.skip("PostgreSQL has no index beside its messages")
    mine, other = await session(stores, "one fox", "another fox"), await session(stores, "third fox")
    assert await indexed(stores) == 3
    await stores.sessions.delete("acme", mine.session_id)
    async with stores.database.transaction(None, operation="delete", table="t") as connection:
        await connection.execute(
            text("DELETE FROM openclaw_messages WHERE session_id = :hex"), {"hex": mine.session_id.replace("-", "")}
        )
    assert await indexed(stores) == 1
    assert await found(stores, "fox") == ["third fox"] == await found(stores, "fox", of=other)


async def indexed(stores: Stores) -> int:
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        return int((await connection.execute(text("SELECT count(*) FROM openclaw_message_words"))).scalar() or 0)


async def test_what_is_sorted_holds_no_messages(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await session(stores, *(f"fox {i}" for i in range(5)))
    asked: list[Any] = []
    read = stores.sessions.search.__self__._read

    async def noted(organization: str, id: str | None, query: Any) -> Any:
        asked.append(query)
        return await read(organization, id, query)

    monkeypatch.setattr(stores.sessions.search.__self__, "_read", noted)
    assert await found(stores, "fox", of=mine, limit=2) == ["fox 4", "fox 3"]
    assert await found(stores, "fox", limit=2) == ["fox 4", "fox 3"]
    for query in asked:
        inner = [each for each in visitors.iterate(query) if isinstance(each, Subquery) and "timestamp" in each.c]
        assert {tuple(each.c.keys()) for each in inner} == {("message_id", "timestamp", "rank")}
        limits = {each.element._limit for each in inner if isinstance(each.element, Select)}
        assert limits == {2}, "the rest is never read"


async def test_searches_leave_connections_to_others(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await session(stores, "fox")
    running, most = 0, 0
    read = stores.sessions.search.__self__._read

    async def slow(*given: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        try:
            return await read(*given)
        finally:
            running -= 1

    monkeypatch.setattr(stores.sessions.search.__self__, "_read", slow)
    assert await asyncio.gather(*(found(stores, "fox", of=mine) for _ in range(8))) == [["fox"]] * 8
    assert most == 2
