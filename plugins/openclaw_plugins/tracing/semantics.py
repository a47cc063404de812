"""OpenTelemetry's names for what a span says (HTTP, stable; GenAI, in development), in one place to rename them."""

from __future__ import annotations

import re
from typing import Any

from openclaw_gateway.api import MODEL_USE, PRINCIPAL, REQUEST_ID, SESSION_ID, TIER, Exchange, ModelUse, Outcome

HTTP_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})

_ROUTE = "http.route"
_STATUS = "http.response.status_code"
_ERROR = "error.type"

# What a client may have put where it does not belong: a long run with a digit in it, or a very long one, is no word.
_OPAQUE = re.compile(r"(?=[A-Za-z0-9_+=~.-]*\d)[A-Za-z0-9_+=~.-]{16,}|[A-Za-z0-9_+=~.-]{33,}|[^/\s@]{1,64}@[^/\s]+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: characters that are shown, and that are looked at for it: a header of 64 KiB is no reason to hold up the loop
_LONGEST, _LOOKED_AT = 256, 1_024


def span_name(x: Exchange) -> str:
    """A method and a template: never the path, of which there are endlessly many."""
    if x.kind == "message":
        return f"message {x.route.route.path}"
    method = x.scope.get("method", "GET")
    known = method if method in HTTP_METHODS else "HTTP"
    return f"{known} {x.route.route.path}" if x.route.route.methods else known


def at_start(x: Exchange) -> dict[str, Any]:
    """What is known of the exchange when it begins; the query string, which may hold a ticket, stays out."""
    if x.kind == "message":
        return {_ROUTE: x.route.route.path, "network.protocol.name": "websocket"}
    scope = x.scope
    # A WebSocket's handshake is a GET.
    method = scope.get("method", "GET")
    said: dict[str, Any] = {
        "http.request.method": method if method in HTTP_METHODS else "_OTHER",
        "url.scheme": scope.get("scheme", "http"),
        "url.path": _readable(x.path),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method not in HTTP_METHODS:
        said["http.request.method_original"] = _readable(method)
    if x.route.route.methods:
        said[_ROUTE] = x.route.route.path
    if x.client:
        said["client.address"] = x.client
    if (server := scope.get("server")) is not None:
        said["server.address"], said["server.port"] = server[0], server[1] or 0
    if (agent := x.header(b"user-agent")) is not None:
        said["user_agent.original"] = _readable(agent.decode("latin-1"))
    return said


def at_end(x: Exchange, outcome: Outcome) -> dict[str, Any]:
    """What is known of the exchange when it has ended."""
    said: dict[str, Any] = {}
    if outcome.status:
        said[_STATUS] = outcome.status
    if (request_id := x.get(REQUEST_ID)) is not None:
        said["openclaw.request_id"] = request_id
    if (tier := x.get(TIER)) is not None:
        said["openclaw.tier"] = tier.name
    if (principal := x.get(PRINCIPAL)) is not None:
        said["openclaw.organization_id"] = principal.organization
    if (session := x.get(SESSION_ID)) is not None:
        said["gen_ai.conversation.id"] = _readable(session)
    if (use := x.get(MODEL_USE)) is not None:
        said.update(_of_turn(use))
    if outcome.refused_by is not None:
        said["openclaw.refused_by"] = outcome.refused_by
    if outcome.error_code is not None:
        said["openclaw.error_code"] = outcome.error_code
    if outcome.disconnected:
        said["openclaw.disconnected"] = True
    if failed(outcome):
        said[_ERROR] = type(outcome.error).__name__ if outcome.error is not None else str(outcome.status)
    return said


def _of_turn(use: ModelUse) -> dict[str, Any]:
    """What became of the turn as a whole, whichever calls it took; the spans of the calls are its children."""
    said: dict[str, Any] = {"gen_ai.request.model": use.asked, "gen_ai.request.stream": use.streamed}
    if use.upstream_model is not None:
        said["gen_ai.response.model"] = use.upstream_model
    if use.finish_reason is not None:
        said["gen_ai.response.finish_reasons"] = [_readable(use.finish_reason)]
    if use.prompt_tokens is not None:
        said["gen_ai.usage.input_tokens"] = use.prompt_tokens
    if use.completion_tokens is not None:
        said["gen_ai.usage.output_tokens"] = use.completion_tokens
    if use.attempts > 1:
        said["openclaw.model_attempts"] = use.attempts
    return said


def failed(outcome: Outcome) -> bool:
    """Whether we are at fault: what a client did wrong leaves the status of a server's span alone."""
    return outcome.status >= 500 or (outcome.error is not None and not 0 < outcome.status < 500)


def _readable(text: str) -> str:
    """Return what a client sent with nothing in it that could be a secret: ids of the shape that we give, and words."""
    shown = "/".join(part if _UUID.fullmatch(part) else _OPAQUE.sub("*", part) for part in text[:_LOOKED_AT].split("/"))
    return shown[:_LONGEST]
