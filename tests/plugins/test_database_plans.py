"""No request reads a whole table: what a request asks of SQLite is found by an index, however much is stored."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openclaw_gateway.api import Limit, Take
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.database import engines

QUOTAS = """
[ratelimit.requests]
limit = 1000
per = "minute"
[ratelimit.ws_messages]
limit = 1000
per = "minute"
[quota.sessions]
limit = 1000
per = "month"
[quota.messages]
limit = 1000
per = "month"
[quota.messages_of_a_user]
meter = "messages"
limit = 6
per = "day"
scope = "user"
[quota.skills]
limit = 1000
per = "session"
[concurrency.sessions]
limit = 100
[concurrency.ws_connections]
limit = 10
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
#: where whole tables are read, and why that is right
WHOLE = {
    "FROM openclaw_usage WHERE openclaw_usage.period IN": "a report on every organisation is of every organisation",
}


class Watched(engines.Store):
    """SQLite as the gateway opens it; every statement is noted, with the values that it had."""

    seen: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_trace_callback(self.seen.append)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Watched.seen = found = []
    monkeypatch.setattr(engines, "Store", Watched)
    return found


async def asked(file: Path) -> None:
    """Ask for everything that a client may, by the key of an administrator."""
    gateway = build(file)
    async with serving(gateway) as base:
        Watched.seen.clear()  # what a start does, migrations say, is not for each request
        keys = gateway.plugin("api_key")
        issued = await keys.create(organization="acme", user="ada", tier="bench", scopes=("admin",))
        async with aiohttp.ClientSession(base, headers={"x-api-key": issued.key}) as http:

            async def call(method: str, path: str, json: Any = None, **headers: str) -> Any:
                async with http.request(method, path, json=json, headers=headers) as response:
                    assert response.status < 500, (path, await response.text())
                    return await response.json(content_type=None) if response.status != 204 else None

            made = await call("POST", "/api/v1/sessions", {})
            session = made["sessionId"]
            await asyncio.gather(*(call("POST", "/v1/chat/completions", CHAT) for _ in range(4)))
            for n in range(2):
                await call(
                    "POST", "/v1/chat/completions", {**CHAT, "sessionId": session}, **{"Idempotency-Key": f"{n}"}
                )
            await call("POST", "/v1/chat/completions", CHAT)  # refused
            await call("POST", f"/api/v1/sessions/{session}/messages", {"role": "user", "content": "hi"})
            for path in (f"/api/v1/sessions/{session}", "/api/v1/sessions", f"/api/v1/sessions/{session}/messages"):
                await call("GET", path)
            await call("GET", "/api/v1/sessions?status=active&limit=2")
            await call("PUT", f"/api/v1/sessions/{session}", {"metadata": {"a": 1}})
            await call("GET", f"/api/v1/usage?sessionId={session}")
            for everywhere in (False, True):
                ran = {"sessionId": session, "params": {"query": "hello", "everywhere": everywhere}}
                found = await call("POST", "/api/v1/skills/search/execute", ran)
                assert "matches" in str(found), found
            for place in ("/api/v1/keys", "/api/v1/admin/keys"):
                issued = await call("POST", place, {"userId": "ada", "organizationId": "acme", "tier": "bench"})
                await call("GET", place)
                if "keyId" in (issued or {}):
                    await call("GET", f"{place}/{issued['keyId']}")
                    await call("POST", f"{place}/{issued['keyId']}/rotate", {})
                    await call("DELETE", f"{place}/{issued['keyId']}")
            await call("GET", "/api/v1/admin/audit")
            await call("DELETE", f"/api/v1/sessions/{session}")
        accounts = gateway.plugin("accounts")
        await accounts.reap()
        await accounts.standings()
        many = [Take(Limit(name=f"quota.n{n}", meter="n", kind="quota", limit=9), "-") for n in range(5)]
        for _ in range(2):
            _, holds = await accounts.reserve("acme", many)
            await accounts.commit(holds)
        await accounts.peek("acme", many)


async def test_no_request_reads_a_whole_table(tmp_path: Path, seen: list[str]) -> None:
    await asked(configuration(tmp_path, tiers={"bench": QUOTAS}))
    (database,) = tmp_path.rglob("*.db")
    tables: set[str] = set()
    whole: list[tuple[str, str]] = []
    with closing(sqlite3.connect(database)) as store:
        for statement in dict.fromkeys(" ".join(text.split()) for text in seen):
            if not statement.startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
                continue
            for _, _, _, step in store.execute(f"EXPLAIN QUERY PLAN {statement}"):
                tables |= {word for word in step.split() if word.startswith("openclaw_")}
                # a page in the order of an index ends at its limit; an index of words is a table to SQLite
                found = ("USING INDEX" in step and " LIMIT " in statement) or "VIRTUAL TABLE INDEX" in step
                if step.startswith("SCAN openclaw_") and not found and not any(known in statement for known in WHOLE):
                    whole.append((step, statement))
    assert not whole
    assert tables >= {f"openclaw_{name}" for name in ("usage", "holds", "sessions", "messages", "api_keys", "audit")}
