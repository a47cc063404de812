"""Hostile names in every place that a client fills add no series to the metrics.

Long form: `pytest tests/fire -m long` (100,000 exchanges; `FIRE_SEED` chooses others).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build

from .watch import SEED, Recorder, counts, say, wide

WORD = "abcdefghijklmnopqrstuvwxyz0123456789-_."
KINDS = 5


class Fire:
    """Exchanges in the process: what a server would refuse before us is let through to the metrics here."""

    def __init__(self, gateway: Gateway, seed: str) -> None:
        self._gateway = gateway
        self._rng = random.Random(seed)
        self.statuses: Counter[int] = Counter()

    async def one(self, kind: int | None = None, good: bool | None = None) -> None:
        rng = self._rng
        word = "".join(rng.choice(WORD) for _ in range(rng.randrange(4, 40)))
        token = self._gateway.plugin("jwt").mint(
            organization=f"org-{word}", user=f"user-{word}", tier="wide", scopes=(f"s-{word}",), ttl=60
        )
        kind = rng.randrange(KINDS) if kind is None else kind
        method, path, body = "GET", "/v1/models", b""
        if kind == 0:
            path = f"/{word}/{word}"
        elif kind == 1:
            method = word.upper()
        elif kind == 2:
            method, path = "POST", "/v1/chat/completions"
            body = json.dumps({"model": word, "messages": [{"role": "user", "content": "x"}]}).encode()
        elif kind == 3:
            method, path, body = "POST", f"/api/v1/skills/{word}/execute", b'{"params": {}}'
        headers = [(b"host", b"a"), (b"user-agent", word.encode()), (b"x-request-id", word.encode())]
        if good if good is not None else rng.random() < 0.95:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        else:
            headers.append((b"x-api-key", word.encode()))
        await self._send(method, path, body, headers, client=f"10.{rng.randrange(256)}.{rng.randrange(256)}.1")

    async def _send(self, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]], client: str) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": (client, 1),
            "server": ("a", 80),
            "state": {},
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.statuses[message["status"]] += 1

        await self._gateway(scope, receive, send)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("count", counts(3_000, 100_000))
async def test_hostile_names_add_no_series(count: int, tmp_path: Path, record_property: Recorder) -> None:
    # one process answers all of them at once: what is timed by chance is timed always, so that it is there before
    gateway = build(wide(tmp_path, **{"gateway.stage_sampling": 1}))
    async with gateway.running():
        first = Fire(gateway, f"{SEED}/first")
        for kind in range(KINDS):
            for good in (True, False, True, False):
                await first.one(kind, good)
        before = series(gateway)
        fire = Fire(gateway, f"{SEED}/labels")
        for _ in range(count):
            await fire.one()
    say(f"seed {SEED}: {count} exchanges, {len(before)} series, {dict(sorted(fire.statuses.items()))}")
    # The gateway's own jobs come by the clock, whatever is fired.
    new = {(name, labels) for name, labels in series(gateway) - before if ("operation", "sweep") not in labels}
    record_property("hostile exchanges", count)
    record_property("new series", len(new))
    assert new == set()
    assert {200, 401, 404, 405} <= fire.statuses.keys() and max(fire.statuses) < 500


def series(gateway: Gateway) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {(s.name, tuple(sorted(s.labels.items()))) for family in gateway.registry.collect() for s in family.samples}
