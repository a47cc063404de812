"""A thousand secrets through every input, and none of them in any sink: either form of the log, and the spans."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import pytest
import skill_kit
from servers import free_port
from socket_kit import Place, place, said, say
from upstreams import Received as Asked
from websockets.asyncio.client import ClientConnection

from openclaw_gateway.api import SkillCall, SkillFailed

from .test_redaction import canaries, pieces
from .test_tracing import attributes, quick_exports, receiving

__all__ = ["quick_exports"]

SECRETS = canaries(1_000)
#: inputs of a secret, taken in turn
INPUTS = 17
PROBE = logging.getLogger("openclaw.probe")
ROOMY = """title = "Roomy"
[ratelimit.requests]
limit = 100_000
per = "minute"
[ratelimit.ws_messages]
limit = 100_000
per = "minute"
[quota.sessions]
limit = 1_000
per = "month"
[quota.messages]
limit = 100_000
per = "month"
[quota.skills]
limit = 10_000
per = "session"
[concurrency.sessions]
limit = 10
[concurrency.ws_connections]
limit = 10
"""


class Told:
    """A skill that repeats what it was told, in an answer, a progress, or an error."""

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        how: Literal["say", "raise", "fail"]
        what: str

    async def run(self, params: Params, call: SkillCall) -> Any:
        call.progress(params.what)
        if params.how == "raise":
            raise RuntimeError(params.what)
        if params.how == "fail":
            raise SkillFailed(params.what, error_type="unwilling")
        return {"text": params.what}


class Sender:
    """Puts a secret into one of the inputs, and waits for what the gateway says to it."""

    def __init__(self, here: Place, stranger: aiohttp.ClientSession, socket: ClientConnection, session: str) -> None:
        self._here = here
        self._stranger = stranger
        self._socket = socket
        self._session = session
        self._one_frame = asyncio.Lock()
        #: answers by their status, to see that the inputs were reached
        self.met: dict[tuple[int, Any], int] = {}

    async def send(self, i: int, secret: str) -> None:
        which = i % INPUTS
        answer = await (self._as_stranger(which, secret) if which < 7 else self._as_known(which, secret))
        self.met[which, answer] = self.met.get((which, answer), 0) + 1

    async def _as_stranger(self, which: int, secret: str) -> Any:
        match which:
            case 0:
                return await self._get(f"/api/v1/sessions/{secret}")
            case 1:
                return await self._get(f"/{secret}/{secret}")
            case 2:
                return await self._get(f"/health?token={secret}&q={secret}")
            case 3:
                return await self._get("/api/v1/sessions", Authorization=f"Bearer {secret}")
            case 4:
                return await self._get("/api/v1/usage", **{"X-API-Key": secret, "Cookie": f"s={secret}"})
            case 5:
                return await self._get("/v1/models", **{"x-request-id": secret, "User-Agent": secret})
            case _:
                PROBE.error("bad: %s", secret, extra={"fields": {"seen": [secret]}})
                try:
                    raise ValueError(secret)
                except ValueError:
                    PROBE.exception("raised")

    async def _as_known(self, which: int, secret: str) -> Any:
        here, session = self._here, self._session
        match which:
            case 7:
                return (await here.ask("POST", "/v1/chat/completions", {"model": secret, "messages": [secret]}))[0]
            case 8:
                return (await here.ask("GET", f"/api/v1/sessions/{secret}/messages"))[0]
            case 9:  # the upstream refuses, and says back what it was sent
                said_by = [{"role": "user", "content": secret}]
                return (await here.ask("POST", "/v1/chat/completions", {"model": "slow", "messages": said_by}))[0]
            case 10:
                return (await skill_kit.execute(here, "told", session, how="say", what=secret))[0]
            case 11:
                return (await skill_kit.execute(here, "told", session, how="raise", what=secret))[0]
            case 12:
                return (await skill_kit.execute(here, "told", session, how="fail", what=secret))[0]
            case 13:
                return (await skill_kit.execute(here, "told", session, **{"how": secret, secret: secret}))[0]
            case 14:
                return (await skill_kit.execute(here, secret, session, how="x"))[0]
            case 15:
                async with self._one_frame:
                    await say(self._socket, "message", content=secret, model="slow")
                    return (await said(self._socket, "error"))["code"]
            case _:
                async with self._one_frame:
                    await say(self._socket, secret, token=secret)
                    return (await said(self._socket, "error"))["code"]

    async def _get(self, path: str, **headers: str) -> int:
        async with self._stranger.get(self._here.url + path, headers=headers) as response:
            return response.status


async def traces(form: Literal["json", "human"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Send them all, and say in which sink and by which input each was found."""
    monkeypatch.setitem(skill_kit.OFFERED, "told", Told)
    skill_kit.offer(monkeypatch)
    port = free_port()
    edit = {
        "gateway.pipeline": ["request_id", "tracing", "access_log", "metrics", "auth", "tier", "ratelimit", "quota",
                             "concurrency"],
        "plugins.tracing": {"endpoint": f"http://127.0.0.1:{port}"},
        "plugins.access_log": {"file": "gateway.log", "format": form, "level": "debug"},
        "plugins.chat.rest_after": 20,
        "models.slow": {"provider": "upstream", "retries": 0},
    }  # fmt: skip

    def refuse(asked: Asked) -> list[bytes]:
        here.upstream.status = 500 if len(here.upstream.received) % 8 == 1 else 400
        return [json.dumps({"error": {"message": f"not so: {asked.json['messages'][-1]['content']}"}}).encode()]

    async with receiving(port) as received, aiohttp.ClientSession() as stranger:
        async with place(tmp_path, tier="roomy", edit=edit, tiers={"roomy": ROOMY}) as here:
            here.upstream.script = refuse
            session = await here.session()
            async with here.connect(session) as socket:
                sender = Sender(here, stranger, socket, session)
                for start in range(0, len(SECRETS), 40):
                    some = enumerate(SECRETS[start : start + 40], start)
                    await asyncio.gather(*(sender.send(i, secret) for i, secret in some))
        exchanges = sum(i % INPUTS != 6 for i in range(len(SECRETS)))
        async with asyncio.timeout(15):
            while len(received.spans) < exchanges:
                await asyncio.sleep(0.05)
        spans = [f"{span.name} {attributes(span)} {span.status} {span.events}" for span in received.spans]
    reached = {which for which, answer in sender.met if answer not in (429, "RATE_LIMITED")}
    assert reached == set(range(INPUTS))
    upstream_said = {(9, 400), (9, 502), (15, "BAD_REQUEST"), (15, "UPSTREAM_ERROR")}
    assert {(11, 200), (12, 200), (13, 400), *upstream_said} <= set(sender.met), sender.met
    assert len(here.upstream.received) > 100, sender.met
    log = (tmp_path / "gateway.log").read_text()
    assert sum(span.startswith("execute_tool told ") for span in spans) > 150, "one span a skill"
    sinks = {"log": log, "spans": "\n".join(spans)}
    assert "[REDACTED]" in sinks["log"]
    return [
        f"{sink}, by input {i % INPUTS}"
        for sink, text in sinks.items()
        for i, secret in enumerate(SECRETS)
        if any(piece in text for piece in pieces(secret))
    ]


async def test_a_thousand_canaries_through_every_input_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    leaked = await traces("json", tmp_path, monkeypatch)
    record_property("canaries", len(SECRETS))
    record_property("traces", len(leaked))
    assert leaked == []


async def test_nor_do_they_in_the_form_for_humans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await traces("human", tmp_path, monkeypatch) == []
