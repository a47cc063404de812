"""Writes the AsyncAPI 3 document of the socket from the Structs by which its frames are read and written.

It describes no frame by hand: what has no Struct is not in the document.
"""

from __future__ import annotations

from typing import Any

import msgspec

from openclaw_plugins.realtime.frames import EVENTS, INBOUND, OUTBOUND, encode, tag

_REF = "#/components/schemas/{name}"
_CHANNEL = "#/channels/socket"
_SEQ = {"type": "integer", "minimum": 1, "description": "The event's place in the order of the session."}


def document(version: str, query: dict[str, str]) -> dict[str, Any]:
    """Return the document; `query` describes the parameters of the handshake."""
    shapes = (*INBOUND, *OUTBOUND)
    _, components = msgspec.json.schema_components(list(shapes), ref_template=_REF)
    schemas: dict[str, Any] = dict(components)
    for shape in EVENTS:
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
                "bindings": {"ws": {"method": "GET", "query": _query(query), "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "fromClient": _operation("receive", "What a client says.", INBOUND),
            "toClient": _operation("send", "What the gateway says.", OUTBOUND),
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
    example = shape.example()
    written = msgspec.json.decode(encode(example))
    if shape in EVENTS:
        written["seq"] = 1764_000_000_000_001
    return {
        "name": tag(example),
        "title": tag(example),
        "summary": shape.__doc__,
        "contentType": "application/json",
        "payload": {"$ref": _REF.format(name=shape.__name__)},
        "examples": [{"payload": written}],
    }


def _query(described: dict[str, str]) -> dict[str, Any]:
    properties = {name: {"type": "string", "description": text} for name, text in described.items()}
    return {"type": "object", "properties": properties, "required": ["sessionId"]}


def _security() -> dict[str, Any]:
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT or an API key."},
        "apiKey": {"type": "httpApiKey", "in": "header", "name": "X-API-Key"},
        "ticket": {"type": "httpApiKey", "in": "query", "name": "ticket"},
        "token": {"type": "httpApiKey", "in": "query", "name": "token", "description": "A JWT, never an API key."},
    }
