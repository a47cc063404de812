"""What the socket alone refuses, as values: the frames and codes are the same for every client."""

from __future__ import annotations

from openclaw_gateway.api import Refusal, bad_request, unavailable

RESUMED = bad_request("a connection can be resumed once", param="type")
UNREPLAYABLE = Refusal(
    status=410,
    code="RESUME_UNAVAILABLE",
    type="invalid_request_error",
    message="the events after lastSeq are not all kept any more; read the session's history",
    param="lastSeq",
)
LOST = Refusal(
    status=410,
    code="RESUME_UNAVAILABLE",
    type="invalid_request_error",
    message="events of the session were lost on their way; read the session's history",
)
LEAVING = unavailable("the gateway is shutting down; connect again", retry_after=1.0)
CANCELLED = Refusal(
    status=409, code="CANCELLED", type="conflict", message="the turn was cancelled before anything was said"
)
