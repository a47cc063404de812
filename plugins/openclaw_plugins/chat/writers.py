"""Write the answer of a turn to its connection, and tell the turn when nobody is there to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import msgspec
from litestar.types import Receive, Send

from openclaw_gateway.api import REQUEST_ID, Exchange, Refusal, Refused, piecewise, send_whole
from openclaw_plugins.chat.turns import Turn

_JSON = [(b"content-type", b"application/json")]
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A proxy that collects, or compresses in lumps, would undo the stream.
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class _Problem(msgspec.Struct):
    error: msgspec.Raw


class Form(Protocol):
    """The shape in which a stream is told."""

    keep_alive: bytes

    def frames(self, chunks: Sequence[bytes]) -> bytes:
        """Return the events of these chunks."""
        ...

    def end(self) -> bytes:
        """Return what ends a whole answer."""
        ...

    def error(self, path: str, request_id: str | None, refusal: Refusal) -> bytes:
        """Return what ends a failed one."""
        ...


class ChunkEvents:
    """OpenAI's form: each chunk an event, and a marker at the end."""

    keep_alive = b": keep-alive\n\n"

    def frames(self, chunks: Sequence[bytes]) -> bytes:
        return b"data: " + b"\n\ndata: ".join(chunks) + b"\n\n"

    def end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def error(self, path: str, request_id: str | None, refusal: Refusal) -> bytes:
        """The error object of the one error body, as an event of its own."""
        _, body = refusal.render(path, request_id)
        return b'data: {"error":' + bytes(msgspec.json.decode(body, type=_Problem).error) + b"}\n\n"


async def write_whole(
    x: Exchange, turn: Turn, receive: Receive, send: Send, *, told: Callable[[bytes], bytes] | None = None
) -> None:
    """Run a turn and answer with one JSON body, as `told` tells it. Raises Refused where the turn failed."""
    if not x.when_left(turn.leave):
        turn.start()
        async with _Watched(x, turn, receive):
            await turn.ended()
    else:  # as `_Watched`, without what that costs where a request is one short wait
        try:
            if turn.stands_alone:
                await x.carried.in_step()
                await turn.run()
                await x.carried.in_step()
            else:
                turn.start()
                try:
                    await turn.ended()
                except BaseException:
                    turn.stop("shutdown")
                    await turn.ended()
                    raise
        finally:
            x.when_left(None)
    if turn.stopped in ("disconnected", "slow_reader"):
        x.outcome.disconnected = True
        return
    if turn.failure is not None:
        raise Refused(turn.failure)
    await write_json(turn.body if told is None else told(turn.body), send)


def write_json(body: bytes, send: Send) -> Awaitable[None]:
    """Answer 200 with a JSON body."""
    headers = [*_JSON, (b"content-length", str(len(body)).encode())]
    return send_whole(send, 200, headers, body)


async def write_stream(
    x: Exchange, turn: Turn, receive: Receive, send: Send, *, form: Form, keep_alive: float, stall: float
) -> None:
    """Run a turn and answer with an event stream. Raises Refused where it failed before there was anything to send.

    The status waits for the first content, but no longer than one keep-alive: a client behind a proxy has to see
    something by then.
    """
    piece, frames = piecewise(send), form.frames

    def pass_on(chunks: Sequence[bytes]) -> bool:
        return piece(frames(chunks))

    turn.start()
    async with _Watched(x, turn, receive):
        patience = _Patience(stall)
        chunks = await turn.outlet.chunks(keep_alive)
        if chunks is None and turn.failure is not None:
            raise Refused(turn.failure)
        try:
            if turn.stopped not in ("disconnected", "slow_reader"):
                headers: Any = list(_EVENT_STREAM)
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            while chunks is not None:
                patience.begin()
                data = form.frames(chunks) if chunks else turn.outlet.noted() or form.keep_alive
                await send(_body(data, more=True))
                patience.end()
                chunks = await turn.outlet.chunks(keep_alive, pass_on)
        except asyncio.CancelledError:
            if not patience.over():
                raise
            turn.stop("slow_reader")
            await turn.ended()
        finally:
            patience.close()
    if turn.stopped in ("disconnected", "slow_reader"):
        x.outcome.disconnected = True
        return
    if turn.failure is None:
        last = form.end()  # what ends so is kept and paid for: the turn is committed
    else:
        x.outcome.error_code = turn.failure.code
        last = form.error(x.path, x.get(REQUEST_ID), turn.failure)
    try:
        async with asyncio.timeout(stall):
            await send(_body(last, more=False))
    except TimeoutError:
        x.outcome.disconnected = True


class _Patience:
    """Cancels its task when one send takes longer than `stall`; looks a few times in that time, not at every send."""

    __slots__ = ("_expired", "_handle", "_loop", "_since", "_stall", "_task")

    def __init__(self, stall: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._stall = stall
        self._since = 0.0
        self._expired = False
        self._handle = self._loop.call_later(stall / 4, self._look)

    def begin(self) -> None:
        self._since = self._loop.time()

    def end(self) -> None:
        self._since = 0.0

    def over(self) -> bool:
        """Whether the cancellation was ours, which is thereby taken back."""
        if self._expired and self._task is not None:
            self._task.uncancel()
        return self._expired

    def close(self) -> None:
        self._handle.cancel()

    def _look(self) -> None:
        if self._since and self._loop.time() - self._since >= self._stall and self._task is not None:
            self._expired = True
            self._task.cancel()
        else:
            self._handle = self._loop.call_later(self._stall / 4, self._look)


class _Watched:
    """Stops the turn when the client leaves; on leaving itself, waits until the turn has accounted for itself."""

    __slots__ = ("_receive", "_turn", "_watcher", "_x")

    def __init__(self, x: Exchange, turn: Turn, receive: Receive) -> None:
        self._x = x
        self._turn = turn
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        turn = self._turn
        if not self._x.when_left(turn.leave):
            self._watcher = asyncio.create_task(_gone(self._receive))
            self._watcher.add_done_callback(lambda task: None if task.cancelled() else turn.leave())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        else:
            self._x.when_left(None)
        if not self._turn.finished:
            self._turn.stop("shutdown" if isinstance(error, asyncio.CancelledError) else "disconnected")
            await self._turn.ended()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(data: bytes, *, more: bool) -> Any:
    return {"type": "http.response.body", "body": data, "more_body": more}
