"""What travels through the lane of the durable account: reservations, and what becomes of holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal

from openclaw_gateway.api import Balance, Hold, Take
from openclaw_plugins.accounts.periods import period_of

#: organisation, subject, limit name, period
Key = tuple[str, str, str, str]
Resolution = Literal["committed", "voided"]


class Work:
    """Something on its way through the lane, and who waits for it."""

    __slots__ = ("abandoned", "done")
    #: what it is called in a trace
    verb = "work"

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.abandoned = False

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Reservation(Work):
    """A wish to hold; `balances` and `holds` are the answer."""

    verb = "reserve"

    __slots__ = ("_day", "_keys", "balances", "holds", "organization", "takes")

    def __init__(self, organization: str, takes: Sequence[Take]) -> None:
        super().__init__()
        self.organization = organization
        self.takes = takes
        self.balances: Sequence[Balance] = ()
        self.holds: Sequence[Hold] = ()
        self._day: date | None = None
        self._keys: list[Key] = []

    def keys(self, now: datetime) -> list[Key]:
        """Return the rows of its takes, which are the same for a day."""
        day = now.date()
        if day != self._day:
            self._day = day
            self._keys = [key_of(self.organization, take, now) for take in self.takes]
        return self._keys


class Settlement(Work):
    """Holds to be committed or voided; `bound`, with work that is stored in the same transaction."""

    verb = "settle"

    __slots__ = ("_keys", "bound", "holder", "holds", "how", "lives_until")

    def __init__(
        self,
        holds: Sequence[Hold],
        how: Resolution,
        lives_until: datetime | None,
        holder: str | None,
        *,
        bound: bool,
    ) -> None:
        super().__init__()
        self.bound = bound
        self.holds = holds
        self.how: Resolution = how
        self.lives_until = lives_until
        self.holder = holder
        self._keys: list[Key] = [
            (hold.organization, hold.take.subject, hold.take.limit.name, hold.period) for hold in holds
        ]

    def keys(self, _: datetime) -> list[Key]:
        """Return the rows of its holds."""
        return self._keys


def key_of(organization: str, take: Take, now: datetime) -> Key:
    return organization, take.subject, take.limit.name, period_of(take.limit, now)
