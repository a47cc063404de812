"""The way out in one step: where the server can write at once it does, and else nothing is lost or told twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from openclaw_gateway.exchange import Exchange
from openclaw_gateway.response import Response, piecewise, send_whole

LENGTH = (b"content-length", b"2")


class Server:
    """Our server's `send`; it may have to be waited for."""

    def __init__(self) -> None:
        self.free = True
        self.written: list[Any] = []

    async def __call__(self, message: Any) -> None:
        self.written.append(message)

    def whole(self, status: int, headers: Any, body: bytes) -> bool:
        if self.free:
            self.written.append((status, headers, body))
        return self.free

    def takes(self) -> bool:
        return self.free

    def piece(self, data: bytes) -> bool:
        if self.free:
            self.written.append(data)
        return self.free


class Guard:
    def __init__(self, told: list[Any]) -> None:
        self._told = told

    def started(self, status: int, headers: Any) -> None:
        self._told.append(("started", status))

    def chunk(self, data: bytes) -> None:
        self._told.append(("chunk", data))

    async def leave(self) -> None:
        self._told.append("left")


class Out:
    def __init__(self, *, chunk: Any = None, response: Any = None, server: Any = None) -> None:
        def calls(function: Any) -> Any:
            return (SimpleNamespace(index=0, function=function, step=SimpleNamespace(id="s")),) if function else ()

        route: Any = SimpleNamespace(chunk=calls(chunk), response=calls(response), route=SimpleNamespace(path="/"))
        self.x = Exchange("http", "POST", "/", route, {"headers": []}, 0.0)
        self.server = server or Server()
        self.response = Response(self.x, self.server, False)
        self.response.entered = 1


def start(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


@pytest.mark.parametrize("free", [True, False], ids=["at once", "by send"])
async def test_what_is_whole_passes_every_hook_however_it_leaves(free: bool) -> None:
    def on_response(x: Exchange, head: Any) -> None:
        head.status = 201
        head.set(b"x-a", b"1")

    out = Out(chunk=lambda x, data: data.upper(), response=on_response)
    told: list[Any] = []
    guard: Any = Guard(told)
    out.x.guard = guard
    out.server.free = free
    await send_whole(out.response, 200, [LENGTH], b"ok")
    headers = [LENGTH, (b"x-a", b"1")]
    by_send = [start(201, *headers), {"type": "http.response.body", "body": b"OK"}]
    assert out.server.written == ([(201, headers, b"OK")] if free else by_send)
    assert (out.x.outcome.status, out.x.outcome.bytes_sent) == (201, 2)
    assert (out.response.started, out.response.finished) == (True, True)
    assert told == [("started", 200), ("chunk", b"ok"), "left"]


@pytest.mark.parametrize("guarded", [False, True])
async def test_a_piece_passes_every_hook_and_is_counted(guarded: bool) -> None:
    out = Out(chunk=lambda x, data: data + b"!")
    told: list[Any] = []
    guard: Any = Guard(told)
    out.x.guard = guard if guarded else None
    assert piecewise(out.response)(b"one")
    assert piecewise(out.response)(b"two")
    assert out.server.written == [b"one!", b"two!"]
    assert out.x.outcome.bytes_sent == 8
    assert told == ([("chunk", b"one"), ("chunk", b"two")] if guarded else [])


async def test_a_piece_that_cannot_leave_has_not() -> None:
    seen: list[bytes] = []
    out = Out(chunk=lambda x, data: seen.append(data))
    told: list[Any] = []
    guard: Any = Guard(told)
    out.x.guard = guard
    out.server.free = False
    assert not piecewise(out.response)(b"one")
    assert (out.server.written, out.x.outcome.bytes_sent, seen, told) == ([], 0, [], [])


async def test_any_send_will_do() -> None:
    written: list[Any] = []

    async def send(message: Any) -> None:
        written.append(message)

    await send_whole(send, 200, [LENGTH], b"ok")
    body = {"type": "http.response.body", "body": b"ok", "more_body": False}
    assert written == [start(200, LENGTH), body]
    assert not piecewise(send)(b"one")
    out = Out(server=send)
    assert not piecewise(out.response)(b"one")
    await send_whole(out.response, 200, [LENGTH], b"ok")
    assert written[2:] == [start(200, LENGTH), {"type": "http.response.body", "body": b"ok"}]
