"""Writes one line for each exchange and for whatever else the process has to say, in one form.

It never writes a body, a credential or a query string, and a slow or full disk never delays a request.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import (
    PRINCIPAL,
    REQUEST_ID,
    SESSION_ID,
    TRACE_ID,
    Exchange,
    Fact,
    Host,
    Outcome,
    PluginConfig,
    hookimpl,
)
from openclaw_plugins.access_log.hearing import Hearing
from openclaw_plugins.access_log.levels import FILE, LEVELS, Levels
from openclaw_plugins.access_log.lines import Ended, Form, HumanForm, JsonForm, Said
from openclaw_plugins.access_log.redaction import Redaction
from openclaw_plugins.access_log.sink import RotatedFile, Sink, StreamTarget, Target

__all__ = ["AccessLog"]

#: seconds between two looks for overrides
_WATCH = 0.5
_EVENTS = {"http": "request", "websocket": "websocket", "message": "message"}
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET", "MESSAGE"})
_current: ContextVar[Exchange | None] = ContextVar("openclaw_exchange", default=None)


class AccessLog:
    """One line an exchange, written by a thread; lines of other parts carry the ids of the exchange they fell in."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        format: Annotated[
            Literal["auto", "json", "human"],
            Meta(description="auto: human on a terminal, one JSON object a line anywhere else."),
        ] = "auto"
        level: Annotated[
            Literal["debug", "info", "warning", "error"],
            Meta(description="What is written; an exchange is an error from 500, a warning from 400, else info."),
        ] = "info"
        file: Annotated[
            str | None,
            Meta(
                description="File to write to instead of standard error, relative to openclaw.toml; rotated daily, "
                "14 kept."
            ),
        ] = None
        redact: Annotated[
            tuple[str, ...], Meta(description="More names of fields whose values are never written.")
        ] = ()

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._now = host.clock.now
        self._levels = Levels(LEVELS[config.level], host.data_dir / FILE, host.clock.now)
        dropped = host.metric(
            Counter, "log_lines_dropped_total", "Log lines lost to a full queue or to a target that fails"
        )
        self._sink = Sink(self._form(), self._target, dropped.inc, loss=self._told_of_loss)
        self._hearing = Hearing(_Handler(self._sink, self._levels), self._levels)
        self._predecessor: Hearing | None = None

    @hookimpl
    def inherit(self, previous: AccessLog) -> None:
        # Not the plugin: that would keep every gateway before this one.
        self._predecessor = previous._hearing

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._sink.start()
        watching = asyncio.create_task(self._watch())
        self._hearing.begin(self._predecessor)
        self._predecessor = None
        try:
            yield
        finally:
            self._hearing.end()
            watching.cancel()
            if not await asyncio.to_thread(self._sink.stop):
                self._host.logger.error("the log's target did not take its last lines in time")

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        _current.set(x)

    @hookimpl
    def on_message(self, x: Exchange) -> None:
        _current.set(x)

    @hookimpl
    def on_complete(self, x: Exchange, outcome: Outcome) -> None:
        status = outcome.status
        level = 40 if status >= 500 else 30 if status >= 400 else 20
        if level < self._levels.least or level < self._levels.of(x):
            return
        principal = x.get(PRINCIPAL)
        self._sink.put(
            Ended(
                self._now(),
                _EVENTS[x.kind],
                x.get(REQUEST_ID),
                x.get(TRACE_ID),
                principal.organization if principal is not None else None,
                principal.user if principal is not None else None,
                x.get(SESSION_ID),
                x.method if x.method in _METHODS else "_OTHER",
                x.route.route.path,
                x.path,
                status,
                outcome.seconds,
                outcome.bytes_sent,
                x.client,
                outcome.refused_by,
                outcome.error_code,
                outcome.disconnected,
                # The runner writes the cause of a 500 itself; that of a 502 to 504 would else be nowhere.
                outcome.error if status > 500 else None,
            )
        )

    def _told_of_loss(self, lines: int) -> Said:
        message = f"{lines} log line{'s were' if lines != 1 else ' was'} lost before this one"
        fields = {"event": "log_lost", "lines": lines}
        return Said(self._now(), logging.WARNING, self._host.logger.name, message, fields, {}, None)

    async def _watch(self) -> None:
        """Follow the overrides of an operator; a file that cannot be read changes nothing."""
        logger, failing = self._host.logger, False
        while True:
            try:
                # In a thread: a disk that does not answer must not hold up the loop.
                if await asyncio.to_thread(self._levels.refresh):
                    # Whoever reads a log has to see that it changed.
                    self._hearing.settle()
                    level = logging.getLevelName(self._levels.least).lower()
                    logger.warning(
                        "what is logged has changed", extra={"fields": {"event": "log_level", "least": level}}
                    )
                failing = False
            except (OSError, msgspec.DecodeError) as error:
                if not failing:
                    logger.warning("the overrides of log levels cannot be read", exc_info=error)
                failing = True
            await asyncio.sleep(_WATCH)

    def _form(self) -> Form:
        form = self._config.format
        if form == "auto":
            form = "human" if self._config.file is None and sys.stderr.isatty() else "json"
        redaction = Redaction(self._config.redact)
        return HumanForm(redaction) if form == "human" else JsonForm(redaction)

    def _target(self) -> Target:
        if self._config.file is None:
            return StreamTarget()
        return RotatedFile(self._host.config_dir / self._config.file, now=self._now)


class _Handler(logging.Handler):
    """Hands what is logged to the sink; formats nothing but the message, which may hold what changes later."""

    def __init__(self, sink: Sink, levels: Levels) -> None:
        super().__init__(logging.DEBUG)
        self._sink = sink
        self._levels = levels

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < self._levels.of(_current.get()):
            return
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - a wrong format string must not cost the line, nor the request
            message = f"{record.msg} (its arguments do not fit)"
        fields = getattr(record, "fields", None)
        x = _current.get()
        if x is not None and x.outcome.seconds:
            x = None  # a task that outlived the exchange which started it speaks for itself
        self._sink.put(
            Said(
                record.created,
                record.levelno,
                record.name,
                message,
                dict(fields) if isinstance(fields, dict) else {},
                _context(x) if x is not None else {},
                record.exc_info[1] if record.exc_info else None,
            )
        )


def _context(x: Exchange) -> dict[str, str | None]:
    principal = x.get(PRINCIPAL)
    return {
        "requestId": x.get(REQUEST_ID),
        "traceId": x.get(TRACE_ID),
        "organizationId": principal.organization if principal is not None else None,
        "sessionId": x.get(SESSION_ID),
    }
