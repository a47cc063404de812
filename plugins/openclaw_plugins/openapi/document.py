"""Writes the OpenAPI 3.1 document from the declarations of routes and the Structs that they name.

It knows no route by name: what a route does not declare is not in the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{([^}:]+)(?::[^}]*)?\}")
_SURFACES = {
    "own": ("Gateway", "The gateway's own resources."),
    "openai": ("OpenAI", "Compatible with OpenAI's API."),
    "anthropic": ("Anthropic", "Compatible with Anthropic's API."),
    "operations": ("Operations", "For operators; without a credential, never limited."),
    "websocket": ("WebSocket", "Conversations over a WebSocket."),
    "docs": ("Documentation", "This document."),
}
_LIMITED = ("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


class ErrorDetail(msgspec.Struct, kw_only=True):
    """What the SDKs of model APIs read. A refusal by a limit also names the limit and where it stands."""

    code: Annotated[str, Meta(examples=["RATE_LIMIT_EXCEEDED"])]
    message: str
    type: Annotated[str, Meta(examples=["rate_limit_error"])]
    param: Annotated[str | None, Meta(description="Path of the first wrong value in the body.")]
    timestamp: Annotated[str, Meta(description="ISO 8601, UTC.")]
    request_id: Annotated[str | None, Meta(description="As in the header x-request-id.")] = msgspec.field(
        name="requestId"
    )


class Problem(msgspec.Struct, kw_only=True):
    """The one body of every error: an RFC 9457 problem with an `error` object."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: ErrorDetail


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """Return the document of these routes.

    Of a route that is served under `/api/v1` and the alias `/v1`, the first is documented and names the other.
    """
    served = list(routes)
    paths = {route.path for route in served}
    shown = [route for route in served if not (route.path.startswith("/v1/") and f"/api{route.path}" in paths)]
    schemas, components = _schemas(shown)
    written: dict[str, dict[str, Any]] = {}
    for route in sorted(shown, key=lambda r: (list(_SURFACES).index(r.surface), r.path)):
        alias = route.path.removeprefix("/api")
        operation = _operation(route, schemas, alias if alias != route.path and alias in paths else None)
        for method in route.methods:
            if method == "HEAD" and "GET" in route.methods:
                continue  # said once, in the text of GET
            verb = "get" if method == "WEBSOCKET" else method.lower()
            own = {**operation, "operationId": _operation_id(verb, route.path)}
            written.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[verb] = own
    used = {route.surface for route in shown}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "OpenClaw Gateway",
            "version": version,
            "description": "A gateway in front of AI models and agents: who may call, how much, and what it cost.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": text} for key, (tag, text) in _SURFACES.items() if key in used],
        "paths": written,
        "components": {
            "schemas": components,
            "headers": _headers(),
            "responses": {"Error": _error("An error.", schemas)},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A JWT or an API key."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(route: Route, schemas: Mapping[int, Any], alias: str | None) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary or route.path,
        "tags": [_SURFACES[route.surface][0]],
        "parameters": _parameters(route, schemas),
        "responses": _responses(route, schemas),
        "security": _security(route),
    }
    notes = ["HEAD too."] if {"GET", "HEAD"} <= set(route.methods) else []
    if alias is not None:
        notes.append(f"Also at `{alias}`.")
    if route.scopes:
        notes.append("Needs the scopes " + ", ".join(f"`{scope}`" for scope in route.scopes) + ".")
    if route.tiers:
        notes.append("For the tiers " + ", ".join(f"`{tier}`" for tier in route.tiers) + ".")
    if route.meters:
        notes.append("Counts " + ", ".join(f"`{meter.name}`" for meter in route.meters) + ".")
    if route.message_meters:
        counted = ", ".join(f"`{meter.name}`" for meter in route.message_meters)
        notes.append(f"Each message counts {counted}.")
    if notes:
        operation["description"] = " ".join(notes)
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[id(route.body)]}},
        }
    return operation


def _parameters(route: Route, schemas: Mapping[int, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    for name, type in route.query.items():
        if isinstance(type, str):
            found.append({"name": name, "in": "query", "description": type, "schema": {"type": "string"}})
            continue
        schema = dict(schemas[id(type)])
        parameter: dict[str, Any] = {"name": name, "in": "query", "schema": schema}
        if "description" in schema:
            parameter["description"] = schema.pop("description")
        found.append(parameter)
    return found


def _responses(route: Route, schemas: Mapping[int, Any]) -> dict[str, Any]:
    status = 101 if route.methods == ("WEBSOCKET",) else route.status
    good: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
    }
    if route.meters:
        good["headers"].update({name: {"$ref": f"#/components/headers/{name}"} for name in _LIMITED})
    if route.answer is not None:
        good["content"] = {"application/json": {"schema": schemas[id(route.answer)]}}
        if _streams(route.body):
            good["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    statuses = set(route.errors)
    if route.access != "public":
        statuses.add(401)
    if route.access == "authenticated" or route.scopes or route.tiers:
        statuses.add(403)
    if route.meters:
        statuses.add(429)
    responses = {str(status): good}
    for code in sorted(statuses):
        error = _error(HTTPStatus(code).phrase, schemas)
        if route.surface == "anthropic":
            error["content"]["application/json"] = {"schema": _ANTHROPIC_ERROR}
        if code in (429, 503):
            error["headers"]["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
        responses[str(code)] = error
    responses["default"] = {"$ref": "#/components/responses/Error"}
    return responses


#: what the clients of that surface read; the edge and an unmatched path still answer with the gateway's own body
_ANTHROPIC_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": ["string", "null"]},
    },
}


def _error(description: str, schemas: Mapping[int, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
        "content": {"application/problem+json": {"schema": schemas[id(Problem)]}},
    }


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.access == "public":
        return []
    ways: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
    return ways if route.access == "authenticated" else [{}, *ways]


def _headers() -> dict[str, Any]:
    def header(description: str, type: str = "string") -> dict[str, Any]:
        return {"description": description, "schema": {"type": type}}

    return {
        "x-request-id": header("The request's id, as in the gateway's log."),
        "Retry-After": header("Whole seconds after which to try again.", "integer"),
        "RateLimit": header("Where the limits stand (IETF draft)."),
        "RateLimit-Policy": header("What the limits are (IETF draft)."),
        "X-RateLimit-Limit": header("The limit that is nearest to its end.", "integer"),
        "X-RateLimit-Remaining": header("What is left of it.", "integer"),
        "X-RateLimit-Reset": header("Whole seconds until it is free again.", "integer"),
    }


def _schemas(routes: Iterable[Route]) -> tuple[dict[int, Any], dict[str, Any]]:
    """Return a schema for each type, by the id of the type as it was declared, and the named schemas."""
    types: list[Any] = [Problem]
    given: dict[int, Any] = {}
    for route in routes:
        for declared in (route.body, route.answer, *route.query.values()):
            if isinstance(declared, dict):
                given[id(declared)] = declared  # a schema already
            elif declared is not None and not isinstance(declared, str):
                types.append(declared)
    written, components = msgspec.json.schema_components(types, ref_template=_REF)
    return {**given, **{id(type): schema for type, schema in zip(types, written, strict=True)}}, dict(components)


def _streams(body: Any) -> bool:
    fields = getattr(body, "__struct_encode_fields__", ())
    return "stream" in fields


def _operation_id(verb: str, path: str) -> str:
    return "_".join([verb, *re.findall(r"[A-Za-z0-9]+", path)])
