"""The console in a real browser: a key, a chat that streams and is stopped, a refusal, a session; no policy broken."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from upstreams import Pause, scripted

from openclaw_gateway.assets import asset
from openclaw_gateway.testing import build, configuration, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")

HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>"
#: what the browser itself refused by the page's policy
WATCH = """
window.refused = [];
document.addEventListener('securitypolicyviolation', e => refused.push(e.violatedDirective + ' ' + e.blockedURI));
window.addEventListener('error', e => refused.push(e.message));
window.addEventListener('unhandledrejection', e => refused.push(String(e.reason)));
"""


class Failed(AssertionError):
    """A command that the browser could not carry out, between two documents say."""


class Tab:
    """A page in a browser, driven by the browser's own debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)

    async def command(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            told = await self._socket.receive_json(timeout=20)
            if told.get("id") == number:
                if "error" in told:
                    raise Failed(told)
                return told["result"]

    async def open(self, url: str) -> None:
        await self.command("Page.enable")
        await self.command("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        await self.command("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && document.title === 'Gateway console'")

    async def value(self, expression: str) -> Any:
        told = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        async with asyncio.timeout(20):
            while not await self._holds(expression):
                await asyncio.sleep(0.02)

    async def _holds(self, expression: str) -> bool:
        try:
            return bool(await self.value(f"Boolean({expression})"))
        except Failed:
            return False

    async def text(self, id: str) -> str:
        return str(await self.value(f"document.getElementById('{id}').innerText"))

    async def type(self, id: str, text: str) -> None:
        await self.value(f"document.getElementById('{id}').select()")
        await self.command("Input.insertText", text=text)

    async def press(self, key: str, *, ctrl: bool = False) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Enter": 13, "Escape": 27, "Tab": 9}[key],
                modifiers=2 if ctrl else 0,
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )

    async def click(self, selector: str) -> None:
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")

    async def go_to(self, part: str) -> None:
        await self.click(f'nav a[href="#{part}"]')
        await self.until(f"document.activeElement.id === '{part}-title'")


@asynccontextmanager
async def tab(profile: Path) -> AsyncIterator[Tab]:
    assert CHROMIUM is not None
    browser = await asyncio.create_subprocess_exec(
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
        *(f"--user-data-dir={profile}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        told = profile / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (told.exists() and told.read_text().count("\n")):
                await asyncio.sleep(0.05)
        port = told.read_text().split("\n")[0]
        async with aiohttp.ClientSession() as client:
            async with client.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [page] = [one for one in await answer.json() if one["type"] == "page"]
            async with client.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        with suppress(ProcessLookupError):
            browser.kill()
        await browser.wait()


async def test_a_key_a_chat_a_refusal_and_a_session(tmp_path: Path) -> None:
    pieces = [HOSTILE, " and", " more"]
    tiers = {"small": asset("tiers").joinpath("open_source.toml").read_text().replace("limit = 10_000", "limit = 2")}
    async with scripted() as upstream, tab(tmp_path / "profile") as page:
        chunks = [
            b"data: " + json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": p}}]}).encode() + b"\n\n"
            for p in pieces
        ]
        end = b'data: {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
        edit = {
            "plugins.console": {},
            "plugins.up": {"use": "providers.openai", "url": upstream.url},
            "models.slow": {"provider": "up"},
        }
        gateway = build(configuration(tmp_path / "gateway", edit=edit, tiers=tiers))
        async with serving(gateway) as url:
            keys = gateway.plugin("api_key")
            made = await keys.create(organization="acme", user="ada", tier="small")
            key = made.key
            await page.open(f"{url}/console")

            # Without a key nothing is asked.
            await page.value("document.dispatchEvent(new Event('visibilitychange'))")
            await page.type("key", "ocg_wrong")
            await page.press("Enter")
            await page.until("document.querySelector('#entry .error').innerText.includes('401 UNAUTHORIZED')")
            assert "Request id: " in await page.text("entry")
            assert await page.value("document.querySelector('#usage .error').textContent") == ""
            await page.type("key", key)
            await page.press("Enter")
            await page.until("document.querySelectorAll('#limits tr').length >= 6")
            assert "ratelimit.requests" in await page.text("limits")
            assert await page.value("document.activeElement.id") == "usage-title"
            assert await page.value("document.getElementById('follow').checked")

            await page.go_to("sessions")
            await page.click("#sessions [type=submit]")
            await page.until("document.querySelectorAll('#listed code').length === 1")
            assert "organisation acme · user ada · tier small" in await page.text("who")

            # It comes piece by piece, and the rest is not waited for: the stop button aborts it.
            upstream.script = [chunks[0], Pause(30), *chunks[1:], end]
            await page.go_to("chat")
            await page.until("document.getElementById('model').options.length === 2")
            await page.value("document.getElementById('model').value = 'slow'")
            await page.type("user", HOSTILE)
            await page.press("Enter", ctrl=True)
            await page.until("document.getElementById('answer').innerText.length")
            assert await page.text("answer") == HOSTILE
            await page.click("#stop")
            await page.until("document.getElementById('progress').innerText.startsWith('Stopped')")
            await asyncio.wait_for(upstream.left.wait(), 10)

            upstream.script = [*chunks, end]
            await page.value("document.getElementById('chat-session').selectedIndex = 1")
            await page.click("#chat [type=submit]")
            await page.until("document.getElementById('progress').innerText.startsWith('Done')")
            assert await page.text("answer") == "".join(pieces)
            assert "x-ratelimit-remaining" in await page.text("chat") and "x-request-id" in await page.text("chat")
            shown = await page.value("document.querySelector('#chat .curl pre').innerText")
            assert f"{url}/v1/chat/completions" in shown and "Bearer $KEY" in shown and key not in shown
            # What was said is text, wherever it stands.
            assert await page.value("document.querySelectorAll('#answer *, pre *').length") == 0

            await page.click("#chat [type=submit]")
            await page.until("document.querySelector('#chat .error').innerText.includes('403 QUOTA_EXCEEDED')")
            told = await page.value("document.querySelector('#chat .error').innerText")
            assert "quota.messages" in told and "free again" in told and "Request id: " in told

            await page.go_to("skills")
            await page.until("document.getElementById('skill').options.length >= 2")
            await page.value("document.getElementById('skill').value = 'summarise_session'")
            await page.value("document.getElementById('skill').dispatchEvent(new Event('change'))")
            await page.value("document.getElementById('skill-session').selectedIndex = 1")
            await page.click("#skills [type=submit]")
            await page.until("document.getElementById('ran').innerText.includes('completed')")

            await page.go_to("sessions")
            await page.click("#listed button")
            await page.until("document.querySelectorAll('#messages li').length === 2")
            assert HOSTILE in await page.text("messages")
            await page.click("#listed button + button")
            await page.until("document.getElementById('ask').open")
            await page.press("Escape")
            await page.until("!document.getElementById('ask').open")
            assert await page.value("document.querySelectorAll('#listed code').length") == 1
            await page.click("#listed button + button")
            await page.click("#yes")
            await page.until("document.querySelectorAll('#listed code').length === 0")
            assert await page.value("document.getElementById('history').hidden")

            assert await page.value("window.broken") is None
            assert await page.value("refused") == []
            kept = "[localStorage.length, sessionStorage.length, document.cookie.length, history.length < 12]"
            assert await page.value(kept) == [0, 0, 0, True]
            assert key not in await page.value("location.href + document.documentElement.outerHTML")

            # What a revoked key asks is counted as a failed attempt: the page does not go on by itself.
            await keys.revoke(made.record.key_id)
            await page.go_to("usage")
            await page.until("document.querySelector('#usage .error').innerText.includes('401')")
            assert not await page.value("document.getElementById('follow').checked")
            await page.click("#forget")
            await page.until("document.readyState === 'complete' && !document.getElementById('entry')?.hidden")
            assert await page.value("document.getElementById('key').value") == ""
