"""No route gives one organisation anything of another's: requests made from the routes' own declarations.

Each place of a route where an id may stand (path, query, body, Idempotency-Key) is given each kind of id of a foreign
organisation. A route that is added is asked as well, without a line here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.routes import Route
from openclaw_gateway.testing import build, configuration, serving

OWNER, STRANGER = "canary-org", "stranger"
CANARY = re.compile(r"canary-[a-z]+")
#: places whose value names a thing of somebody: to a stranger it must not be there, so no answer is good
NAMES = {"session_id", "sessionId", "key_id", "cursor", "ticket"}
#: tells of counters of the caller's own organisation, by whatever name he gives
OWN_COUNTERS = "/api/v1/usage"
#: what fills the parts that a request needs beside the place that is tried
GOOD = {"model": "echo", "name": "search", "id": "echo"}

#: fields that a body may leave out, and that matter here
WANTED = {"sessionId": "x", "params": {"query": "content"}}


class Asked(msgspec.Struct, frozen=True):
    """One request, and the place in it that holds a foreign id."""

    route: Route
    method: str
    path: Mapping[str, str]
    query: Mapping[str, str] = {}
    body: Any = None
    headers: Mapping[str, str] = {}
    place: str = ""
    value: str = ""

    @property
    def strict(self) -> bool:
        return self.place in NAMES and self.route.path != OWN_COUNTERS


class Organization:
    """A member of an organisation, at the gateway."""

    def __init__(
        self,
        gateway: Gateway,
        url: str,
        http: aiohttp.ClientSession,
        name: str,
        *,
        scopes: tuple[str, ...] = ("keys",),
    ) -> None:
        token = gateway.plugin("jwt").mint(organization=name, user=f"{name}-user", tier="wide", scopes=scopes, ttl=3600)
        self.authorization: Mapping[str, str] = {"authorization": f"Bearer {token}"}
        self._name = name
        self.url = url
        self._http = http

    async def send(self, asked: Asked, credential: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Return the status, and everything that came back; `credential` stands in the place of the member's own."""
        url = self.url + asked.route.path.format(**asked.path)
        headers = {**(self.authorization if credential is None else credential), **asked.headers}
        if asked.method == "WEBSOCKET":
            try:
                async with self._http.ws_connect(url, params=asked.query, headers=headers) as socket:
                    await socket.close()
                    return 200, ""
            except aiohttp.WSServerHandshakeError as error:
                return error.status, f"{error.headers}{error.message}"
        sending = self._http.request(asked.method, url, params=asked.query, headers=headers, json=asked.body)
        async with sending as answer:
            return answer.status, f"{answer.headers}{await answer.text()}"

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        headers = {**self.authorization, **headers}
        async with self._http.request(method, self.url + path, json=body, headers=headers) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def session(self) -> str:
        made = await self.ask("POST", "/api/v1/sessions", {"metadata": {"of": f"{self._name}-metadata"}})
        return str(made["sessionId"])

    async def key(self) -> str:
        made = await self.ask(
            "POST", "/api/v1/keys", {"userId": f"{self._name}-member", "name": f"{self._name}-keyname"}
        )
        return str(made["keyId"])


@pytest.fixture(params=["sqlite", "postgresql"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Gateway, Any]]:
    edit: dict[str, Any] = {"plugins.access_log.level": "error"}
    if request.param == "postgresql":
        edit |= {"plugins.database.url": request.getfixturevalue("postgres_url"), "plugins.database.auto_upgrade": True}
    # no limit may answer in the place of what is asked
    text = (asset("tiers") / "government.toml").read_text()
    wide = re.sub(r"(?m)^(limit *= *)\d+", r"\g<1>1000000", text)
    gateway = build(configuration(tmp_path, edit=edit, tiers={"wide": wide}))
    async with serving(gateway) as url, aiohttp.ClientSession() as http:
        yield gateway, lambda name, **given: Organization(gateway, url, http, name, **given)


