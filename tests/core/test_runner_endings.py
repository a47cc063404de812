"""How an exchange ends, seen from the ASGI server: what is sent and logged, what steps are told, what is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from litestar import get
from litestar.exceptions import HTTPException
from litestar.handlers import asgi
from litestar.params import FromQuery
from small import CONFIG, TIERS, Api, Known, Named, Ranked

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    REQUEST_ID,
    Exchange,
    Outcome,
    Refusal,
    Refused,
    Reply,
    ResponseHead,
    StoreUnavailable,
    bad_request,
    declared,
    hookimpl,
)
from openclaw_gateway.decoding import Disconnected
from openclaw_gateway.faults import refusal_of
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving

pytestmark = pytest.mark.usefixtures("small")

ACCEPT = {"type": "websocket.accept"}
DENY = {"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-why", b"full")]}
START = {"type": "http.response.start", "status": 200, "headers": []}

#: what a handler sends, and then raises, by its path
SOCKETS: dict[str, tuple[list[Any], BaseException | None]] = {
    "/ws/good": ([ACCEPT, {"type": "websocket.close", "code": 1000, "reason": ""}], None),
    "/ws/boom": ([], RuntimeError("secret cause")),
    "/ws/refuses": ([], Refused(bad_request("no", param="a.b"))),
    "/ws/cut": ([ACCEPT], RuntimeError("secret cause")),
    "/ws/after": ([ACCEPT, {"type": "websocket.close", "code": 4000, "reason": ""}], RuntimeError("secret cause")),
    "/ws/denied": ([DENY], RuntimeError("secret cause")),
    "/ws/shut": ([{"type": "websocket.close", "code": 1008, "reason": ""}], RuntimeError("secret cause")),
    "/ws/drained": ([ACCEPT], asyncio.CancelledError()),
}
REQUESTS: dict[str, tuple[list[Any], BaseException | None]] = {
    "/http/good": ([START, {"type": "http.response.body", "body": b"whole"}], None),
    "/http/short": ([START, {"type": "http.response.body", "body": b"half", "more_body": True}], None),
    "/http/boom": ([], RuntimeError("secret cause")),
    "/http/refuses": ([], Refused(bad_request("no", param="a.b"))),
    "/http/away": ([], StoreUnavailable("database", "secret cause")),
    "/http/cut": ([START], RuntimeError("secret cause")),
    "/http/drained": ([START], asyncio.CancelledError()),
}


def ending(methods: tuple[str, ...], fates: dict[str, tuple[list[Any], BaseException | None]]) -> Any:
    @asgi([*fates], copy_scope=False, **declared(access="public", methods=methods))
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        messages, error = fates[scope["path"]]
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    return handler


@get("/left", **declared(access="public"))
async def left() -> None:
    raise Disconnected


@get("/number", **declared(access="public"))
async def number(n: FromQuery[int]) -> None:
    raise AssertionError(n)


@pytest.fixture
def gateway(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    routes = Api.routes
    more = [ending(("WEBSOCKET",), SOCKETS), ending(("GET",), REQUESTS), left, number]
    monkeypatch.setattr(Api, "routes", hookimpl(lambda self: [*routes(self), *more]))
    return build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))


async def ended(gateway: Gateway, kind: str, path: str, method: str = "GET") -> tuple[list[dict[str, Any]], Outcome]:
    """Carry one exchange; return what was sent and how it ended."""
    sent = await carried(gateway, kind, path, method)
    (outcome,) = gateway.plugin("named").outcomes
    return sent, outcome


async def carried(gateway: Gateway, kind: str, path: str, method: str = "GET", **headers: str) -> list[dict[str, Any]]:
    """Carry one exchange; return what was sent. Nothing of it is left in the scope."""
    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "extensions": {"websocket.http.response": {}},
    }
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is asked of the client")

    await gateway.runner(scope, receive, send)
    assert "exchange" not in scope
    return sent


@pytest.mark.parametrize(
    ("path", "sent", "status", "faults"),
    [
        ("/ws/good", ["accept", 1000], 101, 0),
        ("/ws/boom", [500, "body"], 500, 1),
        ("/ws/refuses", [400, "body"], 400, 0),
        ("/ws/nowhere", [404, "body"], 404, 0),
        ("/open", [404, "body"], 404, 0),
        ("/http/good", [404, "body"], 404, 0),
        ("/ws/cut", ["accept", 1011], 101, 1),
        ("/ws/after", ["accept", 4000], 101, 1),
        ("/ws/denied", [403], 403, 1),
        ("/ws/shut", [1008], 0, 1),
        ("/ws/drained", ["accept"], 101, 0),
    ],
)
async def test_of_a_socket(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, path: str, sent: list[Any], status: int, faults: int
) -> None:
    messages, outcome = await ended(gateway, "websocket", path)
    assert [m.get("code") or m.get("status") or m["type"].rpartition(".")[2] for m in messages] == sent
    assert all(dict(m["headers"])[b"x-request-id"] == b"r-1" for m in messages if "headers" in m)
    assert [dict(m["headers"]).get(b"x-why") for m in messages if path == "/ws/denied"] == [b"full"] * (status == 403)
    assert outcome.status == status
    assert outcome.disconnected is (path == "/ws/drained")
    error = SOCKETS.get(path, ((), None))[1]
    assert outcome.error is (None if path == "/ws/drained" else error)
    assert faults == len([*failures(caplog)])


@pytest.mark.parametrize(
    ("path", "sent", "status", "faults"),
    [
        ("/http/good", [200, b"whole"], 200, 0),
        ("/http/short", [200, b"half"], 200, 0),
        ("/http/boom", [500, "body"], 500, 1),
        ("/http/refuses", [400, "body"], 400, 0),
        ("/http/away", [503, "body"], 503, 0),
        ("/http/cut", [200], 200, 1),
        ("/http/drained", [200], 200, 0),
        ("/http/nowhere", [404, "body"], 404, 0),
    ],
)
async def test_of_a_request(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, path: str, sent: list[Any], status: int, faults: int
) -> None:
    messages, outcome = await ended(gateway, "http", path)
    for expected, message in zip(sent, messages, strict=True):
        assert expected in (message.get("status"), message.get("body"), message["type"].rpartition(".")[2])
        assert b"secret cause" not in message.get("body", b"")
    assert outcome.status == status
    assert outcome.disconnected is (path in ("/http/short", "/http/drained"))
    assert outcome.bytes_sent == sum(len(message.get("body", b"")) for message in messages)
    assert faults == len([*failures(caplog)])


def failures(caplog: pytest.LogCaptureFixture) -> Iterator[logging.LogRecord]:
    for record in caplog.records:
        if record.message == "request failed":
            assert record.exc_info is not None and "secret cause" in str(record.exc_info[1])
            yield record


async def test_a_client_that_left_is_not_taken_for_one_that_was_answered(gateway: Gateway) -> None:
    async with serving(gateway) as url, aiohttp.ClientSession(url) as client, client.get("/left") as answer:
        assert answer.status == 400
    (outcome,) = gateway.plugin("named").outcomes
    assert (outcome.disconnected, outcome.error) == (True, None)


async def test_a_value_that_does_not_fit_is_named_and_not_repeated(gateway: Gateway) -> None:
    async with (
        serving(gateway) as url,
        aiohttp.ClientSession(url) as client,
        client.get("/number", params={"n": "hunter2"}) as answer,
    ):
        assert answer.status == 400
        text = await answer.text()
    assert '"n: not a valid value"' in text and '"n"' in text and "hunter2" not in text


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/http/good", ["started 200", "chunk whole", "leave"]),
        ("/http/short", ["started 200", "chunk half"]),
        ("/refuses", ["started 400", "chunk", "leave"]),
        ("/http/nowhere", ["started 404", "chunk", "leave"]),
    ],
)
async def test_a_guard_sees_what_goes_out(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, seen: list[str]
) -> None:
    told: list[str] = []

    class Watching:
        reference = None

        async def enter(self) -> None:
            return None

        def started(self, status: int, headers: Any) -> None:
            told.append(f"started {status}")

        def chunk(self, data: bytes) -> None:
            told.append(f"chunk {data.decode()}" if path.startswith("/http/") and "nowhere" not in path else "chunk")

        async def leave(self) -> None:
            told.append("leave")

    def set_guard(self: Named, x: Exchange) -> None:
        x.guard = Watching()
        x[REQUEST_ID] = "r-1"

    monkeypatch.setattr(Named, "on_request", hookimpl(set_guard))
    gateway = build(configuration(tmp_path / "guarded", toml=CONFIG, tiers=TIERS))
    if path == "/refuses":
        async with serving(gateway) as url, aiohttp.ClientSession(url) as client, client.get(path) as answer:
            assert answer.status == 400
    else:
        await carried(gateway, "http", path)
    assert told == seen


@pytest.mark.parametrize("path", ["/http/good", "/http/nowhere"])
async def test_a_step_may_replace_each_chunk_that_goes_out(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def on_chunk(self: Named, x: Exchange, data: bytes) -> bytes | None:
        return b"<" + data + b">" if told else None

    told = False
    monkeypatch.setattr(Named, "on_chunk", hookimpl(on_chunk), raising=False)
    gateway = build(configuration(tmp_path / "chunks", toml=CONFIG, tiers=TIERS))
    left = (await carried(gateway, "http", path))[-1]["body"]
    told = True
    (start, body) = await carried(gateway, "http", path)
    assert start["status"] == (200 if path == "/http/good" else 404)
    assert body["body"][:1] + body["body"][-1:] == b"<>" and len(body["body"]) == len(left) + 2
    assert [outcome.bytes_sent for outcome in gateway.plugin("named").outcomes] == [len(left), len(left) + 2]


async def test_a_chunk_that_a_step_replaces_by_what_is_none_is_a_fault_of_that_step(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Named, "on_chunk", hookimpl(lambda self, x, data: data.decode()), raising=False)
    gateway = build(configuration(tmp_path / "chunks", toml=CONFIG, tiers=TIERS))
    messages, outcome = await ended(gateway, "http", "/http/good")
    assert [message["type"] for message in messages] == ["http.response.start"], "a cut answer never looks whole"
    assert messages[0]["status"] == 200
    assert "on_chunk of 'named' returned" in str(outcome.error)


BAD = [
    ("x-bad", b"text"),
    (b"x-bad", "text"),
    (b"x-bad", b"two\r\nx-bad: lines"),
    (b"x-bad", b"\x7f"),
    (b"x-bad\n", b""),
]
BAD += [(b"content-length", b"two"), (b"x-bad",), "x-bad", None]


async def test_a_step_that_raises_at_a_response_is_named_and_passed_over(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def on_response(self: Named, x: Exchange, head: ResponseHead) -> None:
        raise KeyError("its own mistake")

    monkeypatch.setattr(Named, "on_response", hookimpl(on_response), raising=False)
    messages, outcome = await ended(build(configuration(tmp_path, toml=CONFIG, tiers=TIERS)), "http", "/http/good")
    assert (messages[0]["status"], outcome.error) == (200, None)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "on_response of named failed"
    assert record.exc_info is not None and "its own mistake" in str(record.exc_info[1])


@pytest.mark.parametrize("header", BAD, ids=[repr(header) for header in BAD])
async def test_a_header_that_cannot_be_sent_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, header: Any
) -> None:
    def on_response(self: Named, x: Exchange, head: ResponseHead) -> None:
        head.headers += [(b"x-good", b"tab\tand \xe9"), header]

    monkeypatch.setattr(Named, "on_response", hookimpl(on_response), raising=False)
    gateway = build(configuration(tmp_path / "bad", toml=CONFIG, tiers=TIERS))
    async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
        for path, status in (("/raw", 200), ("/nowhere", 404), ("/things", 401)):
            async with client.post(path, headers={"x-org": "a"} if status == 200 else {}) as answer:
                assert (answer.status, answer.headers["x-good"][:4]) == (status, "tab\t")
                assert "x-bad" not in answer.headers and await answer.read()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    name = header[0] if isinstance(header, tuple) else header
    assert said[
        0
    ] == f"a header that cannot be sent is left out: {name!r}, of the handler of /raw, or of on_response of " + (
        "['named']"
    )
    assert len(said) == 3 and all("cannot be sent" in line and "on_response of ['named']" in line for line in said)
    assert not any(outcome.error for outcome in gateway.plugin("named").outcomes)


async def test_of_two_lengths_the_handlers_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_response(self: Named, x: Exchange, head: ResponseHead) -> None:
        head.headers.append((b"content-length", b"1"))

    monkeypatch.setattr(Named, "on_response", hookimpl(on_response), raising=False)
    gateway = build(configuration(tmp_path / "bad", toml=CONFIG, tiers=TIERS))
    async with serving(gateway) as url, aiohttp.ClientSession(url) as client, client.post("/nowhere") as answer:
        (length,) = answer.headers.getall("content-length")
        assert int(length) == len(await answer.read()) > 1


@pytest.mark.parametrize("status", ["200", 99, 600, None])
async def test_a_status_that_cannot_be_sent_is_a_500(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: Any
) -> None:
    def on_response(self: Named, x: Exchange, head: ResponseHead) -> None:
        head.status = status

    monkeypatch.setattr(Named, "on_response", hookimpl(on_response), raising=False)
    gateway = build(configuration(tmp_path / "bad", toml=CONFIG, tiers=TIERS))
    async with (
        serving(gateway) as url,
        aiohttp.ClientSession(url, headers={"x-org": "a"}) as client,
        client.post("/raw") as answer,
    ):
        assert answer.status == 500
    assert f"a status that cannot be sent is a 500 now: {status!r}, of the handler of /raw, or of" in caplog.text
    assert [outcome.status for outcome in gateway.plugin("named").outcomes] == [500]


@pytest.mark.parametrize(("raised", "status"), [(400, 400), (404, 404), (422, 400), (499, 400), (500, 500), (503, 500)])
def test_what_the_framework_raises_is_the_clients_fault_or_ours(raised: int, status: int) -> None:
    assert refusal_of(HTTPException("secret cause", status_code=raised)).status == status


async def test_what_is_no_exchange_is_no_business_of_it(gateway: Gateway) -> None:
    with pytest.raises(RuntimeError, match="unknown ASGI scope 'lifespan'"):
        await gateway.runner({"type": "lifespan"}, None, None)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(("refuses", "passed"), [("named", ["named"]), ("known", ["known", "named"])])
async def test_an_answer_passes_the_steps_that_the_request_has_entered_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str, passed: list[str], timed: bool
) -> None:
    heard: list[str] = []
    for name, plugin in (("named", Named), ("known", Known), ("ranked", Ranked)):
        monkeypatch.setattr(
            plugin, "on_response", hookimpl(lambda self, x, head, name=name: heard.append(name)), raising=False
        )
    if refuses == "named":
        monkeypatch.setattr(Named, "on_request", hookimpl(lambda self, x: bad_request("no")))
    toml = CONFIG.replace("port = 0", f"port = 0\nserver_timing = {str(timed).lower()}")
    gateway = build(configuration(tmp_path, toml=toml, tiers=TIERS))
    messages, outcome = await ended(gateway, "http", "/things", "POST")
    assert messages[0]["status"] == (400 if refuses == "named" else 401)
    assert outcome.refused_by == refuses
    assert heard == passed


async def test_while_it_drains_no_step_is_asked_that_waits_or_needs_what_one_would_have_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Ranked, "on_request", hookimpl(lambda self, x: asked.append("ranked")))
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    gateway.runner.draining = True
    messages, outcome = await ended(gateway, "http", "/things", "POST")
    assert (messages[0]["status"], outcome.status) == (503, 503)
    assert dict(messages[0]["headers"])[b"x-request-id"] == b"r-1"  # of the step before those
    assert asked == []


async def test_one_request_in_so_many_is_timed(tmp_path: Path) -> None:
    toml = CONFIG.replace("port = 0", "port = 0\nstage_sampling = 3")
    gateway = build(configuration(tmp_path, toml=toml, tiers=TIERS))
    labels = {"plugin": "named", "stage": "request"}
    timed = []
    for _ in range(7):
        await carried(gateway, "http", "/open")
        timed.append(gateway.registry.get_sample_value("plugin_stage_duration_seconds_count", labels) or 0)
    assert timed == [0, 0, 1, 1, 1, 2, 2]


async def test_messages_of_a_socket_pass_their_steps_and_limits_and_are_each_completed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, bool]] = [
        (None, True), (None, True), (None, True), (None, False),
        (bad_request("no"), True), (Reply(status=200), True), (None, False),
    ]  # fmt: skip
    told: list[tuple[Exchange, Refusal | None]] = []
    answers: list[Any] = []

    @asgi(
        "/talk",
        copy_scope=False,
        **declared(access="authenticated", methods=("WEBSOCKET",), message_meters=(MESSAGES,)),
    )
    async def talk(scope: Any, receive: Any, send: Any) -> None:
        await send(ACCEPT)
        for answer, metered in said:
            answers[:] = [answer]
            told.append(await gateway.runner.message(scope["exchange"], metered=metered))
            await gateway.runner.complete(told[-1][0])

    routes = Api.routes
    monkeypatch.setattr(Api, "routes", hookimpl(lambda self: [*routes(self), talk]))
    monkeypatch.setattr(Known, "on_message", hookimpl(lambda self, x: answers[0]), raising=False)
    tiers = {"basic": "[capped.requests]\nlimit = 3\n[capped.messages]\nlimit = 2\n"}
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=tiers))
    await carried(gateway, "websocket", "/talk", x_org="a")
    assert [refusal and refusal.status for _, refusal in told] == [None, None, 429, None, 400, 500, None]
    assert all(x.refusal is refusal and x[PRINCIPAL].organization == "a" for x, refusal in told)
    codes = [outcome.error_code for outcome in gateway.plugin("named").outcomes]
    refused = [refusal and refusal.code for _, refusal in told]
    assert codes == [*refused, None]  # the handshake's own is the last
    assert gateway.plugin("tally").used == {"a capped.messages": 2, "a capped.requests": 1}
