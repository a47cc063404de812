"""The gateway's features for one route, built as one commonly builds them on Litestar: what its own way is worth.

`python conventional.py PORT UPSTREAM KEY` serves until it is ended. One middleware each for request ids, metrics, a
JSON log, tokens and rates in memory; a handler with a decoded body; aiohttp towards the upstream. Everything is what
the documentation of each library shows, and nothing of it is slowed down on purpose.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import NotAuthorizedException, TooManyRequestsException
from litestar.middleware import ASGIMiddleware
from litestar.response import Stream
from prometheus_client import Counter, Histogram, generate_latest

LIMIT, WINDOW = 1_000_000_000, 60.0
PORT, UPSTREAM, KEY = int(sys.argv[1]), sys.argv[2], sys.argv[3]

requests_total = Counter("requests_total", "Requests", ["method", "path", "status"])
seconds = Histogram("request_seconds", "Time", ["method", "path"])
logger = logging.getLogger("access")


class RequestIds(ASGIMiddleware):
    async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
        request_id = str(uuid.uuid4())
        scope["state"]["request_id"] = request_id

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        await next_app(scope, receive, tell)


class Watching(ASGIMiddleware):
    """Metrics and the access log."""

    async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
        begun = time.perf_counter()
        status = 0

        async def look(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await next_app(scope, receive, look)
        finally:
            took = time.perf_counter() - begun
            requests_total.labels(scope["method"], scope["path"], str(status)).inc()
            seconds.labels(scope["method"], scope["path"]).observe(took)
            line = {
                "request_id": scope["state"].get("request_id"),
                "user": scope["state"].get("user"),
                "path": scope["path"],
                "status": status,
                "ms": round(took * 1000, 3),
            }
            logger.info(json.dumps(line))


class Tokens(ASGIMiddleware):
    async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
        if scope["path"] != "/metrics":
            given = Request[Any, Any, Any](scope).headers.get("authorization", "")
            try:
                claims = jwt.decode(given.removeprefix("Bearer "), KEY, algorithms=["HS256"])
            except jwt.InvalidTokenError:
                raise NotAuthorizedException("the token is not valid") from None
            scope["state"]["user"] = claims["sub"]
        await next_app(scope, receive, send)


class Rates(ASGIMiddleware):
    def __init__(self) -> None:
        self.seen: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=10_000))

    async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
        now = time.monotonic()
        seen = self.seen[scope["state"].get("user", "")]
        while seen and seen[0] <= now - WINDOW:
            seen.popleft()
        if len(seen) >= LIMIT:
            raise TooManyRequestsException("slow down")
        seen.append(now)
        left = str(LIMIT - len(seen)).encode()

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-ratelimit-remaining", left))
            await send(message)

        await next_app(scope, receive, tell)


@asynccontextmanager
async def client(app: Litestar) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as app.state.client:
        yield


@post("/v1/chat/completions", status_code=200)
async def complete(data: dict[str, Any], request: Request[Any, Any, Any]) -> Response[Any] | Stream:
    session: aiohttp.ClientSession = request.app.state.client
    if not data.get("stream"):
        async with session.post(f"{UPSTREAM}/chat/completions", json=data) as answer:
            return Response(await answer.json(), status_code=answer.status)
    upstream = await session.post(f"{UPSTREAM}/chat/completions", json=data)

    async def chunks() -> AsyncIterator[bytes]:
        async with upstream:
            async for chunk in upstream.content.iter_any():
                yield chunk

    return Stream(chunks(), status_code=upstream.status, media_type="text/event-stream")


@get("/metrics", media_type="text/plain")
async def metrics() -> bytes:
    return generate_latest()


def main() -> None:
    logging.basicConfig(filename="/dev/null", level=logging.INFO, format="%(message)s")
    app = Litestar(
        [complete, metrics],
        middleware=[RequestIds(), Watching(), Tokens(), Rates()],
        lifespan=[client],
        openapi_config=None,
        logging_config=None,
    )
    uvicorn.run(
        app, host="127.0.0.1", port=PORT, loop="uvloop", http="httptools", access_log=False, log_config=None,
        server_header=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
