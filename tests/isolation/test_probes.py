"""Random probes of a stranger, in the process: any route, any place for an id, any id of a foreign organisation.

`test_routes.py` goes over every place once, over a real socket. Here several places are filled at a time, ids are also
altered, and there are a great many. Long form: `pytest tests/isolation -m long` (`FIRE_SEED` chooses others).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from fire.watch import SEED, Recorder, counts, say, wide

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.routes import Route
from openclaw_gateway.testing import build, serving

from .test_routes import CANARY, GOOD, OWNER, STRANGER, Organization, belongings, example, fields, state


class Prober:
    """Makes and sends the requests of a stranger."""

    def __init__(
        self, gateway: Gateway, rng: random.Random, foreign: dict[str, str], own: dict[str, list[str]]
    ) -> None:
        self._gateway = gateway
        self._rng = rng
        self._foreign = [*foreign.values()]
        self._own = own
        self._tokens = [
            gateway.plugin("jwt").mint(organization=STRANGER, user=user, tier="wide", scopes=scopes, ttl=36_000)
            for user in (f"{STRANGER}-user", "another")
            for scopes in ((), ("keys",))
        ]

    def value(self) -> str:
        """A foreign id, whole or altered."""
        rng = self._rng
        found = rng.choice(self._foreign)
        match rng.randrange(8):
            case 0:
                return found.upper()
            case 1:
                return found + rng.choice(("/", "%2f", "%00", " ", "?", "#", ";a=b", "/..", "*"))
            case 2:
                return rng.choice((" ", "./", "../", "{}", "%2e%2e/")) + found
            case 3:
                return found.replace("-", "") if rng.random() < 0.5 else found[: rng.randrange(1, len(found) + 1)]
        return found

    def probe(self) -> tuple[Route, str, str, bytes, bytes, list[tuple[bytes, bytes]]]:
        rng = self._rng
        route = rng.choice(self._gateway.routes)
        method = rng.choice(route.methods)
        path = route.path
        for name in re.findall(r"{(\w+)}", path):
            mine = rng.choice(self._own.get(name, [GOOD.get(name, "x")]))
            path = path.replace(f"{{{name}}}", self.value() if rng.random() < 0.6 else mine)
        own_session = rng.choice(self._own["session_id"])
        query = {name: self.value() for name in route.query if rng.random() < 0.4}
        if method == "WEBSOCKET":
            query = {"sessionId": own_session, **query}
        body: Any = None
        if route.body is not None:
            body = example(route.body)
            if "sessionId" in body:
                body["sessionId"] = own_session
            for name in fields(route.body):
                if rng.random() < 0.3:
                    body[name] = rng.choice((self.value, lambda: [self.value()], lambda: {"a": self.value()}))()
        headers = [(b"host", b"a"), (b"authorization", f"Bearer {rng.choice(self._tokens)}".encode())]
        for name in ("idempotency-key", "x-request-id", "openai-organization", "x-organization-id", "x-forwarded-for"):
            if rng.random() < 0.1:
                headers.append((name.encode(), self.value().encode("latin-1", "replace")))
        content = json.dumps(body).encode() if body is not None else b""
        return route, method, path, urlencode(query).encode(), content, headers

    async def send(
        self, method: str, path: str, query: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> tuple[int, bytes]:
        """Return the status, and all that came back."""
        socket = method == "WEBSOCKET"
        scope: dict[str, Any] = {
            "type": "websocket" if socket else "http",
            "http_version": "1.1",
            "method": "GET" if socket else method,
            "scheme": "ws" if socket else "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": query,
            "headers": headers,
            "client": ("10.0.0.1", 1),
            "server": ("a", 80),
            "state": {},
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        waiting = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}] if socket else [
            {"type": "http.request", "body": body, "more_body": False},
            {"type": "http.disconnect"},
        ]  # fmt: skip
        status = 0
        said = b""

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status, said
            status = message.get("status", 200 if message["type"] == "websocket.accept" else status)
            said += repr(message).encode()

        await self._gateway(scope, receive, answer)
        return status, said


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("count", counts(800, 100_000))
async def test_no_probe_gives_a_stranger_anything(count: int, tmp_path: Path, record_property: Recorder) -> None:
    rng = random.Random(f"{SEED}/probes")
    gateway = build(wide(tmp_path, **{"plugins.access_log.level": "error"}))
    statuses: Counter[int] = Counter()
    seen: Counter[str] = Counter()
    bad: list[str] = []
    sent: set[str] = set()
    async with serving(gateway) as url, aiohttp.ClientSession() as http:
        owner, stranger = (Organization(gateway, url, http, name) for name in (OWNER, STRANGER))
        foreign = await belongings(owner)
        before = await state(owner, foreign)
        own = {
            "session_id": [await stranger.session() for _ in range(40)],
            "key_id": [await stranger.key() for _ in range(20)],
        }
        prober = Prober(gateway, rng, foreign, own)
        for number in range(count):
            if number % 500 == 499:  # some of them end what is the stranger's own
                own["session_id"].append(await stranger.session())
            route, method, path, query, body, headers = prober.probe()
            status, said = await prober.send(method, path, query, body, headers)
            statuses[status] += 1
            seen[f"{method} {route.path}"] += 1
            # what the stranger has sent himself may come back, out of his own session too
            sent.update(CANARY.findall(f"{path} {query!r} {body!r} {headers!r}"))
            shown = set(CANARY.findall(said.decode())) - sent
            if shown or status >= 500:
                bad.append(f"{method} {path} {query!r} {body!r}: {status} {sorted(shown)}")
        after = await state(owner, foreign)
    say(f"seed {SEED}: {count} probes of {len(seen)} routes and methods, {dict(sorted(statuses.items()))}")
    record_property("random probes", count)
    record_property("leaks", len(bad))
    assert not bad, f"seed {SEED}: {len(bad)}\n" + "\n".join(bad[:20])
    assert after == before
    assert not sent & {"canary-content", "canary-metadata", "canary-turn"}  # these would have been seen
    assert {200, 400, 403, 404} <= statuses.keys() and 429 not in statuses
    assert len(seen) == sum(len(route.methods) for route in gateway.routes)
