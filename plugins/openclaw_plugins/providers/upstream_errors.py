"""Says what a client may know of an upstream's failure: never a host, a key or a driver's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from openclaw_gateway.api import UpstreamFailed

_LONGEST = 500
#: a URL, an address or a dotted host with a port: what could name a machine behind the gateway
_LOCATION = re.compile(
    r"://|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-f:]*:[0-9a-f:]*\]|\b[\w.-]+:\d{2,5}\b"
    r"|\blocalhost\b|\.(?:internal|local|svc|lan|corp)\b",
    re.IGNORECASE,
)
#: the client's own request was at fault, as far as the upstream can tell
_CLIENT_FAULTS = frozenset({400, 404, 413, 422})


class _Error(msgspec.Struct):
    message: str
    param: Any = None


class _Envelope(msgspec.Struct):
    error: _Error


_decode = msgspec.json.Decoder(_Envelope).decode


def timed_out(what: str) -> UpstreamFailed:
    """504, naming the time that ran out."""
    return UpstreamFailed(f"the model did not answer in time ({what})", status=504, code="UPSTREAM_TIMEOUT")


def broken(what: str) -> UpstreamFailed:
    """502, in our own words."""
    return UpstreamFailed(f"the model's upstream failed: {what}")


def refused(status: int, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> UpstreamFailed:
    """Translate an answer with an error status.

    A fault of the request (its length, its content) stays the client's 400, in the upstream's words where
    these are safe. An upstream that refuses *us* (401, 403, 429) is our operator's matter and a 502; what it
    says about when to come back is kept.
    """
    if status in _CLIENT_FAULTS:
        error = _error_of(body)
        if error is not None and safe(error.message, secrets):
            param = error.param if isinstance(error.param, str) and safe(error.param, secrets) else None
            return _bad_request(error.message, param)
        if status != 404:
            return _bad_request("the model's upstream did not accept the request", None)
        return broken("it does not know what was asked of it")
    if status in (408, 504):
        return timed_out("upstream")
    if status == 429:
        return UpstreamFailed("the model's upstream is over its own limit", retry_after=_retry_after(headers))
    if status in (401, 403):
        return broken("it does not accept the gateway's credential")
    if 300 <= status < 400:
        return broken("it redirects, which is not followed")
    return UpstreamFailed(f"the model's upstream failed: status {status}", retry_after=_retry_after(headers))


def safe(text: str, secrets: tuple[str, ...]) -> bool:
    """Whether a text from an upstream may reach a client."""
    return (
        0 < len(text) <= _LONGEST
        and text.isprintable()
        and _LOCATION.search(text) is None
        and not any(secret and secret.lower() in text.lower() for secret in secrets)
    )


def _bad_request(message: str, param: str | None) -> UpstreamFailed:
    return UpstreamFailed(message, status=400, code="BAD_REQUEST", type="invalid_request_error", param=param)


def _error_of(body: bytes) -> _Error | None:
    try:
        return _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds only: the form with a date depends on the upstream's clock."""
    text = headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, 3600.0) if seconds >= 0 else None
