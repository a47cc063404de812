"""The mock upstream: a bare asyncio.Protocol that gives one fixed answer, whole or in pieces.

`python upstream.py PORT` serves until it is ended. A model whose name ends in `-paced` sends 20 pieces, one each 20 ms;
in `-brisk` 100, one each 5 ms; any other 20 at once. It reads nothing of a request but its length, the flag `stream`
and that name.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec

CHUNKS = 20


class Pace(msgspec.Struct, frozen=True):
    """How a stream comes: so many pieces, one each so many seconds."""

    chunks: int
    seconds: float


#: by the end of a model's name
PACES = {"paced": Pace(CHUNKS, 0.02), "brisk": Pace(100, 0.005)}
PACE = PACES["paced"].seconds
_SAID = "A gateway routes, limits and accounts for calls of models; it never thinks for them."


def answer() -> bytes:
    """The whole answer, in OpenAI's shape."""
    return msgspec.json.encode(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 1_800_000_000,
            "model": "mock",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _SAID},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 24, "completion_tokens": 18, "total_tokens": 42},
        }
    )


def pieces(count: int = CHUNKS) -> list[bytes]:
    """The same as a stream: the content in pieces, then the marker."""
    shown = []
    for number in range(count):
        delta = {"role": "assistant", "content": "word "} if number == 0 else {"content": "word "}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == count - 1 else None}
        head = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1_800_000_000, "model": "mock"}
        shown.append(b"data: " + msgspec.json.encode({**head, "choices": [choice]}) + b"\n\n")
    return [*shown, b"data: [DONE]\n\n"]


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_BODY = answer()
_WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
_OPEN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"
_STREAM = _OPEN + b"".join(_chunked(piece) for piece in pieces()) + _END
#: how a model's name ends in a request → its pieces, and the seconds between two
_PACED = {
    f'-{name}"'.encode(): ([_chunked(piece) for piece in pieces(pace.chunks)], pace.seconds)
    for name, pace in PACES.items()
}


class Upstream(asyncio.Protocol):
    """One connection of a client."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            whole = end + 4 + length
            if len(self._data) < whole:
                return
            body, self._data = self._data[end + 4 : whole], self._data[whole:]
            self._answer(body.replace(b" ", b""))

    def _answer(self, body: bytes) -> None:
        if b'"stream":true' not in body:
            self._transport.write(_WHOLE)
            return
        for end, (pieces, seconds) in _PACED.items():
            if end in body:
                self._transport.write(_OPEN + pieces[0])
                self._loop.call_later(seconds, self._next, pieces, seconds, 1)
                return
        self._transport.write(_STREAM)

    def _next(self, pieces: list[bytes], seconds: float, number: int) -> None:
        if self._transport.is_closing():
            return
        if number < len(pieces) - 1:
            self._transport.write(pieces[number])
            self._loop.call_later(seconds, self._next, pieces, seconds, number + 1)
        else:
            self._transport.write(pieces[number] + _END)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
