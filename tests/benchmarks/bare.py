"""What the gateway stands on, without the gateway: a raw ASGI echo and a bare Litestar route, on the same server.

`python bare.py raw|litestar PORT` serves until it is ended. Both read the whole body and send it back.
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


def main() -> None:
    app = raw if sys.argv[1] == "raw" else litestar()
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[2]), loop="uvloop", http="httptools", lifespan="off",
        access_log=False, log_level="warning", server_header=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
