"""Key administration over HTTP: who may do what to whose keys, and what is kept of it."""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import aiohttp
import pytest

from openclaw_gateway.testing import build, configuration, serving

KEY = re.compile(r"ocg_[0-9A-Za-z]{12}_[0-9A-Za-z]{36}")
ADMIN, OWN, AUDIT = "/api/v1/admin/keys", "/api/v1/keys", "/api/v1/admin/audit"
ADA = {"organizationId": "acme", "userId": "ada", "tier": "teams"}


class Office:
    """A served gateway, and callers with different scopes."""

    def __init__(self, gateway, url, client):
        self.gateway, self.url, self.client = gateway, url, client
        self.keys = gateway.plugin("api_key")

    async def caller(self, *scopes, organization="ops", tier="teams", user="root"):
        made = await self.keys.create(organization=organization, user=user, tier=tier, scopes=scopes)
        return Caller(self, made.key, made.record)


class Caller:
    def __init__(self, office, key, record):
        self.office, self.key, self.record = office, key, record

    async def ask(self, method, path, body=None, **query):
        async with self.office.client.request(
            method,
            self.office.url + path,
            data=body if isinstance(body, bytes) else None if body is None else json.dumps(body),
            params=query,
            headers={"X-API-Key": self.key},
        ) as answer:
            data = await answer.read()
            self.headers = answer.headers
            return answer.status, json.loads(data) if data else None

    async def works(self, key):
        async with self.office.client.get(
            self.office.url + "/api/v1/usage", headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            return answer.status == 200


@asynccontextmanager
async def office(directory, **edit):
    gateway = build(configuration(directory, edit=edit))
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        yield Office(gateway, url, client)


async def test_the_operator_makes_rotates_and_revokes_keys_of_any_organisation(tmp_path):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        asked = {**ADA, "scopes": ["chat"], "name": "ci", "expiresIn": "90d"}
        status, made = await root.ask("POST", ADMIN, asked)
        assert status == 201
        assert root.headers["Cache-Control"] == "no-store"
        assert KEY.fullmatch(made["key"])
        assert made["keyId"] == made["key"].split("_")[1]
        assert {name: made[name] for name in ADA} == ADA
        assert (made["scopes"], made["name"], made["state"]) == (["chat"], "ci", "active")
        assert made["expiresAt"].endswith("Z")
        assert await root.works(made["key"])

        status, successor = await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", {"overlap": 1})
        assert (status, successor["scopes"], successor["expiresAt"]) == (201, ["chat"], made["expiresAt"])
        assert await root.works(made["key"])
        assert await root.works(successor["key"])
        status, old = await root.ask("GET", f"{ADMIN}/{made['keyId']}")
        assert (status, old["replacedBy"]) == (200, successor["keyId"])
        assert "key" not in old
        assert (await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", {"overlap": "1h"}))[0] == 409
        await asyncio.sleep(1.05)
        assert not await root.works(made["key"])

        assert await root.ask("DELETE", f"{ADMIN}/{successor['keyId']}") == (204, None)
        assert not await root.works(successor["key"])
        assert await root.ask("DELETE", f"{ADMIN}/{successor['keyId']}") == (204, None)
        assert (await root.ask("POST", f"{ADMIN}/{successor['keyId']}/rotate"))[0] == 409
        states = {k["keyId"]: k["state"] for k in (await root.ask("GET", ADMIN, organizationId="acme"))[1]["keys"]}
        assert states == {made["keyId"]: "expired", successor["keyId"]: "revoked"}


async def test_listings_come_in_pages_without_a_key_in_them(tmp_path):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        texts = [(await root.ask("POST", ADMIN, {**ADA, "userId": f"u{i}"}))[1]["key"] for i in range(7)]
        users, cursor = [], None
        while True:
            query = {"cursor": cursor} if cursor else {}
            status, page = await root.ask("GET", ADMIN, organizationId="acme", limit=3, **query)
            assert status == 200
            assert not any(text.split("_")[2] in json.dumps(page) for text in texts)
            users += [key["userId"] for key in page["keys"]]
            cursor = page["nextCursor"]
            if cursor is None:
                break
        assert users == [f"u{i}" for i in reversed(range(7))]
        everyone = (await root.ask("GET", ADMIN))[1]["keys"]
        assert {key["organizationId"] for key in everyone} >= {"acme", "ops"}


async def test_each_door_has_its_own_scope(tmp_path):
    async with office(tmp_path) as o:
        for scopes, path in (((), ADMIN), (("keys",), ADMIN), (("chat",), OWN), (("admin",), OWN)):
            await check_door(o, await o.caller(*scopes), path)
        assert len((await o.keys.audit(limit=50)).items) == 4  # that the callers' keys were made


async def check_door(o, caller, path):
    one = f"{path}/{caller.record.key_id}"
    paths = [("POST", path), ("GET", path), ("GET", one), ("POST", one + "/rotate"), ("DELETE", one)]
    if path == ADMIN:
        paths.append(("GET", AUDIT))
    for method, where in paths:
        status, body = await caller.ask(method, where, {} if method == "POST" else None)
        assert (status, body["error"]["code"]) == (403, "FORBIDDEN"), where
        async with o.client.request(method, o.url + where) as answer:
            assert answer.status == 401
    assert await caller.works(caller.key)


async def test_an_organisations_administrator_sees_and_makes_keys_of_his_own_only(tmp_path):
    async with office(tmp_path) as o:
        boss = await o.caller("keys", "chat", organization="acme", tier="open_source", user="boss")
        other = await o.caller("chat", organization="other", tier="open_source")
        status, made = await boss.ask("POST", OWN, {"userId": "bob", "scopes": ["chat"], "expiresIn": 3600})
        assert (status, made["organizationId"], made["tier"]) == (201, "acme", "open_source")
        assert await boss.works(made["key"])
        listed = (await boss.ask("GET", OWN))[1]["keys"]
        assert {key["keyId"] for key in listed} == {boss.record.key_id, made["keyId"]}

        unknown = await boss.ask("GET", f"{OWN}/000000000000")
        for method, tail, body in (("GET", "", None), ("POST", "/rotate", {}), ("DELETE", "", None)):
            foreign = await boss.ask(method, f"{OWN}/{other.record.key_id}{tail}", body)
            assert foreign[0] == 404
            assert foreign[1]["error"]["message"] == unknown[1]["error"]["message"]
        assert (await boss.ask("GET", OWN, cursor=other.record.key_id))[0] == 400
        assert (await boss.ask("GET", OWN, organizationId="other"))[0] == 400
        assert (await boss.ask("POST", OWN, {"userId": "x", "organizationId": "other"}))[0] == 400
        assert await other.works(other.key)
        assert await boss.ask("DELETE", f"{OWN}/{made['keyId']}") == (204, None)
        assert not await boss.works(made["key"])


async def test_nobody_hands_out_more_than_he_has(tmp_path):
    async with office(tmp_path) as o:
        boss = await o.caller("keys", "chat", organization="acme", tier="open_source")
        status, body = await boss.ask("POST", OWN, {"userId": "x", "scopes": ["chat", "admin"]})
        assert (status, "admin" in body["error"]["message"]) == (403, True)
        assert (await boss.ask("POST", OWN, {"userId": "x", "tier": "government"}))[0] == 400
        richer = await o.caller("chat", organization="acme", tier="government")
        stronger = await o.caller("admin", organization="acme", tier="open_source")
        for key in (richer, stronger):
            assert (await boss.ask("POST", f"{OWN}/{key.record.key_id}/rotate", {}))[0] == 403
            assert await key.works(key.key)
        # ending hands out nothing
        assert (await boss.ask("DELETE", f"{OWN}/{richer.record.key_id}"))[0] == 204
        assert not await richer.works(richer.key)


WRONG_BODIES = [
    (b"", None),
    (b"[]", None),
    (b"{", None),
    ({"organizationId": "acme", "userId": "ada"}, "tier"),
    ({**ADA, "extra": 1}, "extra"),
    ({**ADA, "userId": ""}, "userId"),
    ({**ADA, "userId": "u" * 256}, "userId"),
    ({**ADA, "userId": "a\x00b"}, None),
    ({**ADA, "userId": 5}, "userId"),
    ({**ADA, "tier": "team"}, None),
    ({**ADA, "scopes": "chat"}, "scopes"),
    ({**ADA, "scopes": ["two words"]}, None),
    ({**ADA, "scopes": [""]}, "scopes[0]"),
    ({**ADA, "scopes": ["s"] * 101}, "scopes"),
    ({**ADA, "expiresIn": 0}, "expiresIn"),
    ({**ADA, "expiresIn": "0s"}, "expiresIn"),
    ({**ADA, "expiresIn": -1}, "expiresIn"),
    ({**ADA, "expiresIn": 2**70}, None),
    ({**ADA, "expiresIn": "soon"}, "expiresIn"),
    ({**ADA, "expiresIn": "9" * 25 + "d"}, None),
    ({**ADA, "expiresIn": True}, "expiresIn"),
    ({**ADA, "name": ["x"]}, "name"),
    (b'{"organizationId": "acme", "userId": "\\ud800", "tier": "teams"}', None),
]


async def test_a_body_that_is_wrong_is_400_and_makes_nothing(tmp_path):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        for body, param in WRONG_BODIES:
            status, answer = await root.ask("POST", ADMIN, body)
            assert status == 400, (body, answer)
            if param is not None:
                assert answer["error"]["param"] == param, body
        assert (await root.ask("GET", ADMIN, organizationId="acme"))[1]["keys"] == []


async def test_ids_and_queries_that_are_wrong(tmp_path):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        await check_ids_and_queries(root)


async def check_ids_and_queries(root):
    for key_id in ("nobody", "a" * 500, "%00", "%ff", "..%2f", "'; DROP TABLE x", "ü", "a%0ab"):
        for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            status, _ = await root.ask(method, f"{ADMIN}/{key_id}{tail}", {} if method == "POST" else None)
            assert status == 404, (method, key_id, status)
    for path in (ADMIN, AUDIT):
        for query in (
            {"limit": "0"},
            {"limit": "201"},
            {"limit": "x"},
            {"cursor": "nobody"},
            {"cursor": "a\x00"},
            {"organizationId": "a\x00"},
            {"what": "1"},
        ):
            assert (await root.ask("GET", path, **query))[0] == 400, (path, query)
        assert (await root.ask("GET", path + "?limit=1&limit=2"))[0] == 400
        assert (await root.ask("GET", path, organizationId="nobody"))[0] == 200
    for overlap in (-1, "soon", True, None, 2**70, 1.5):
        made = (await root.ask("POST", ADMIN, {**ADA, "userId": "r"}))[1]
        assert (await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", {"overlap": overlap}))[0] == 400
        assert (await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", {"overlaps": 1}))[0] == 400
        assert await root.works(made["key"])


@pytest.mark.parametrize(
    "doubled",
    [
        b'"scopes": ["chat"], "scopes": ["admin"]',
        b'"tier": "open_source"',
        b'"t\\u0069er": "open_source"',
        b'"name": "a", "n\\u0061me": "b"',
    ],
)
async def test_a_grant_that_could_be_read_in_two_ways_is_refused(tmp_path, doubled):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        before = len(await o.keys.list())
        body = json.dumps(ADA).encode()[:-1] + b", " + doubled + b"}"
        status, problem = await root.ask("POST", ADMIN, body)
        assert (status, problem["error"]["code"]) == (400, "BAD_REQUEST")
        assert problem["error"]["param"] in ("scopes", "tier", "name") and "twice" in problem["error"]["message"]
        made = (await root.ask("POST", ADMIN, ADA))[1]
        status, _ = await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", b'{"overlap": 1, "overlap": 9}')
        assert status == 400
        assert len(await o.keys.list()) == before + 1


async def test_the_audit_says_who_did_what_and_holds_no_secret(tmp_path):
    async with office(tmp_path) as o:
        root = await o.caller("admin")
        boss = await o.caller("keys", organization="acme", user="boss")
        made = (await root.ask("POST", ADMIN, {**ADA, "name": "ci", "scopes": ["chat"]}))[1]
        request_id = root.headers["x-request-id"]
        new = (await root.ask("POST", f"{ADMIN}/{made['keyId']}/rotate", {"overlap": "1h"}))[1]
        await boss.ask("DELETE", f"{OWN}/{made['keyId']}")
        await boss.ask("DELETE", f"{OWN}/{made['keyId']}")  # nothing more was done
        await root.ask("DELETE", f"{ADMIN}/000000000000")
        status, page = await root.ask("GET", AUDIT, organizationId="acme")
        assert status == 200
        assert [(e["action"], e["keyId"]) for e in page["entries"]] == [
            ("key.revoke", made["keyId"]),
            ("key.rotate", made["keyId"]),
            ("key.create", made["keyId"]),
            ("key.create", boss.record.key_id),
        ]
        revoked, rotated, created, first = page["entries"]
        assert revoked["actor"] == f"api_key:acme/boss/{boss.record.key_id}"
        assert rotated["actor"] == created["actor"] == f"api_key:ops/root/{root.record.key_id}"
        assert created["requestId"] == request_id
        assert created["details"] == {
            "userId": "ada",
            "tier": "teams",
            "scopes": ["chat"],
            "name": "ci",
            "expiresAt": None,
        }
        assert rotated["details"] == {"replacedBy": new["keyId"], "overlapSeconds": 3600.0}
        assert first["actor"] == "gateway"
        assert all(e["at"].endswith("Z") and e["organizationId"] == "acme" for e in page["entries"])
        everything = json.dumps((await root.ask("GET", AUDIT))[1])
        for text in (made["key"], new["key"], root.key, boss.key):
            assert text.split("_")[2] not in everything

        seen, cursor = [], None
        while True:
            _, page = await root.ask("GET", AUDIT, limit=2, **({"cursor": cursor} if cursor else {}))
            seen += [e["auditId"] for e in page["entries"]]
            cursor = page["nextCursor"]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 5
        assert seen == sorted(seen, reverse=True)


async def test_the_document_has_its_routes(tmp_path):
    async with office(tmp_path) as o, o.client.get(o.url + "/api/openapi.json") as answer:
        document = await answer.json()
        paths = document["paths"]
        for path in (ADMIN, OWN):
            assert set(paths[path]) == {"get", "post"}
            assert set(paths[path + "/{key_id}"]) == {"get", "delete"}
            assert set(paths[path + "/{key_id}/rotate"]) == {"post"}
        assert set(paths[AUDIT]) == {"get"}
        assert "409" in paths[ADMIN + "/{key_id}/rotate"]["post"]["responses"]
        names = {p["name"] for p in paths[ADMIN]["get"]["parameters"]}
        assert names == {"organizationId", "limit", "cursor"}
        assert {p["name"] for p in paths[OWN]["get"]["parameters"]} == {"limit", "cursor"}
        schema = document["components"]["schemas"]["NewKey"]
        assert set(schema["required"]) == {"organizationId", "userId", "tier"}
