"""A real browser's own WebSocket: a page with a ticket talks and reads, one of another origin is turned away."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from socket_kit import place

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")

PAGE = """<!doctype html><title>a page</title><script>
const frames = [];
const socket = new WebSocket(%s);
const done = end => fetch('/done', {method: 'POST', body: JSON.stringify({frames, end})});
socket.onopen = () => socket.send(JSON.stringify(
    {type: 'message', id: 'm1', content: 'Good morning', stream: true}));
socket.onmessage = event => {
    const frame = JSON.parse(event.data);
    frames.push(frame);
    if (frame.type === 'message' || frame.type === 'error') socket.close(1000);
};
socket.onclose = event => done({code: event.code, clean: event.wasClean});
</script>"""


class Page:
    """A site with one page, and what its script reported."""

    def __init__(self) -> None:
        self.origin = ""
        self.target = ""
        self.reported: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def show(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE % json.dumps(self.target), content_type="text/html")

    async def done(self, request: web.Request) -> web.Response:
        self.reported.set_result(await request.json())
        return web.Response()


@asynccontextmanager
async def served() -> AsyncIterator[Page]:
    page = Page()
    site = web.Application()
    site.add_routes([web.get("/", page.show), web.post("/done", page.done)])
    runner = web.AppRunner(site, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        page.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield page
    finally:
        await runner.cleanup()


async def visit(page: Page, profile: Path) -> dict[str, Any]:
    """Open the page in a browser, and return what its script reports."""
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", page.origin),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60):
            return await page.reported
    finally:
        browser.kill()
        await browser.wait()


async def test_a_page_with_a_ticket_talks_and_reads(tmp_path: Path) -> None:
    async with (
        served() as page,
        place(tmp_path / "here", tier="teams", edit={"plugins.realtime.origins": [page.origin]}) as here,
    ):
        session = await here.session()
        status, body = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
        assert status == 201
        page.target = here.at(session, ticket=body["ticket"])
        reported = await visit(page, tmp_path / "profile")
    frames = reported["frames"]
    assert reported["end"] == {"code": 1000, "clean": True}
    assert frames[-1]["type"] == "message" and frames[-1]["content"] == "Good morning"
    pieces = [frame for frame in frames if frame["type"] == "stream"]
    assert "".join(piece["chunk"] for piece in pieces) == "Good morning"
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    numbers = [frame["seq"] for frame in frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_a_page_of_another_origin_is_turned_away(tmp_path: Path) -> None:
    async with (
        served() as page,
        place(tmp_path / "here", tier="teams", edit={"plugins.realtime.origins": ["https://app.example.com"]}) as here,
    ):
        session = await here.session()
        _, body = await here.ask("POST", "/api/v1/ws-tickets", {"sessionId": session})
        page.target = here.at(session, ticket=body["ticket"])
        reported = await visit(page, tmp_path / "profile")
        _, history = await here.ask("GET", f"/api/v1/sessions/{session}/messages")
    assert reported == {"frames": [], "end": {"code": 1006, "clean": False}}
    assert history["messages"] == []
