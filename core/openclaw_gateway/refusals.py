"""What a client is told when a request is not served: one value, rendered late into the one error body.

The body is an RFC 9457 problem document that also holds the `error` object which OpenAI's SDKs read; under
Anthropic's paths it is the object that theirs read. Nothing of the cause of a fault is ever in it; that is in the log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from uuid_utils import uuid7

from openclaw_gateway.config.units import Size

PROBLEM_JSON = b"application/problem+json"


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One refusal. `retry_after` is in seconds; `extra` joins the `error` object as it is."""

    status: int
    code: str
    type: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    extra: Mapping[str, Any] = {}

    def render(
        self, instance: str, request_id: str | None, surface: str = "own"
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Return headers and body; `instance` is the request's path without its query."""
        if surface == "anthropic":
            return self._headed(b"application/json", msgspec.json.encode(anthropic_error(self, request_id)))
        title = HTTPStatus(self.status).phrase
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "requestId": request_id,
            **self.extra,
        }
        body = msgspec.json.encode(
            {
                "type": f"urn:openclaw:error:{self.code.lower()}",
                "title": title,
                "status": self.status,
                "detail": self.message,
                "instance": instance,
                "error": error,
            }
        )
        return self._headed(PROBLEM_JSON, body)

    def _headed(self, media_type: bytes, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        headers = [
            (b"content-type", media_type),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *self.headers,
        ]
        if self.retry_after is not None:
            # RFC 9110 10.2.3 has whole seconds; the second header is what OpenAI's SDK reads first.
            seconds = max(1, math.ceil(self.retry_after))
            headers.append((b"retry-after", str(seconds).encode()))
            headers.append((b"retry-after-ms", str(max(1, math.ceil(self.retry_after * 1000))).encode()))
        return headers, body


def anthropic_error(refusal: Refusal, request_id: str | None) -> dict[str, Any]:
    """Return the error object of Anthropic's API; our own code and path are in it beside theirs."""
    error = {
        "type": _ANTHROPIC_TYPES.get(refusal.status, "api_error"),
        "message": refusal.message,
        "code": refusal.code,
        "param": refusal.param,
        **refusal.extra,
    }
    return {"type": "error", "error": error, "request_id": request_id}


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def bad_request(message: str, *, param: str | None = None, problems: Sequence[Mapping[str, str]] = ()) -> Refusal:
    """400: the request cannot be understood; `param` is the path of the first wrong value in the body."""
    extra = {"problems": list(problems)} if len(problems) > 1 else {}
    return Refusal(
        status=400, code="BAD_REQUEST", type="invalid_request_error", message=message, param=param, extra=extra
    )


def unauthorized(message: str) -> Refusal:
    """401, with the challenge that RFC 9110 asks for."""
    return Refusal(
        status=401,
        code="UNAUTHORIZED",
        type="authentication_error",
        message=message,
        headers=((b"www-authenticate", b'Bearer realm="openclaw"'),),
    )


def forbidden(message: str) -> Refusal:
    """403: the caller is known and may not."""
    return Refusal(status=403, code="FORBIDDEN", type="permission_error", message=message)


def not_found(message: str) -> Refusal:
    """404, for unknown routes and unknown ids alike."""
    return Refusal(status=404, code="NOT_FOUND", type="invalid_request_error", message=message)


def method_not_allowed(method: str, allow: Iterable[str]) -> Refusal:
    """405 with the `Allow` header. A WebSocket is opened by a GET: its route's own word is none of HTTP's."""
    names = {"GET" if name == "WEBSOCKET" else name for name in allow}
    return Refusal(
        status=405,
        code="METHOD_NOT_ALLOWED",
        type="invalid_request_error",
        message=f"{method[:20]} is not possible here",
        headers=((b"allow", ", ".join(sorted(names)).encode()),),
    )


def conflict(message: str, *, retry_after: float | None = None) -> Refusal:
    """409: the request contradicts the state of what it names."""
    return Refusal(status=409, code="CONFLICT", type="conflict", message=message, retry_after=retry_after)


def payload_too_large(limit: int) -> Refusal:
    """413: the body is longer than `limit` bytes."""
    return Refusal(
        status=413,
        code="PAYLOAD_TOO_LARGE",
        type="invalid_request_error",
        message=f"the request body is larger than {Size(limit)}",
    )


def unavailable(message: str, *, retry_after: float = 1.0) -> Refusal:
    """503: draining, overloaded, or a part that must answer does not."""
    return Refusal(
        status=503, code="SERVICE_UNAVAILABLE", type="server_error", message=message, retry_after=retry_after
    )


def internal_error() -> Refusal:
    """500 with a generic text; the cause is in the log under the same request id."""
    return Refusal(
        status=500,
        code="INTERNAL_SERVER_ERROR",
        type="server_error",
        message="the gateway failed to answer; the cause is in its log under this request id",
    )


def of_edge(status: int, message: str, retry_after: float | None = None) -> Refusal:
    """What the server itself refuses, before there is a route: 400, 405 (CONNECT), 408, 414, 431, 503."""
    code = {405: "METHOD_NOT_ALLOWED", 503: "SERVICE_UNAVAILABLE"}.get(status, "BAD_REQUEST")
    kind = "server_error" if status >= 500 else "invalid_request_error"
    # RFC 9110 15.5.6: a 405 names what is possible, and of what a CONNECT names that is nothing.
    allow = ((b"allow", b""),) if status == 405 else ()
    headers = (*allow, *_NOTHING_IN_A_BROWSER)
    return Refusal(status=status, code=code, type=kind, message=message, retry_after=retry_after, headers=headers)


def written(refusal: Refusal) -> bytes:
    """Return the whole answer to what never gets as far as a step, after which the connection is closed.

    It has an id of its own, for a client's report: no line of the log is about what was no request.
    """
    request_id = str(uuid7())
    headers, body = refusal.render("", request_id)
    headers += [(b"x-request-id", request_id.encode()), (b"connection", b"close")]
    lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n".encode()]
    return b"".join([*lines, *(name + b": " + value + b"\r\n" for name, value in headers), b"\r\n", body])


#: no step sees these answers, and a link can lead a browser to one
_NOTHING_IN_A_BROWSER = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
