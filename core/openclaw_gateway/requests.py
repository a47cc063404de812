"""What an ordinary Litestar handler asks of its request, each through the decoding gate; and the plain JSON answer."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from litestar import Request, Response

from openclaw_gateway.decoding import decode, read_body, refuse_doubled, storable
from openclaw_gateway.errors import Refused
from openclaw_gateway.exchange import Exchange
from openclaw_gateway.refusals import bad_request

T = TypeVar("T")


def exchange_of(request: Request[Any, Any, Any]) -> Exchange:
    """Return the exchange that the runner has put on the request."""
    scope: Any = request.scope
    x: Exchange = scope["exchange"]
    return x


async def body_of(
    request: Request[Any, Any, Any], type: type[T], limit: int, *, empty: bytes = b"", unique: bool = False
) -> T:
    """Read and decode the body; `empty` stands for a missing one. Raises Refused (400, 413), Disconnected.

    `unique` is for bodies that grant something: a key that stands twice in one is refused.
    """
    body = await read_body(request.receive, limit, request.scope["headers"]) or empty
    value = decode(body, type)
    if unique:
        refuse_doubled(body)
    return value


def query_of(request: Request[Any, Any, Any], *names: str) -> dict[str, str]:
    """Return the query parameters that the route knows. Raises Refused for an unknown or repeated one."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise Refused(bad_request(f"unknown query parameter, expected: {', '.join(names)}", param=name))
        if name in query:
            raise Refused(bad_request(f"{name}: given more than once", param=name))
        query[name] = storable(value, name)
    return query


def page_limit(query: dict[str, str], default: int, most: int) -> int:
    """Read `limit`, how many items a page holds. Raises Refused where it is no whole number from 1 to `most`."""
    text = query.get("limit")
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most:
        return int(text)
    raise Refused(bad_request(f"limit: expected a whole number from 1 to {most}", param="limit"))


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """Return a value as JSON."""
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json", headers=headers)
