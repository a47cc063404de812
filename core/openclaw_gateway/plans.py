"""The limits of one route and tier, grouped by the account that counts them: made at boot, read at each admission.

It says what is asked of whom, and asks nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from uuid_utils import uuid7

from openclaw_gateway.contracts.capabilities import Accounts, Counters
from openclaw_gateway.facts import SESSION_ID
from openclaw_gateway.meters import Charge, Limit, Take

if TYPE_CHECKING:
    from openclaw_gateway.exchange import Exchange
    from openclaw_gateway.facts import Principal


class Plan:
    """The limits of one route and tier, grouped by account; made at boot."""

    __slots__ = ("by_session", "durable", "fast", "limits")

    def __init__(self, charges: Iterable[Charge]) -> None:
        charges = tuple(charges)
        self.limits = tuple(charge.limit for charge in charges)
        fast: dict[int, tuple[Counters, list[Limit]]] = {}
        durable: dict[int, tuple[Accounts, list[Limit]]] = {}
        for charge in charges:
            account = charge.account
            if isinstance(account, Counters):
                fast.setdefault(id(account), (account, []))[1].append(charge.limit)
            else:
                durable.setdefault(id(account), (account, []))[1].append(charge.limit)
        self.fast = tuple((account, Takes(limits)) for account, limits in fast.values())
        self.durable = tuple((account, Takes(limits)) for account, limits in durable.values())
        #: the limits that wait for the session that a request names; None where there are none
        waiting = [charge for charge in charges if counts_sessions(charge.limit)]
        self.by_session = None if not waiting else self if len(waiting) == len(charges) else Plan(waiting)


class Takes:
    """The takes of one account: built once where every subject is the organisation, else for each exchange."""

    __slots__ = ("_limits", "_static")

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = tuple(limits)
        plain = all(limit.scope == "organization" and limit.kind != "lease" for limit in limits)
        plain = plain and not any(map(counts_sessions, limits))
        self._static = tuple(Take(limit, "-") for limit in limits) if plain else None

    def of(self, x: Exchange, principal: Principal, session: str | None, amount: int) -> Sequence[Take]:
        if self._static is not None and amount == 1:
            return self._static
        takes = []
        for limit in self._limits:
            subject = _subject(limit, x, principal, session)
            if subject is not None:
                lease = uuid7().hex if limit.kind == "lease" else None
                takes.append(Take(limit, subject, amount, lease))
        return takes


def counts_sessions(limit: Limit) -> bool:
    """Whether each session has its own share of a limit."""
    return limit.scope == "session" or (limit.kind == "quota" and limit.period == "session")


def _subject(limit: Limit, x: Exchange, principal: Principal, session: str | None) -> str | None:
    """Name who a limit counts; None where the exchange does not say, so that the limit does not apply."""
    if counts_sessions(limit):
        return session if session is not None else x.get(SESSION_ID)
    if limit.scope == "organization":
        return "-"
    if limit.scope == "user":
        return principal.user
    if limit.scope == "api_key":
        return principal.credential if principal.method == "api_key" else None
    return x.client or None
