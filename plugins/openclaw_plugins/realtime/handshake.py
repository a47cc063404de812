"""What a handshake says, and how it is refused: before the socket is accepted, by an HTTP answer."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from openclaw_gateway.api import REQUEST_ID, Exchange, Refusal, Refused, bad_request, forbidden

_NO_SESSION = bad_request("sessionId: the query must name the session", param="sessionId")
_LAST_SEQ = bad_request("lastSeq: expected a whole number", param="lastSeq")
_ORIGIN = forbidden("this origin is not among those that are allowed")


def check_origin(x: Exchange, allowed: frozenset[str]) -> None:
    """Raise Refused for a page of an origin that is not among `allowed`; no browser, no origin, no objection."""
    origin = x.header(b"origin")
    if not (origin is None or "*" in allowed or origin.decode("latin-1").lower() in allowed):
        raise Refused(_ORIGIN)


def asked_for(x: Exchange) -> tuple[str, int | None]:
    """Return the session that the query names, and the seq to resume from. Raises Refused."""
    try:
        query = parse_qs(x.scope["query_string"].decode("latin-1"), max_num_fields=100)
    except ValueError:
        query = {}
    named = query.get("sessionId", [])
    if len(named) != 1:
        raise Refused(_NO_SESSION)
    if (given := query.get("lastSeq")) is None:
        return named[0], None
    if len(given[0]) > 19 or not given[0].isascii() or not given[0].isdigit():
        raise Refused(_LAST_SEQ)
    return named[0], int(given[0])


async def deny(x: Exchange, send: Any, refusal: Refusal) -> None:
    """Refuse the handshake with an HTTP answer, or where the server cannot give one, with a bare refusal."""
    x.refusal = refusal
    x.outcome.error_code = refusal.code
    if "websocket.http.response" not in (x.scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    headers, body = refusal.render(x.path, x.get(REQUEST_ID))
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
