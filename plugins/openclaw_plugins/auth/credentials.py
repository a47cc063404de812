"""Where a request carries credentials, and how they are read from there; never what they prove."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from openclaw_gateway.api import Exchange

#: how API keys begin, and how a bearer token shows that it is one
KEY_PREFIX = b"ocg_"

_HEADERS = frozenset((b"authorization", b"x-api-key"))
#: query parameters of a WebSocket handshake, because a browser cannot set headers there
_PARAMETERS = ("token", "ticket")


def presented(scope: Any) -> Sequence[bytes]:
    """Return the credentials that a request carries, as they were sent, whatever they are worth."""
    given = [value for name, value in scope["headers"] if name in _HEADERS]
    if scope["type"] == "websocket" and scope.get("query_string"):
        given += [text.encode("utf-8", "replace") for name, text in _query(scope) if name in _PARAMETERS]
    return given


def bearer(x: Exchange) -> bytes | None:
    """Return the token of `Authorization: Bearer`, or None where there is no such header."""
    value = x.header(b"authorization")
    if value is None or value[:7].lower() != b"bearer ":
        return None
    return value[7:].strip(b" ")


def token_parameter(x: Exchange) -> bytes | None:
    """Return the `token` parameter of a WebSocket handshake."""
    scope = x.scope
    if scope["type"] != "websocket" or not scope.get("query_string"):
        return None
    for name, value in _query(scope):
        if name == "token":
            return value.encode("utf-8", "replace")
    return None


def _query(scope: Any) -> Sequence[tuple[str, str]]:
    try:
        return parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return ()
