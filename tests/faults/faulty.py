"""An upstream that fails by the book: each model that it serves plays its own list of answers, one a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any


class Fault:
    """One way to answer a call; `stream` says which form the client's call has."""

    async def play(self, writer: asyncio.StreamWriter, model: str, stream: bool) -> None:
        raise NotImplementedError


class Status(Fault):
    """An answer with an error status."""

    def __init__(self, status: int, message: str = "no", headers: Mapping[str, str] = {}, **error: Any) -> None:
        self.status = status
        self.headers = headers
        self.body = json.dumps({"error": {"message": message, "type": "x", **error}}).encode()

    async def play(self, writer: asyncio.StreamWriter, model: str, stream: bool) -> None:
        _head(writer, self.status, {"Content-Type": "application/json", **self.headers}, len(self.body))
        writer.write(self.body)
        await writer.drain()


class Reset(Fault):
    """The connection ends without a word."""

    async def play(self, writer: asyncio.StreamWriter, model: str, stream: bool) -> None:
        writer.transport.abort()


class Words(Fault):
    """An answer in pieces. What is said can be late, stop, be cut, be nonsense, or end without its marker."""

    def __init__(
        self,
        *words: str,
        first_after: float = 0.0,
        then: Callable[[asyncio.StreamWriter], Any] | None = None,
        finish: str | None = "stop",
        done: bool = True,
    ) -> None:
        self.words = words
        self.first_after = first_after
        self.then = then
        self.finish = finish
        self.done = done

    async def play(self, writer: asyncio.StreamWriter, model: str, stream: bool) -> None:
        await asyncio.sleep(self.first_after)
        usage = {"prompt_tokens": 3, "completion_tokens": len(self.words), "total_tokens": 3 + len(self.words)}
        if not stream:
            message = {"role": "assistant", "content": "".join(self.words), "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": self.finish, "logprobs": None}
            head = {"id": "c", "object": "chat.completion", "created": 1, "model": model}
            body = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
            if self.then is nonsense:
                body = body[:-20]
            _head(writer, 200, {"Content-Type": "application/json"}, len(body))
            if self.then is not None and self.then is not nonsense:
                writer.write(body[: len(body) // 2])
                await writer.drain()
                await self.then(writer)
                body = b""
            writer.write(body)
            await writer.drain()
            return
        _head(writer, 200, {"Content-Type": "text/event-stream"}, None)
        self._event(writer, model, {"role": "assistant", "content": ""})
        for word in self.words:
            self._event(writer, model, {"content": word})
        await writer.drain()
        if self.then is not None:
            await self.then(writer)
            return
        if self.finish is not None:
            self._event(writer, model, {}, self.finish)
        if self.done:
            _part(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    @staticmethod
    def _event(writer: asyncio.StreamWriter, model: str, delta: Any, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
        _part(writer, b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")


async def cut(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.02)  # what was said has to arrive before the reset does
    writer.transport.abort()


async def stall(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def nonsense(writer: asyncio.StreamWriter) -> None:
    _part(writer, b'data: {"choices": [{"delta\n\n')
    await writer.drain()


class Silence(Words):
    """It takes the call and never answers."""

    def __init__(self) -> None:
        super().__init__("too late", first_after=30)


class FaultyUpstream:
    """`plays` has a list of faults a model; the last one is played for ever. `calls` counts what came."""

    def __init__(self) -> None:
        self.url = ""
        self.plays: dict[str, Sequence[Fault]] = {}
        self.calls: dict[str, int] = {}
        self.bodies: list[Any] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
                )
                body = json.loads(await reader.readexactly(length))
                self.bodies.append(body)
                model = body["model"]
                number = self.calls[model] = self.calls.get(model, 0) + 1
                plays = self.plays[model]
                await plays[min(number, len(plays)) - 1].play(writer, model, bool(body.get("stream")))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def faulty() -> AsyncIterator[FaultyUpstream]:
    """Serve one on a free port."""
    upstream = FaultyUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()


def _head(writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], length: int | None) -> None:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"HTTP/1.1 {status} X\r\n{given}{framing}\r\n\r\n".encode())


def _part(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
