"""The exception tree. Expected refusals are values (`refusals.Refusal`); these classes are for faults.

    GatewayError
    ├── ConfigError        the operator's files are wrong; carries every problem
    ├── Refused            carries a Refusal out of a handler that cannot return one
    ├── StoreUnavailable   a store did not answer in time, or is not reachable
    │   └── StoreBusy      the store is well, but its bounded pool has no free place
    ├── UpstreamFailed     a model or service behind us failed; carries what the client may know
    └── StartFailed        a plugin's lifespan could not be entered

A driver's own exception never leaves the plugin that owns the driver: it becomes one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from openclaw_gateway.config.problems import Problem
    from openclaw_gateway.refusals import Refusal


class GatewayError(Exception):
    """Every exception that this project raises on purpose."""


class ConfigError(GatewayError):
    """The configuration cannot be served; `problems` holds all that was found, not the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Refused(GatewayError):
    """Leaves a handler with a refusal for the client; rendered like any other refusal."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(refusal.message)


class StoreUnavailable(GatewayError):
    """A store (database, Redis) failed or timed out. Clients see 503 with `Retry-After`."""

    def __init__(self, store: str, reason: str) -> None:
        self.store = store
        super().__init__(f"{store}: {reason}")


class StoreBusy(StoreUnavailable):
    """The pool in front of a healthy store is exhausted: back-pressure, not an outage."""


#: failed: it said so; broken: its answer ended or made no sense; silent: a time ran out; busy: no place for one more
#: call; resting: it failed too often of late; the last three are refusals of the request itself
UpstreamReason = Literal[
    "failed",
    "broken",
    "unreachable",
    "silent",
    "rate_limited",
    "credential",
    "busy",
    "resting",
    "request",
    "too_long",
    "filtered",
]


class UpstreamFailed(GatewayError):
    """An upstream refused, failed or timed out.

    `status` is what our client gets; an upstream's own 401 or 403 is never passed on as ours. `reason` is what
    decides whether it is asked again, or another one in its place.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str = "UPSTREAM_ERROR",
        type: str = "server_error",
        param: str | None = None,
        retry_after: float | None = None,
        reason: UpstreamReason = "failed",
    ) -> None:
        self.reason: UpstreamReason = reason
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.retry_after = retry_after
        super().__init__(message)


class StartFailed(GatewayError):
    """A plugin could not open what it needs; the gateway unwinds and does not serve."""