async def test_no_route_gives_a_stranger_anything(both: tuple[Gateway, Any]) -> None:
    gateway, member = both
    owner, stranger = member(OWNER), member(STRANGER)
    foreign = await belongings(owner)
    before = await state(owner, foreign)
    own = {"session_id": await stranger.session(), "key_id": await stranger.key()}
    asked = list(requests(gateway.routes, own, foreign.values()))
    assert len(asked) > 500 and sum(one.strict for one in asked) > 100
    bad: list[str] = []
    statuses: set[int] = set()

    async def judge(one: Asked) -> None:
        status, answer = await stranger.send(one)
        statuses.add(status)
        # what the stranger sent himself may come back
        shown = set(CANARY.findall(answer)) - set(CANARY.findall(one.value))
        if shown or status >= 500 or (one.strict and status < 300):
            bad.append(f"{one.method} {one.route.path} {one.place}={one.value}: {status} {sorted(shown)}")

    for start in range(0, len(asked), 16):
        await asyncio.gather(*(judge(one) for one in asked[start : start + 16]))
    assert not bad, "\n".join(bad[:20])
    assert 429 not in statuses and {200, 400, 403, 404} <= statuses
    assert await state(owner, foreign) == before


async def test_the_same_requests_are_good_for_who_owns_the_ids(both: tuple[Gateway, Any]) -> None:
    """Otherwise the test above would hold for requests that are good for nobody."""
    gateway, member = both
    owner = member(OWNER)
    places = 0
    for one in requests(gateway.routes, {"session_id": "-", "key_id": "-"}, ["-"]):
        kind = {"session_id": "session_id", "sessionId": "session_id", "key_id": "key_id"}.get(one.place)
        if kind is None or "admin" in one.route.scopes:
            continue
        made = await (owner.session() if kind == "session_id" else owner.key())
        (same,) = [
            other
            for other in requests([one.route], {kind: made}, [made])
            if (other.place, other.method) == (one.place, one.method)
        ]
        status, answer = await owner.send(same)
        assert status < 300, (one.method, one.route.path, one.place, status, answer)
        places += 1
    assert places >= 12


async def test_a_refused_caller_learns_nothing_of_what_is_there(both: tuple[Gateway, Any]) -> None:
    """Without a good credential, or without the scope, the answer for what is there is that for what is not."""
    gateway, member = both
    owner, clerk = member(OWNER), member(OWNER, scopes=())
    there = {"session_id": await owner.session(), "key_id": await owner.key()}
    absent = {"session_id": "0190b0e0-0000-7000-8000-000000000000", "key_id": "0" * 12}
    changing = re.compile(
        "|".join(
            (*there.values(), *absent.values(), r"[0-9a-f]{8}-[0-9a-f-]{27}", r"20\d\d-[^\"]*Z", r"'Date': '[^']*'")
        )
    )
    asked = 0
    for route in gateway.routes:
        callers: list[tuple[int, Mapping[str, str]]] = []
        if route.access == "authenticated":
            callers += [(401, {}), (401, {"authorization": "Bearer a.b.c"}), (401, {"x-api-key": "ocg_nothing"})]
        if route.scopes:
            callers.append((403, clerk.authorization))
        for expected, credential in callers:
            for found, missed in zip(requests([route], there, []), requests([route], absent, []), strict=True):
                status, answer = await owner.send(found, credential)
                other, same = await owner.send(missed, credential)
                assert (status, other) == (expected, expected), (found, answer)
                assert changing.sub("", answer) == changing.sub("", same), (found, answer, same)
                assert status != 401 or re.search(r"'WWW-Authenticate': 'Bearer", answer), (found, answer)
                asked += 1
    assert asked >= 70


