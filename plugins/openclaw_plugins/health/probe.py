"""Runs one health check: at most once at a time, in a bounded time, with its result remembered for a moment."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from openclaw_gateway.api import HealthCheck, StoreUnavailable


class CheckResult(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """How one part is."""

    status: Literal["healthy", "unhealthy"]
    message: str | None = None
    duration_ms: float
    facts: dict[str, Any] = {}


class Unwell(Exception):
    """A part is not well; the text is ours and may be shown."""


class Probe:
    """Runs one check at most once at a time, and remembers its result for a moment.

    `well` is the verdict that does not flap: it turns after `fall` failures in a row, and back after `rise` successes.
    The first look decides by itself.
    """

    __slots__ = (
        "_against",
        "_expires",
        "_fall",
        "_last",
        "_logger",
        "_rise",
        "_running",
        "_timeout",
        "_ttl",
        "check",
        "task",
        "well",
    )

    def __init__(
        self, check: HealthCheck, *, timeout: float, ttl: float, fall: int, rise: int, logger: logging.Logger
    ) -> None:
        self.check = check
        self.well: bool | None = None
        self._fall = fall
        self._rise = rise
        #: results in a row that speak against the verdict
        self._against = 0
        self.task: asyncio.Task[CheckResult] | None = None
        self._running: asyncio.Future[Any] | None = None
        self._logger = logger
        self._timeout = timeout
        self._ttl = ttl
        self._last: CheckResult | None = None
        self._expires = 0.0

    async def result(self) -> CheckResult:
        if self._last is not None and asyncio.get_running_loop().time() < self._expires:
            return self._last
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._look())
        # The client that asked first may leave; the others still wait for the same look.
        return await asyncio.shield(self.task)

    async def _look(self) -> CheckResult:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(_called(self.check))
            self._running.add_done_callback(_noted)
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=self._timeout)
        message, facts, cause = None, {}, None
        if done:
            self._running = None
            try:
                facts = _facts(running.result())
            except asyncio.CancelledError:
                message = "cancelled"
            except Exception as error:  # noqa: BLE001 - whatever a plugin's check raises, it is the answer
                message, cause = _shown(error), error
        else:
            # Not waited for, and not begun anew while it hangs: that would pile up.
            running.cancel()
            message = f"no answer within {self._timeout:g} s"
        result = CheckResult(
            status="healthy" if message is None else "unhealthy",
            message=message,
            duration_ms=round((loop.time() - began) * 1000, 3),
            facts=facts,
        )
        self._tell_of_change(result, cause)
        self._settle(result.status == "healthy")
        self._last, self._expires = result, loop.time() + self._ttl
        return result

    def _settle(self, healthy: bool) -> None:
        if self.well is None:
            self.well = healthy
        self._against = 0 if healthy is self.well else self._against + 1
        if self._against >= (self._rise if healthy else self._fall):
            self.well, self._against = healthy, 0

    def _tell_of_change(self, result: CheckResult, cause: BaseException | None) -> None:
        before = self._last.status if self._last is not None else "healthy"
        fields = {"check": self.check.name, "gate": self.check.gate}
        if result.status == "unhealthy" and before == "healthy":
            text = "the check %s fails: %s"
            self._logger.warning(
                text, self.check.name, result.message, exc_info=cause, extra={"fields": {"event": "health", **fields}}
            )
        elif result.status == "healthy" and before == "unhealthy":
            text = "the check %s is well again"
            self._logger.info(text, self.check.name, extra={"fields": {"event": "health", **fields}})


async def _called(check: HealthCheck) -> Any:
    answer: Any = check.probe()
    if not inspect.isawaitable(answer):
        raise Unwell(f"its probe returned {type(answer).__name__}, and must return an awaitable")
    return await answer


def _facts(answer: Any) -> dict[str, Any]:
    """Return what a probe tells, as it will be shown. Raises Unwell where it cannot be."""
    if not isinstance(answer, Mapping):
        raise Unwell(f"its probe returned {type(answer).__name__}, and must return a mapping of facts")
    try:
        facts: dict[str, Any] = msgspec.to_builtins(dict(answer), str_keys=True)
    except (TypeError, ValueError) as error:
        raise Unwell("its probe returned facts that are no JSON") from error
    return facts


def _noted(ended: asyncio.Future[Any]) -> None:
    # Read here, since a look that has timed out reads it no more and asyncio would complain.
    if not ended.cancelled():
        ended.exception()


def _shown(error: BaseException) -> str:
    """Say what is wrong in our own words: a driver's text may hold an address or a password."""
    if isinstance(error, Unwell):
        return str(error)
    if isinstance(error, StoreUnavailable):
        return f"the {error.store} does not answer"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return type(error).__name__
