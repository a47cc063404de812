"""Says what a client may know of an upstream's failure: never a host, a key or a driver's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from openclaw_gateway.api import UpstreamFailed, UpstreamReason

_LONGEST = 500
#: a URL, an address or a dotted host with a port: what could name a machine behind the gateway
_LOCATION = re.compile(
    r"://|\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9a-f:]*:[0-9a-f:]*\]|\b[\w.-]+:\d{2,5}\b"
    r"|\blocalhost\b|\.(?:internal|local|svc|lan|corp)\b",
    re.IGNORECASE,
)
#: how upstreams say that a prompt is longer than the model's window, in codes and in words
_TOO_LONG = re.compile(
    r"context_length|context.size|context.window|maximum context|prompt is too long|input is too long|too many tokens",
    re.IGNORECASE,
)
#: how upstreams say that a filter refused the content
_FILTERED = re.compile(r"content.?filter|content.?policy|content.?management|responsibleai|moderation", re.IGNORECASE)
#: how one says with a 400 that our account there is empty
_UNPAID = re.compile(r"credit balance|billing", re.IGNORECASE)
#: the client's own request was at fault, as far as the upstream can tell
_CLIENT_FAULTS = frozenset({400, 404, 413, 422})


class _Error(msgspec.Struct):
    message: str
    param: Any = None
    code: Any = None
    type: Any = None


class _Envelope(msgspec.Struct):
    error: _Error


_decode = msgspec.json.Decoder(_Envelope).decode


def timed_out(what: str) -> UpstreamFailed:
    """504, naming the time that ran out."""
    return UpstreamFailed(
        f"the model did not answer in time ({what})", status=504, code="UPSTREAM_TIMEOUT", reason="silent"
    )


def broken(what: str, reason: UpstreamReason = "broken", *, retry_after: float | None = None) -> UpstreamFailed:
    """502, in our own words."""
    return UpstreamFailed(f"the model's upstream failed: {what}", reason=reason, retry_after=retry_after)


def refused(status: int, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> UpstreamFailed:
    """Translate an answer with an error status.

    A fault of the request (its length, its content) stays the client's 400, in the upstream's words where
    these are safe. An upstream that refuses *us* (401, 403, 429) is our operator's matter and a 502; what it
    says about when to come back is kept.
    """
    if status in _CLIENT_FAULTS:
        error = _error_of(body)
        if error is not None and _UNPAID.search(error.message):
            return broken("it does not accept the gateway's account", "credential")
        reason = _reason(error) if error is not None else "request"
        if error is not None and safe(error.message, secrets):
            param = error.param if isinstance(error.param, str) and safe(error.param, secrets) else None
            return _bad_request(error.message, param, reason)
        if status != 404:
            return _bad_request(_WORDS[reason], None, reason)
        return broken("it does not know what was asked of it")
    if status in (408, 504):
        return timed_out("upstream")
    if status == 429:
        return UpstreamFailed(
            "the model's upstream is over its own limit", retry_after=retry_after(headers), reason="rate_limited"
        )
    if status in (401, 403):
        return broken("it does not accept the gateway's credential", "credential")
    if 300 <= status < 400:
        return broken("it redirects, which is not followed")
    return UpstreamFailed(f"the model's upstream failed: status {status}", retry_after=retry_after(headers))


def reported(error: Any, secrets: tuple[str, ...]) -> UpstreamFailed:
    """Translate an error that an upstream reports inside a stream that began with a good status."""
    try:
        found = msgspec.convert(error, _Error)
    except msgspec.ValidationError:
        return broken("it reported an error within its stream")
    reason = _reason(found)
    if reason != "request":
        return _bad_request(found.message if safe(found.message, secrets) else _WORDS[reason], None, reason)
    if "rate_limit" in f"{found.code} {found.type}":
        return broken("it reported that it is over its own limit", "rate_limited")
    return broken("it reported an error within its stream", "failed")


def safe(text: str, secrets: tuple[str, ...]) -> bool:
    """Whether a text from an upstream may reach a client."""
    return (
        0 < len(text) <= _LONGEST
        and text.isprintable()
        and _LOCATION.search(text) is None
        and not any(secret and secret.lower() in text.lower() for secret in secrets)
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds only, of headers by lower-case name: the form with a date depends on the upstream's clock."""
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(seconds, 3600.0) if seconds >= 0 else None


_WORDS: Mapping[str, str] = {
    "request": "the model's upstream did not accept the request",
    "too_long": "the prompt is too long for the model",
    "filtered": "the model's upstream refused the content",
}


def _reason(error: _Error) -> Literal["request", "too_long", "filtered"]:
    said = f"{error.code} {error.type} {error.message}"
    if _TOO_LONG.search(said):
        return "too_long"
    return "filtered" if _FILTERED.search(said) else "request"


def _bad_request(message: str, param: str | None, reason: UpstreamReason) -> UpstreamFailed:
    return UpstreamFailed(
        message, status=400, code="BAD_REQUEST", type="invalid_request_error", param=param, reason=reason
    )


def _error_of(body: bytes) -> _Error | None:
    try:
        return _decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
