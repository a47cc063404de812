"""What the gateway stands on, without the gateway: a raw ASGI echo and a bare Litestar route, on the same server.

`python bare.py raw|litestar|websockets PORT PROCESSES` serves until it is ended. All read the whole body and send
it back; the last is a WebSocket server of the library whose framing the gateway uses, with its defaults but for
compression.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn


async def _echo(receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """The floor of any ASGI application."""
    await _echo(receive, send)


def litestar() -> Any:
    """The floor of any application on Litestar: one handler of the kind that costs least."""
    from litestar import Litestar, asgi
    from litestar.types import Receive, Scope, Send

    @asgi("/v1/chat/completions", copy_scope=False)
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await _echo(receive, send)

    return Litestar([echo], openapi_config=None)


def websockets(port: int) -> None:
    """The floor of any WebSocket server in Python that keeps to the protocol."""
    import asyncio

    import uvloop
    from websockets.asyncio.server import ServerConnection, serve

    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async def run() -> None:
        async with serve(echo, "127.0.0.1", port, compression=None) as server:
            await server.serve_forever()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def main() -> None:
    if sys.argv[1] == "websockets":
        websockets(int(sys.argv[2]))
        return
    app: Any = "bare:raw" if sys.argv[1] == "raw" else litestar()
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools", lifespan="off",
        access_log=False, log_level="warning", server_header=False, workers=int(sys.argv[3]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
