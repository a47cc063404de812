"""What a client may know of a fault, and what of it stands in the log."""

from __future__ import annotations

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException

from openclaw_gateway.decoding import Disconnected
from openclaw_gateway.errors import Refused, StoreUnavailable, UpstreamFailed
from openclaw_gateway.exchange import Exchange
from openclaw_gateway.facts import REQUEST_ID
from openclaw_gateway.refusals import Refusal, bad_request, internal_error, not_found, unavailable

logger = logging.getLogger("openclaw.response")


def refusal_of(error: BaseException) -> Refusal:
    """Say what a client may know of an exception."""
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, Disconnected):
        return bad_request("the request was not whole")
    if isinstance(error, StoreUnavailable):
        return unavailable(f"the {error.store} does not answer; try again shortly")
    if isinstance(error, UpstreamFailed):
        return Refusal(
            status=error.status,
            code=error.code,
            type=error.type,
            message=str(error),
            param=error.param,
            retry_after=error.retry_after,
        )
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return not_found("no such route")
        if 400 <= error.status_code < 500:
            param, message = _first_problem(error)
            return bad_request(message, param=param)
    return internal_error()


def render_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Turn what a handler raised into the one error body; called by Litestar before a response has started."""
    scope: Any = request.scope
    x: Exchange = scope["exchange"]
    if isinstance(error, Disconnected):
        x.outcome.disconnected = True  # nobody is there to read what we answer
    refusal = noted(x, refusal_of(error))
    if refusal.status >= 500:
        x.outcome.error = error
        if refusal.status == 500:
            log_fault(x, error)
    headers, body = refusal.render(x.path, x.get(REQUEST_ID), x.route.route.surface)
    given = {name.decode(): value.decode() for name, value in headers if name != b"content-length"}
    return Response(body, status_code=refusal.status, headers=given, media_type=given.pop("content-type"))


def log_fault(x: Exchange, error: BaseException) -> None:
    """Write the cause of a 500, under the request id that the client was given."""
    fields = {"requestId": x.get(REQUEST_ID), "route": x.route.route.path, "method": x.method}
    logger.error("request failed", exc_info=error, extra={"fields": fields})


def noted(x: Exchange, refusal: Refusal) -> Refusal:
    x.refusal = refusal
    x.outcome.error_code = refusal.code
    return refusal


def _first_problem(error: HTTPException) -> tuple[str | None, str]:
    """Read Litestar's validation error of a query or path parameter, without the value that it quotes."""
    extra: Any = error.extra
    if isinstance(extra, list) and extra and isinstance(extra[0], dict):
        key = extra[0].get("key")
        if key:
            return str(key), f"{key}: not a valid value"
    return None, "the request cannot be understood"
