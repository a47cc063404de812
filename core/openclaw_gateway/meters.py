"""The words for what is counted: meters, limits, charges, balances.

A *meter* is an event with an amount. A *limit* says how much of a meter one subject may use: a *rate*
(in a window of time), a *quota* (in a calendar period, or a session) or a *lease* (at the same time).
A *charge* is a limit bound to the account that counts it. A *balance* is where a limit stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from openclaw_gateway.contracts.capabilities import Accounts, Counters

LimitKind = Literal["rate", "quota", "lease"]
Scope = Literal["organization", "user", "api_key", "session", "client"]
Algorithm = Literal["sliding", "gcra", "fixed"]
Period = Literal["day", "month", "session"]
OnBackendFailure = Literal["closed", "open", "local"]
Mode = Literal["enforce", "shadow"]


#: the highest limit: the largest whole number of a structured header field (RFC 9651, 3.3.1), and exact everywhere
MOST = 10**15 - 1


class Meter(msgspec.Struct, frozen=True):
    """Something that routes and handlers emit.

    `required` meters must be limited in every tier, or be named in `gateway.unmetered`.
    `durable` leases live as long as a stored thing (a session), not as long as a connection.
    `estimated` amounts are charged before they are known, and settled when they are.
    """

    name: str
    description: str
    required: bool = True
    durable: bool = False
    estimated: bool = False


REQUESTS = Meter("requests", "one HTTP request")
MESSAGES = Meter("messages", "one turn that a client sends: a completion, a socket message, a posted message")
SESSIONS = Meter("sessions", "one session, from its creation to its end", durable=True)
SKILLS = Meter("skills", "one run of a skill", required=False)
TOKENS = Meter("tokens", "one token of a prompt or of an answer", required=False, estimated=True)
WS_CONNECTIONS = Meter("ws_connections", "one open WebSocket")
WS_MESSAGES = Meter("ws_messages", "one WebSocket message from a client")

BUILT_IN = {m.name: m for m in (REQUESTS, MESSAGES, SESSIONS, SKILLS, TOKENS, WS_CONNECTIONS, WS_MESSAGES)}


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of one tier, typed. `name` is `<plugin id>.<table>`; `window` is in seconds, for rates.

    `tier` is the tier that sets it, for the account to remember; usage belongs to the name alone.
    """

    name: str
    meter: str
    kind: LimitKind
    limit: int
    scope: Scope = "organization"
    window: float = 60.0
    period: Period = "month"
    algorithm: Algorithm = "sliding"
    burst: int | None = None
    on_backend_failure: OnBackendFailure = "closed"
    mode: Mode = "enforce"
    warn_at: float = 0.8
    tier: str = ""

    def bound(self) -> int:
        """Most that can be admitted in any interval as long as the window.

        `sliding` counts the current bucket and the 60 before it, so an interval of one window never
        holds more than the limit. `gcra` with a burst of B admits at most limit + B (B is a tenth of
        the limit unless set). `fixed` admits the limit at the end of one window and again at the
        start of the next.
        """
        if self.kind != "rate" or self.algorithm == "sliding":
            return self.limit
        if self.algorithm == "gcra":
            return self.limit + self.effective_burst()
        return 2 * self.limit

    def capacity(self) -> int:
        """What `used` is counted up to: for `gcra` the level of its burst bucket, else the limit."""
        return min(self.effective_burst(), self.limit) if self.algorithm == "gcra" else self.limit

    def effective_burst(self) -> int:
        """How many calls `gcra` admits at one instant: what is set, else a tenth of the limit."""
        return self.burst if self.burst is not None else max(1, self.limit // 10)


class Charge(msgspec.Struct, frozen=True):
    """A limit and the account that counts it, contributed by a plugin for one route and tier."""

    limit: Limit
    account: Counters | Accounts


class Take(msgspec.Struct, frozen=True):
    """What one admission asks of one limit. `lease` names the holder where the limit is a lease.

    Where it is a quota, `lease` is the reference under which the charge can be found again, if there is one.
    """

    limit: Limit
    subject: str
    amount: int = 1
    lease: str | None = None


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """What a rate was charged too much (`amount` below 0) or too little, at the moment `at` of the account's clock.

    `degraded` as in the balance of that charge: whoever counted it then corrects it.
    """

    limit: Limit
    subject: str
    amount: int
    at: int
    degraded: bool = False


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """Where a limit stands for a subject after an admission (or a look). Times are in seconds.

    `reset_after` is the time until the whole limit is free again; `retry_after`, for a refusal, the
    time until the same request can be admitted. `degraded` says that the account could not be asked
    and its failure policy decided. `at` is when a rate was charged, in milliseconds of the account's own
    clock; 0 where nothing was.
    """

    limit: Limit
    used: int
    refused: bool = False
    reset_after: float | None = None
    retry_after: float | None = None
    degraded: bool = False
    at: int = 0

    @property
    def remaining(self) -> int:
        return max(0, self.limit.capacity() - self.used)

    @property
    def warning(self) -> bool:
        return self.limit.kind == "quota" and self.used >= self.limit.warn_at * self.limit.limit

    def report(self, now: float) -> dict[str, Any]:
        """The fields by which a client is told of a limit, in errors and in `/usage`."""
        from datetime import UTC, datetime

        resets = None
        if self.reset_after is not None:
            # rounded, for the end of a month is not a second before it
            stamp = datetime.fromtimestamp(round(now + self.reset_after), UTC)
            resets = stamp.isoformat(timespec="seconds").replace("+00:00", "Z")
        return {
            "name": self.limit.name,
            "kind": self.limit.kind,
            "scope": self.limit.scope,
            "used": self.used,
            "limit": self.limit.limit,
            "remaining": self.remaining,
            "resetsAt": resets,
        }
