"""The routes of sessions and messages, over a real server with the shipped configuration."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner
from sqlalchemy import text

from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.sessions import cursors
from openclaw_plugins.sessions.commands import sessions as command

UNKNOWN = "0190b0e0-0000-7000-8000-000000000000"
PATH = "/api/v1/sessions"


class Client:
    """Speaks to the gateway as members of two organisations."""

    def __init__(self, gateway: Any, url: str, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self._url = url
        self._http = http

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        org: str | None = "acme",
        tier: str = "open_source",
        raw: bytes | None = None,
        scopes: tuple[str, ...] = (),
    ) -> tuple[int, Any, Any]:
        headers = {}
        if org is not None:
            token = self.gateway.plugin("jwt").mint(organization=org, user="ada", tier=tier, scopes=scopes, ttl=600)
            headers["authorization"] = f"Bearer {token}"
        data = raw if raw is not None else msgspec.json.encode(body) if body is not None else None
        async with self._http.request(method, self._url + path, data=data, headers=headers) as response:
            content = await response.read()
            return response.status, msgspec.json.decode(content) if content else None, response.headers

    async def usage(self, org: str = "acme") -> dict[str, int]:
        async with self.gateway.plugin("database").transaction(None, operation="select", table="t") as connection:
            rows = await connection.execute(
                text("SELECT limit_name, used, held FROM openclaw_usage WHERE organization_id = :org"), {"org": org}
            )
            found = {name: (used, held) for name, used, held in rows}
        assert all(held == 0 for _, held in found.values()), found
        return {name: used for name, (used, _) in found.items() if used}


@pytest.fixture(params=["sqlite", "postgresql"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Client]:
    edit: dict[str, Any] = {}
    if request.param == "postgresql":
        edit = {"plugins.database.url": request.getfixturevalue("postgres_url"), "plugins.database.auto_upgrade": True}
    gateway = build(configuration(tmp_path, edit=edit))
    async with serving(gateway) as url, aiohttp.ClientSession() as http:
        yield Client(gateway, url, http)


async def test_the_life_of_a_session(client: Client) -> None:
    status, made, _ = await client("POST", PATH, {"metadata": {"a": 1}})
    assert status == 201
    assert set(made) == {
        "sessionId",
        "organizationId",
        "userId",
        "tier",
        "status",
        "metadata",
        "createdAt",
        "updatedAt",
        "expiresAt",
    }
    assert (made["organizationId"], made["userId"], made["tier"], made["status"], made["metadata"]) == (
        "acme",
        "ada",
        "open_source",
        "active",
        {"a": 1},
    )
    assert made["createdAt"].endswith("Z")
    one = f"{PATH}/{made['sessionId']}"
    assert (await client("GET", one))[:2] == (200, made)
    status, changed, _ = await client("PUT", one, {"metadata": {"b": 2}, "status": "inactive"})
    assert status == 200 and changed["metadata"] == {"b": 2} and changed["status"] == "inactive"

    status, message, _ = await client("POST", one + "/messages", {"content": "hello"})
    assert status == 201
    assert set(message) == {"messageId", "sessionId", "role", "content", "timestamp", "metadata"}
    assert (message["role"], message["content"], message["sessionId"]) == ("user", "hello", made["sessionId"])
    assert (await client("POST", one + "/messages", {"content": "be brief", "role": "system"}))[0] == 201
    status, page, _ = await client("GET", one + "/messages")
    assert status == 200 and page["nextCursor"] is None
    assert [m["content"] for m in page["messages"]] == ["hello", "be brief"]

    status, nothing, _ = await client("DELETE", one)
    assert (status, nothing) == (204, None)
    for method, path, body in (
        ("GET", one, None),
        ("DELETE", one, None),
        ("PUT", one, {"metadata": {}}),
        ("GET", one + "/messages", None),
        ("POST", one + "/messages", {"content": "x"}),
    ):
        status, problem, _ = await client(method, path, body)
        assert status == 404 and problem["error"]["code"] == "NOT_FOUND"


async def test_a_session_needs_no_body(client: Client) -> None:
    status, made, _ = await client("POST", PATH)
    assert status == 201 and made["metadata"] == {}


async def test_another_organizations_session_is_403_and_stays_whole(client: Client) -> None:
    _, made, _ = await client("POST", PATH, {"metadata": {"canary": 1}})
    one = f"{PATH}/{made['sessionId']}"
    for method, path, body in (
        ("GET", one, None),
        ("DELETE", one, None),
        ("PUT", one, {"metadata": {}}),
        ("GET", one + "/messages", None),
        ("POST", one + "/messages", {"content": "x"}),
    ):
        status, problem, _ = await client(method, path, body, org="other")
        assert status == 403 and problem["error"]["code"] == "FORBIDDEN"
        assert "canary" not in str(problem) and "acme" not in str(problem)
    assert (await client("GET", PATH, org="other"))[1] == {"sessions": [], "nextCursor": None}
    assert (await client("GET", one))[1] == made
    assert (await client.usage("other")).get("quota.messages", 0) == 0


async def test_without_a_credential_it_is_401(client: Client) -> None:
    for method, path in (("GET", PATH), ("POST", PATH), ("GET", f"{PATH}/{UNKNOWN}"), ("DELETE", f"{PATH}/{UNKNOWN}")):
        status, problem, headers = await client(method, path, org=None)
        assert status == 401 and problem["error"]["code"] == "UNAUTHORIZED" and headers["www-authenticate"]


@pytest.mark.parametrize("id", [UNKNOWN, "x", "1", "%00", "0190b0e0", "..%2f..", "%F0%9F%99%82"])
async def test_ids_that_name_nothing_are_404(client: Client, id: str) -> None:
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {"metadata": {}})):
        status, problem, _ = await client(method, f"{PATH}/{id}", body)
        assert status == 404 and problem["error"]["code"] == "NOT_FOUND", (method, id)


@pytest.mark.parametrize(
    ("method", "path", "raw", "param"),
    [
        ("POST", "", b"{", None),
        ("POST", "", b"[]", None),
        ("POST", "", b'{"metadata": []}', "metadata"),
        ("POST", "", b'{"metadata": null}', "metadata"),
        ("POST", "", b'{"metdata": {}}', "metdata"),
        ("POST", "", b'{"ttl": 0}', "ttl"),
        ("POST", "", b'{"ttl": "60"}', "ttl"),
        ("POST", "", b'{"ttl": 99999999999}', "ttl"),
        ("POST", "", b'{"ttl": 99999999999999999999999}', "ttl"),
        ("POST", "", b'{"metadata": {"a": "\\u0000"}}', "metadata.a"),
        ("POST", "", b'{"metadata": {"a": "\\ud800"}}', None),
        ("POST", "", b'{"metadata": {"a": "' + b"x" * 70_000 + b'"}}', "metadata"),
        ("PUT", "/ID", b"{}", "metadata"),
        ("PUT", "/ID", b"", None),
        ("PUT", "/ID", b'{"metadata": {}, "status": "expired"}', "status"),
        ("POST", "/ID/messages", b"{}", "content"),
        ("POST", "/ID/messages", b'{"content": ""}', "content"),
        ("POST", "/ID/messages", b'{"content": 1}', "content"),
        ("POST", "/ID/messages", b'{"content": "x", "role": "assistant"}', "role"),
        ("POST", "/ID/messages", b'{"content": "a\\u0000b"}', "content"),
        ("GET", "?limit=0", None, "limit"),
        ("GET", "?limit=201", None, "limit"),
        ("GET", "?limit=x", None, "limit"),
        ("GET", "?limit=%C2%B2", None, "limit"),
        ("GET", "?limit=1&limit=2", None, "limit"),
        ("GET", "?status=asleep", None, "status"),
        ("GET", "?cursor=x", None, "cursor"),
        ("GET", "?cursor=%00", None, "cursor"),
        ("GET", "?page=1", None, "page"),
        ("GET", "/ID/messages?cursor=WyJtIl0", None, "cursor"),
        ("GET", "/ID/messages?limit=-1", None, "limit"),
    ],
)
async def test_what_is_wrong_is_400_with_its_path_and_costs_nothing(
    client: Client, method: str, path: str, raw: bytes | None, param: str | None
) -> None:
    _, made, _ = await client("POST", PATH)
    before = await client.usage()
    status, problem, _ = await client(method, PATH + path.replace("ID", made["sessionId"]), raw=raw)
    assert status == 400, problem
    assert problem["error"]["code"] == "BAD_REQUEST" and problem["error"]["param"] == param
    assert await client.usage() == before


async def test_lists_page_and_refuse_a_foreign_cursor(client: Client) -> None:
    made = [(await client("POST", PATH))[1]["sessionId"] for _ in range(5)]
    await client("POST", PATH, org="other")
    status, page, _ = await client("GET", PATH + "?limit=3&status=active")
    assert status == 200 and [s["sessionId"] for s in page["sessions"]] == made[:1:-1]
    cursor = page["nextCursor"]
    _, rest, _ = await client("GET", f"{PATH}?limit=3&status=active&cursor={cursor}")
    assert [s["sessionId"] for s in rest["sessions"]] == made[1::-1] and rest["nextCursor"] is None
    for path, org in ((f"{PATH}?status=active&cursor={cursor}", "other"), (f"{PATH}?cursor={cursor}", "acme")):
        assert (await client("GET", path, org=org))[0] == 400


async def test_a_forged_cursor_shows_what_is_the_callers_own_and_no_more(client: Client) -> None:
    """Cursors are not signed. Whoever writes one chooses where a listing of his own begins, and nothing else."""
    _, theirs, _ = await client("POST", PATH, {"metadata": {"canary": 1}})
    assert (await client("POST", f"{PATH}/{theirs['sessionId']}/messages", {"content": "canary"}))[0] == 201
    _, own, _ = await client("POST", PATH, org="other")
    forged = cursors.SessionsAfter("other", None, datetime(9999, 1, 1, tzinfo=UTC), UUID(theirs["sessionId"]))
    status, page, _ = await client("GET", f"{PATH}?cursor={cursors.written(forged)}", org="other")
    assert status == 200 and page == {"sessions": [own], "nextCursor": None}
    messages = cursors.written(cursors.MessagesAfter(UUID(theirs["sessionId"]), 0))
    for wanted in (
        f"{PATH}?cursor={cursors.written(msgspec.structs.replace(forged, organization='acme'))}",
        f"{PATH}?cursor={messages}",
        f"{PATH}/{own['sessionId']}/messages?cursor={messages}",
    ):
        status, problem, _ = await client("GET", wanted, org="other")
        assert (status, problem["error"]["param"]) == (400, "cursor") and "canary" not in str(problem)
    # times at the ends of what a date can be, in zones that put them beyond it
    for moment in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        text = base64.urlsafe_b64encode(msgspec.json.encode(["s", "other", None, moment, own["sessionId"]])).decode()
        status, problem, _ = await client("GET", f"{PATH}?cursor={text.rstrip('=')}", org="other")
        assert status in (200, 400), problem


async def test_creating_is_metered_and_bounded(client: Client) -> None:
    made = [(await client("POST", PATH))[1]["sessionId"] for _ in range(5)]
    status, problem, _ = await client("POST", PATH)
    assert status == 403 and problem["error"]["code"] == "CONCURRENCY_EXCEEDED"
    assert problem["error"]["limit"]["name"] == "concurrency.sessions" and problem["error"]["limit"]["used"] == 5
    assert await client.usage() == {"quota.sessions": 5, "concurrency.sessions": 5}
    assert (await client("DELETE", f"{PATH}/{made[0]}"))[0] == 204
    assert (await client("POST", PATH))[0] == 201
    assert await client.usage() == {"quota.sessions": 6, "concurrency.sessions": 5}
    assert (await client("POST", f"{PATH}/{made[1]}/messages", {"content": "x"}))[0] == 201
    assert (await client("POST", f"{PATH}/{UNKNOWN}/messages", {"content": "x"}))[0] == 404
    assert (await client.usage())["quota.messages"] == 1


async def test_many_creations_at_once_admit_exactly_the_limit(client: Client) -> None:
    answers = await asyncio.gather(*(client("POST", PATH, tier="teams") for _ in range(40)))
    statuses = sorted(status for status, _, _ in answers)
    assert statuses == [201] * 20 + [403] * 20
    assert await client.usage() == {"quota.sessions": 20, "concurrency.sessions": 20}


async def test_an_expired_session_is_404_and_its_place_free(client: Client, tmp_path: Path) -> None:
    status, made, _ = await client("POST", PATH, {"ttl": 1})
    assert status == 201
    for _ in range(4):
        await client("POST", PATH)
    assert (await client("POST", PATH))[0] == 403
    await asyncio.sleep(1.1)
    assert (await client("GET", f"{PATH}/{made['sessionId']}"))[0] == 404
    assert (await client("POST", PATH))[0] == 201
    result = await asyncio.to_thread(
        CliRunner().invoke, command, ["expire", "--json", "--config", str(tmp_path / "openclaw.toml")]
    )
    assert result.exit_code == 0 and msgspec.json.decode(result.output) == {"expired": 1}


async def test_the_metrics_of_sessions_are_written(client: Client) -> None:
    _, made, _ = await client("POST", PATH)
    await client("DELETE", f"{PATH}/{made['sessionId']}")
    sample = client.gateway.registry.get_sample_value
    assert sample("sessions_total", {"tier": "open_source"}) == 1
    assert sample("session_duration_seconds_count", {"tier": "open_source"}) == 1
    assert sample("sessions_active", {"tier": "open_source"}) == 0
    labels = {"operation": "insert", "table": "openclaw_sessions"}
    assert sample("database_query_duration_seconds_count", labels) == 1
    assert sample("database_connections_active", {"pool": "maintenance"}) == 0
