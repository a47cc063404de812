"""Writes the AsyncAPI 3 document of the socket from the Structs by which its frames are read and written.

It describes no frame by hand: what has no Struct is not in the document.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from openclaw_plugins.realtime.frames import (
    Cancel,
    Failed,
    GoingAway,
    Inbound,
    Outbound,
    Piece,
    Ping,
    Pong,
    QuotaWarning,
    Resume,
    Said,
    SendMessage,
    Skill,
    encode,
    tag,
)

#: the parameters of the query of `/ws`
HANDSHAKE = {
    "sessionId": "The session.",
    "lastSeq": "Send what came after this event first; like the frame `resume`.",
    "ticket": "A ticket from `POST /api/v1/ws-tickets`, where no header can be set.",
    "token": "A JWT, where no header can be set; never an API key.",
}
_REF = "#/components/schemas/{name}"
_CHANNEL = "#/channels/socket"
#: frames that may be events of the session, and then have a place in its order
_EVENTS = (Said, Piece, Skill, Failed)
_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
_EXAMPLES: tuple[Inbound | Outbound, ...] = (
    SendMessage(content="Good morning", id="m1", stream=True),
    Cancel(ref="m1"),
    Resume(last_seq=1_764_000_000_000_001),
    Ping(),
    Said(
        message_id=_ID,
        session_id=_ID,
        role="assistant",
        content="Good morning",
        timestamp="2026-01-01T00:00:00.000000Z",
        metadata={"model": "echo"},
        ref="m1",
    ),
    Piece(ref="m1", chunk="Good", done=False),
    Skill(ref="m1", name="search", execution_id=_ID, state="started"),
    Failed(code="RATE_LIMIT_EXCEEDED", message="too many messages", retryable=True, ref="m1", retry_after=1.5),
    QuotaWarning(limit={"name": "quota.messages", "limit": 10_000, "used": 9_000}),
    GoingAway(message="the gateway is shutting down", retry_after=2.5),
    Pong(),
)
_SEQ = {"type": "integer", "minimum": 1, "description": "The event's place in the order of the session."}


def document(version: str) -> dict[str, Any]:
    """Return the document."""
    inbound, outbound = get_args(Inbound), get_args(Outbound)
    shapes = (*inbound, *outbound)
    _, components = msgspec.json.schema_components(list(shapes), ref_template=_REF)
    schemas: dict[str, Any] = dict(components)
    for shape in _EVENTS:
        schema = schemas[shape.__name__] = {**schemas[shape.__name__]}
        schema["properties"] = {**schema["properties"], "seq": _SEQ}
    names = {shape.__name__: shape for shape in shapes}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "OpenClaw Gateway: the socket",
            "version": version,
            "description": "A session over a WebSocket: frames are text, each one JSON object with a `type`.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {
                "host": "{host}",
                "protocol": "wss",
                "variables": {"host": {"default": "127.0.0.1:9090", "description": "Where the gateway is."}},
                "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _security()],
            }
        },
        "channels": {
            "socket": {
                "address": "/ws",
                "title": "One session",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
                "bindings": {"ws": {"method": "GET", "query": _query(), "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "fromClient": _operation("receive", "What a client says.", inbound),
            "toClient": _operation("send", "What the gateway says.", outbound),
        },
        "components": {
            "messages": {name: _message(shape) for name, shape in names.items()},
            "schemas": schemas,
            "securitySchemes": _security(),
        },
    }


def _operation(action: str, summary: str, shapes: tuple[Any, ...]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": _CHANNEL},
        "summary": summary,
        "messages": [{"$ref": f"{_CHANNEL}/messages/{shape.__name__}"} for shape in shapes],
    }


def _message(shape: Any) -> dict[str, Any]:
    example = next(example for example in _EXAMPLES if type(example) is shape)
    written = msgspec.json.decode(encode(example))
    if shape in _EVENTS:
        written["seq"] = 1_764_000_000_000_001
    return {
        "name": tag(example),
        "title": tag(example),
        "summary": shape.__doc__,
        "contentType": "application/json",
        "payload": {"$ref": _REF.format(name=shape.__name__)},
        "examples": [{"payload": written}],
    }


def _query() -> dict[str, Any]:
    properties = {name: {"type": "string", "description": text} for name, text in HANDSHAKE.items()}
    return {"type": "object", "properties": properties, "required": ["sessionId"]}


def _security() -> dict[str, Any]:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT or an API key."},
        "apiKey": {"type": "httpApiKey", "in": "header", "name": "X-API-Key"},
        "ticket": {"type": "httpApiKey", "in": "query", "name": "ticket"},
        "token": {"type": "httpApiKey", "in": "query", "name": "token", "description": "A JWT, never an API key."},
    }
