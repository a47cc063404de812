"""Answers in gzip: for who takes it, of what is worth it, whole, and never an event stream."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from litestar.handlers import asgi
from small import CONFIG, Api, small

from openclaw_gateway.api import declared, hookimpl
from openclaw_gateway.testing import build, configuration, served, serving
from openclaw_plugins.compression import accepted

__all__ = ["small"]  # the fixture

pytestmark = pytest.mark.usefixtures("small")

TEXT = b'{"items": [' + b", ".join(b'{"number": %d}' % i for i in range(400)) + b"]}"


def answer(path: str, body: bytes, *headers: tuple[bytes, bytes], pieces: int = 1, status: int = 200) -> Any:
    @asgi(path, copy_scope=False, **declared(access="public", methods=("GET", "HEAD")))
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        size = max(1, -(-len(body) // pieces))
        parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        for i, part in enumerate(parts):
            shown = b"" if scope["method"] == "HEAD" else part
            await send({"type": "http.response.body", "body": shown, "more_body": i < len(parts) - 1})

    return handler


JSON = (b"content-type", b"application/json; charset=utf-8")
LENGTH = (b"content-length", str(len(TEXT)).encode())
#: path → whether it is compressed for who takes gzip
CASES: dict[str, tuple[Any, bool]] = {
    "/whole": (answer("/whole", TEXT, JSON, LENGTH, (b"etag", b'"v1"'), (b"vary", b"origin")), True),
    "/pieces": (answer("/pieces", TEXT, JSON, LENGTH, pieces=7), True),
    "/plain": (answer("/plain", TEXT, (b"content-type", b"text/plain"), LENGTH), True),
    "/failed": (answer("/failed", TEXT, JSON, LENGTH, status=500), True),
    "/stream": (answer("/stream", TEXT, (b"content-type", b"text/event-stream"), LENGTH, pieces=3), False),
    "/endless": (answer("/endless", TEXT, JSON, pieces=3), False),
    "/small": (answer("/small", b"{}" * 100, JSON, (b"content-length", b"200")), False),
    "/large": (answer("/large", TEXT * 60, JSON, (b"content-length", str(len(TEXT) * 60).encode())), False),
    "/image": (answer("/image", TEXT, (b"content-type", b"image/png"), LENGTH), False),
    "/as-is": (answer("/as-is", TEXT, JSON, LENGTH, (b"cache-control", b"no-transform")), False),
    "/packed": (answer("/packed", TEXT, JSON, LENGTH, (b"content-encoding", b"br")), False),
    "/partial": (answer("/partial", TEXT, JSON, LENGTH, status=206), False),
}


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setattr(Api, "routes", hookimpl(lambda self: [handler for handler, _ in CASES.values()]))
    edit = {"gateway.pipeline": ["named", "compression"]}
    async with serving(build(configuration(tmp_path, toml=CONFIG, tiers={"basic": ""}, edit=edit))) as found:
        yield found


async def ask(url: str, path: str, accept: str | None, method: str = "GET") -> tuple[Any, bytes]:
    headers = {} if accept is None else {"accept-encoding": accept}
    skipped = ("accept-encoding",)
    async with (
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=skipped) as client,
        client.request(method, url + path, headers=headers) as response,
    ):
        return response, await response.read()


@pytest.mark.parametrize("path", CASES)
async def test_what_is_worth_it_is_compressed_and_comes_out_whole(url: str, path: str) -> None:
    packed, body = await ask(url, path, "br, gzip;q=0.5")
    plain, whole = await ask(url, path, None)
    assert plain.status == packed.status and "gzip" not in plain.headers.getall("content-encoding", [])
    if not CASES[path][1]:
        assert "gzip" not in packed.headers.getall("content-encoding", [])
        assert body == whole
        return
    assert packed.headers["content-encoding"] == "gzip" and "content-length" not in packed.headers
    assert gzip.decompress(body) == whole and len(body) < len(whole) / 3
    for response in (packed, plain):
        assert "accept-encoding" in response.headers["vary"]
    if path == "/whole":
        assert (packed.headers["etag"], plain.headers["etag"]) == ('W/"v1"', '"v1"')
        assert packed.headers["vary"] == "origin, accept-encoding"
    head, nothing = await ask(url, path, "gzip", "HEAD")
    assert (nothing, head.headers["content-length"]) == (b"", str(len(whole)))


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (b"gzip", True),
        (b"GZIP;q=1.0", True),
        (b"x-gzip", True),
        (b"*", True),
        (b"br, *;q=0.1", True),
        (b"deflate, gzip; q=0.001", True),
        (b"", False),
        (b"br", False),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000", False),
        (b"*;q=0", False),
        (b"*, gzip;q=0", False),
        (b"gzipped", False),
    ],
)
def test_who_takes_it(header: bytes, taken: bool) -> None:
    assert accepted(header) is taken


async def test_replies_of_steps_and_replays_are_compressed_too_and_decode(tmp_path: Path) -> None:
    """What a guard keeps is the answer, not its bytes in gzip: who replays it may take something else."""
    pipeline = ["request_id", "compression", "auth", "tier", "idempotency", "ratelimit", "quota", "concurrency"]
    edit = {"gateway.port": 0, "gateway.pipeline": pipeline}
    async with served(build(configuration(tmp_path, edit=edit))) as server:
        token = server.gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams")
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k-1"}
        asked = {"model": "echo", "messages": [{"role": "user", "content": "again " * 500}]}
        texts = []
        async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("accept-encoding",)) as client:
            for accept in ("gzip", "identity", "gzip"):
                given = {**headers, "accept-encoding": accept}
                async with client.post(f"{server.gateway.url}/v1/chat/completions", json=asked, headers=given) as got:
                    body = await got.read()
                    assert got.status == 200
                    assert (got.headers.get("content-encoding") == "gzip") is (accept == "gzip")
                    texts.append(zlib.decompress(body, 31) if accept == "gzip" else body)
        assert texts[0] == texts[1] == texts[2] and b"again again" in texts[0]