async def test_no_spelling_of_a_path_goes_round_the_credential(both: tuple[Gateway, Any]) -> None:
    """A path that begins, ends or is escaped like a public one is still what the router takes it for."""
    _, member = both
    owner = member(OWNER)
    host, port = owner.url.removeprefix("http://").split(":")
    # what `health`, `docs` and the like could be searched for in, if exemptions were patterns
    public = ("/health", "/metrics", "/api/docs", "/api/openapi.json", "/info")
    private = ("/api/v1/usage", "/api/v1/sessions", "/v1/models", "/api/v1/admin/keys")
    spelled = [
        text
        for path in private
        for open_one in public
        for text in (
            f"{open_one}/..{path}",
            f"{open_one}/%2e%2e{path}",
            f"{open_one}%2f..{path}",
            f"{open_one};{path}",
            f"{path}?{open_one}",
            f"{path}#{open_one}",
            f"{path}/{open_one}",
            f"{path}%3f{open_one}",
            f"http://a{path}?x={open_one}",
            f"http://a{open_one}/..{path}",
        )
    ] + [
        text
        for path in private
        for text in (f"/{path}", f"/.{path}", f"{path}/", path.upper(), f"{path}%00", f"{path};a")
    ]
    seen: set[int] = set()
    for target in spelled:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        status = int(answer.split(b" ", 2)[1])
        seen.add(status)
        assert status in (400, 401, 404), (target, answer)
    assert {401, 404} <= seen


async def test_no_number_is_too_large_for_a_route(both: tuple[Gateway, Any]) -> None:
    """Whatever column it would go into: it is stored, or refused as the client's mistake."""
    gateway, member = both
    caller = member(OWNER, scopes=("keys", "admin"))
    own = {"session_id": await caller.session(), "key_id": await caller.key()}
    bad: list[str] = []
    statuses: set[int] = set()

    async def judge(one: Asked) -> None:
        status, answer = await caller.send(one)
        statuses.add(status)
        if status >= 500:
            bad.append(f"{one.method} {one.route.path} {one.query} {one.body}: {status} {answer}")

    numbers = (2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400)
    asked = [
        msgspec.structs.replace(one, body={**one.body, one.place: number})
        if one.place in fields(one.route.body)
        else msgspec.structs.replace(one, query={**one.query, one.place: str(number)})
        for one in requests(gateway.routes, own, ["-"])
        if one.place in fields(one.route.body) or one.place in one.route.query
        for number in numbers
        if one.method != "DELETE"
    ]
    session = next(one for one in asked if one.route.path == "/api/v1/sessions" and one.method == "POST")
    asked += [msgspec.structs.replace(session, body={"metadata": {"a": [number]}}) for number in numbers]
    assert len(asked) > 300
    for start in range(0, len(asked), 16):
        await asyncio.gather(*(judge(one) for one in asked[start : start + 16]))
    assert not bad, "\n".join(bad[:20])
    assert {200, 201, 400} <= statuses


async def test_every_listing_has_a_largest_page(both: tuple[Gateway, Any]) -> None:
    gateway, member = both
    caller = member(OWNER, scopes=("keys", "admin"))
    paged = [route for route in gateway.routes if {"limit", "cursor"} & {*route.query}]
    assert len(paged) >= 5
    made = {"session_id": await caller.session()}
    for route in paged:
        assert {"limit", "cursor"} <= {*route.query}, route.path
        (asked,) = requests([route], made, [])
        for limit, expected in (("200", 200), ("201", 400), ("0", 400), ("-1", 400), ("1e3", 400), ("٣", 400)):
            status, answer = await caller.send(msgspec.structs.replace(asked, query={"limit": limit}))
            assert status == expected, (route.path, limit, answer)


