"""The two forms of a log line, JSON and human, built from raw records in the writer's thread.

Nothing leaves here that redaction has not seen.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from openclaw_plugins.access_log.redaction import MASK, Redaction

_MILLISECONDS = tuple(f".{number:03}Z" for number in range(1000))
_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}


class Ended(msgspec.Struct, frozen=True, gc=False):
    """An exchange that has ended, as the loop hands it over: raw, so that the loop spends no time on it."""

    time: float
    event: str
    request_id: str | None
    trace_id: str | None
    organization: str | None
    user: str | None
    session: str | None
    method: str
    route: str
    path: str
    status: int
    seconds: float
    bytes_sent: int
    client: str
    refused_by: str | None
    error_code: str | None
    disconnected: bool
    error: BaseException | None


class Said(msgspec.Struct, frozen=True):
    """A line that some part of the process logged, with the exchange in which it did."""

    time: float
    level: int
    logger: str
    message: str
    fields: Mapping[str, Any]
    context: Mapping[str, str | None]
    error: BaseException | None


class Line(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """One exchange in production form; docs/reference/logs.md describes each field.

    What every line has gets a default that it never is, so that a line is made by position: by name it costs more
    than all the rest of it.
    """

    timestamp: str = ""
    level: str = ""
    event: str = ""
    request_id: str | None = None
    trace_id: str | None = None
    organization_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    method: str = ""
    route: str = ""
    path: str = ""
    status: int = -1
    duration_ms: float = -1.0
    bytes: int = -1
    client: str = ""
    refused_by: str | None = None
    error_code: str | None = None
    disconnected: bool = False
    exception: str | None = None


class Form(Protocol):
    """How records become lines."""

    def __call__(self, record: Ended | Said, /) -> bytes: ...


class JsonForm:
    """One JSON object a line."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._encoder = msgspec.json.Encoder()

    def __call__(self, record: Ended | Said) -> bytes:
        line = _line(record, self._redaction) if isinstance(record, Ended) else said(record, self._redaction)
        return self._encoder.encode(line) + b"\n"


class HumanForm:
    """One line for a person's eyes; the causes of an error follow it, indented."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def __call__(self, record: Ended | Said) -> bytes:
        text = self._ended(record) if isinstance(record, Ended) else self._said(record)
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def _ended(self, record: Ended) -> str:
        line = _line(record, self._redaction)
        parts = [
            f"{line.timestamp[11:23]} {line.level.upper():<7} {line.method} {line.path}",
            str(line.status) if line.status else "-",
            f"{line.duration_ms:.1f} ms",
            f"{line.bytes} B",
        ]
        named = {
            "org": line.organization_id,
            "user": line.user_id,
            "session": line.session_id,
            "refused-by": line.refused_by,
            "error": line.error_code,
            "client": line.client,
            "id": line.request_id,
        }
        parts += [f"{name}={value}" for name, value in named.items() if value]
        if line.disconnected:
            parts.append("disconnected")
        return "  ".join(parts) + _indented(line.exception)

    def _said(self, record: Said) -> str:
        line = said(record, self._redaction)
        shown = {k: v for k, v in line.items() if k not in _CORE and v is not None}
        text = f"{line['timestamp'][11:23]} {line['level'].upper():<7} {line['logger']}: {line['message']}"
        if shown:
            text += "  " + " ".join(f"{k}={_short(v)}" for k, v in shown.items())
        return text + _indented(line.get("exception"))


_CORE = frozenset({"timestamp", "level", "event", "logger", "message", "exception"})


def said(record: Said, redaction: Redaction) -> dict[str, Any]:
    """Build the object for a line that was logged; a field never takes the place of one of ours."""
    fields = redaction.value(dict(record.fields))
    line: dict[str, Any] = {
        "timestamp": _stamp(record.time),
        "level": _LEVELS.get(record.level, "info"),
        "event": str(fields.pop("event", "log")),
        "logger": record.logger,
        "message": redaction.text(record.message),
    }
    line.update((name, redaction.identity(value)) for name, value in record.context.items() if value is not None)
    for name, value in fields.items():
        line[f"field_{name}" if name in _CORE else name] = value
    if record.error is not None:
        line["exception"] = redaction.text(_whole(record.error), multiline=True)
    return line


def _line(record: Ended, redaction: Redaction) -> Line:
    status = record.status
    identity = redaction.identity
    return Line(
        _stamp(record.time),
        "error" if status >= 500 else "warning" if status >= 400 else "info",
        record.event,
        # Their steps take no text that could be a secret, or break a line.
        record.request_id,
        record.trace_id,
        identity(record.organization) if record.organization is not None else None,
        identity(record.user) if record.user is not None else None,
        redaction.path(record.session) if record.session is not None else None,
        record.method,
        record.route,
        # Where the template has no parameter the path is the template and holds nothing of the client's.
        record.path if record.path == record.route else redaction.path(record.path),
        status,
        int(record.seconds * 1_000_000 + 0.5) / 1000,  # to the microsecond; `round` costs several times as much
        record.bytes_sent,
        identity(record.client) if record.client else "",
        record.refused_by,
        identity(record.error_code) if record.error_code is not None else None,
        record.disconnected,
        redaction.text(_whole(record.error), multiline=True) if record.error is not None else None,
    )


def _whole(error: BaseException) -> str:
    """Write an exception with all its causes; the locals of its frames never."""
    try:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format()).rstrip()
    except Exception:  # noqa: BLE001 - an exception that cannot be shown must not cost the line
        return f"{type(error).__name__} {MASK}"


def _indented(exception: str | None) -> str:
    return "".join(f"\n    {line}" for line in exception.split("\n")) if exception is not None else ""


def _stamp(seconds: float) -> str:
    whole = int(seconds)
    return _second(whole) + _MILLISECONDS[int((seconds - whole) * 1000)]


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """Nearly all lines of a second ask for the same."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _short(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else msgspec.json.encode(value).decode()
