"""Bodies that no client should send, to each surface: refused with the place, no upstream asked, nothing charged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chat_kit import Kit, chat_gateway

SAID = b'[{"role":"user","content":"hi"}]'
SURFACES = {
    "/v1/chat/completions": b'{"model":"same","messages":%s}',
    "/v1/messages": b'{"model":"same","max_tokens":5,"messages":%s}',
    "/v1/embeddings": b'{"model":"same","input":%s}',
}
surfaces = pytest.mark.parametrize("path", SURFACES)


@pytest.fixture
async def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kit]:
    async with chat_gateway(tmp_path, monkeypatch) as kit:
        yield kit


async def refused(kit: Kit, path: str, body: bytes, status: int = 400) -> dict[str, Any]:
    """Send the body; return the error after seeing that it cost nothing and reached no upstream."""
    before = len(kit.upstream.received)
    async with (
        aiohttp.ClientSession(headers={**kit.headers, "Content-Type": "application/json"}) as session,
        session.post(kit.url + path, data=BytesIO(body)) as answer,
    ):
        assert answer.status == status
        said: dict[str, Any] = json.loads(await answer.read())
    assert (kit.books.committed, kit.books.held) == ([], {})
    assert len(kit.upstream.received) == before
    error: dict[str, Any] = said["error"]
    return error


#: a name, what stands in the place of the messages, and what is said of it
NO_JSON: list[tuple[str, bytes, str]] = [
    ("cut", SAID[:-2], "not valid JSON"),
    ("trailing", SAID + b"} x", "not valid JSON"),
    ("not a number", SAID + b',"temperature":NaN', "not valid JSON"),
    ("infinite", SAID + b',"temperature":1e999', "not valid JSON"),
    ("lone surrogate", rb'[{"role":"user","content":"\ud800"}]', "not valid JSON"),
    ("no UTF-8", b'[{"role":"user","content":"\xff"}]', "not valid UTF-8"),
    ("deep", SAID + b',"x":' + b"[" * 900 + b"]" * 900, "nested deeper than 64 levels"),
    ("deeper", SAID + b',"x":' + b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64 levels"),
    ("deep content", b'[{"role":"user","content":' + b"[" * 5_000 + b"]" * 5_000 + b"}]", "nested deeper than 64"),
]


@surfaces
async def test_what_is_no_json_at_all(kit: Kit, path: str) -> None:
    for name, value, words in NO_JSON:
        assert words in (await refused(kit, path, SURFACES[path] % value))["message"], name


@surfaces
async def test_a_body_that_is_no_table(kit: Kit, path: str) -> None:
    for body in (b"null", b"1", b'"text"', b"[]"):
        assert "expected a table" in (await refused(kit, path, body))["message"], body


@surfaces
async def test_the_place_of_a_character_that_no_store_keeps(kit: Kit, path: str) -> None:
    error = await refused(kit, path, SURFACES[path] % rb'[{"role":"user","content":"a\u0000b"}]')
    field = "input" if path == "/v1/embeddings" else "messages"
    assert f"{field}[0].content" in error["message"]


@surfaces
async def test_models_that_are_none(kit: Kit, path: str) -> None:
    value = b'"hi"' if path == "/v1/embeddings" else SAID
    for model in (b"7", b"null", b'""', b'"nope"'):
        error = await refused(kit, path, SURFACES[path].replace(b'"same"', model) % value)
        assert error["message"].startswith("model: "), model


@surfaces
async def test_wrong_types_are_told_by_their_path(kit: Kit, path: str) -> None:
    if path == "/v1/embeddings":
        wrong = {"input": (b"{}", b"[]", b"[5.5]", b"null")}
    else:
        wrong = {
            "messages: ": (b"{}", b"[]", b"null"),
            "messages[0]: ": (b'["hi"]', b"[5]"),
            "messages[0].content: ": (
                b'[{"role":"user","content":[5]}]',
                b'[{"role":"user","content":[{"text":"a"}]}]',
            ),
            "messages[0].role: ": (b'[{"role":7,"content":"a"}]',),
            "stream: ": (SAID + b',"stream":"yes"',),
            "metadata: ": (SAID + b',"metadata":5',),
        }
    for place, values in wrong.items():
        for value in values:
            assert (await refused(kit, path, SURFACES[path] % value))["message"].startswith(place), value


@surfaces
async def test_twenty_megabytes(kit: Kit, path: str) -> None:
    body = SURFACES[path] % (b'[{"role":"user","content":"' + b"a" * 20_000_000 + b'"}]')
    assert "larger than 20MB" in (await refused(kit, path, body, 413))["message"]