async def belongings(owner: Organization) -> dict[str, str]:
    """One of everything that an organisation may have, by what it is."""
    session = await owner.session()
    await owner.session()
    said = {"content": "canary-content", "metadata": {"a": "canary-metadata"}}
    path = f"/api/v1/sessions/{session}"
    message = await owner.ask("POST", f"{path}/messages", said, **{"Idempotency-Key": "canary-repeated"})
    await owner.ask("POST", f"{path}/messages", said)
    turn = {"model": "echo", "messages": [{"role": "user", "content": "canary-turn"}], "sessionId": session}
    completion = await owner.ask("POST", "/v1/chat/completions", turn)
    run = await owner.ask(
        "POST", "/api/v1/skills/search/execute", {"sessionId": session, "params": {"query": "canary-content"}}
    )
    key = await owner.key()
    await owner.key()
    return {
        "session": session,
        "message": message["messageId"],
        "completion": completion["id"],
        "execution": run["executionId"],
        "key": key,
        "ticket": (await owner.ask("POST", "/api/v1/ws-tickets", {"sessionId": session}))["ticket"],
        "sessions cursor": (await owner.ask("GET", "/api/v1/sessions?limit=1"))["nextCursor"],
        "messages cursor": (await owner.ask("GET", f"{path}/messages?limit=1"))["nextCursor"],
        "keys cursor": (await owner.ask("GET", "/api/v1/keys?limit=1"))["nextCursor"],
        "organization": OWNER,
        "user": f"{OWNER}-user",
        "idempotency key": "canary-repeated",
    }


async def state(owner: Organization, ids: Mapping[str, str]) -> list[Any]:
    """What the owner sees of it."""
    path = f"/api/v1/sessions/{ids['session']}"
    asked = [path, f"{path}/messages", f"/api/v1/keys/{ids['key']}", "/api/v1/sessions", "/api/v1/keys"]
    return [await owner.ask("GET", one) for one in asked]


def requests(routes: Any, own: Mapping[str, str], ids: Any) -> Iterator[Asked]:
    """Every place of every route, with every id; the rest of a request is good, and the caller's own."""
    for route in routes:
        names = re.findall(r"{(\w+)}", route.path)
        path = {name: {**GOOD, **own}.get(name, "x") for name in names}
        body = example(route.body) if route.body is not None else None
        if isinstance(body, dict) and "sessionId" in body:
            body["sessionId"] = own.get("session_id", "x")
        query = {"sessionId": own.get("session_id", "x")} if "WEBSOCKET" in route.methods else {}
        for method in route.methods:
            yield Asked(route, method, path, query, body)
            for value in ids:
                for name in names:
                    yield Asked(route, method, {**path, name: value}, query, body, {}, name, value)
                for name in route.query:
                    yield Asked(route, method, path, {**query, name: value}, body, {}, name, value)
                for name in fields(route.body):
                    yield Asked(route, method, path, query, {**body, name: value}, {}, name, value)
                if method == "POST":
                    repeated = {"Idempotency-Key": value}
                    yield Asked(route, method, path, query, body, repeated, "Idempotency-Key", value)


def fields(body: Any) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(body)] if body is not None else []


def example(body: Any) -> Any:
    """The least that a body's schema asks for."""
    (schema,), parts = msgspec.json.schema_components([body], ref_template="{name}")

    def least(part: Mapping[str, Any], name: str = "") -> Any:
        part = parts.get(part.get("$ref", ""), part)
        if name in GOOD:
            return GOOD[name]
        if "enum" in part or "const" in part:
            return part.get("const", (part.get("enum") or [None])[0])
        if any_of := part.get("anyOf"):
            return least(any_of[0], name)
        kind = part.get("type")
        if kind == "object" or "properties" in part:
            return {key: least(part["properties"][key], key) for key in part.get("required", ())}
        if kind == "array":
            return [least(part["items"])] * part.get("minItems", 0)
        if kind in ("integer", "number"):
            return part.get("minimum", 1)
        return {"boolean": True, "null": None}.get(str(kind), "x")

    wanted = least(schema)
    wanted |= {name: WANTED[name] for name in fields(body) if name in WANTED}
    return wanted
