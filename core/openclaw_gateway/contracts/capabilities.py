"""The Protocols by which plugins serve one another; the only way in which they meet.

A config field that names another plugin carries one of these (`needs(Counters)`), and the loader
checks that the named plugin satisfies it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import msgspec

from openclaw_gateway.meters import Balance, Correction, Take

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from openclaw_gateway.exchange import Exchange
    from openclaw_gateway.facts import Principal
    from openclaw_gateway.refusals import Refusal


T = TypeVar("T")

# --- accounts -----------------------------------------------------------------------------------


@runtime_checkable
class Counters(Protocol):
    """The fast account: rates, and leases that live as long as a connection.

    One call decides all takes. A rate that refuses means that nothing is charged; a lease that
    refuses means that the rates stay charged (they count attempts) and no lease is taken.
    """

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        """Decide and charge in one step; balances come in the order of the takes.

        Never raises for a store that fails: each limit's `on_backend_failure` decides instead.
        """
        ...

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        """Say where the limits stand, charging nothing. Raises StoreUnavailable."""
        ...

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        """Make rates that were charged by estimate what they should have been. Raises StoreUnavailable.

        What is given back leaves the window as if it had never been charged, and never more than that: where the
        charge has left the window already, nothing is given back. What was charged too little is counted now, and
        refuses nobody but those who come later.
        """
        ...

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        """Give leases back. Idempotent; a failure is left to the lease's expiry."""
        ...

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        """Prolong leases by one TTL; False where one has already expired (its holder must stop)."""
        ...

    @property
    def shared(self) -> bool:
        """Whether all replicas count in the same place; False refuses more than one worker."""
        ...

    @property
    def lease_ttl(self) -> float:
        """Seconds after which a lease that nobody renews is free."""
        ...


class Hold(msgspec.Struct, frozen=True):
    """A reservation in the durable account: what was held, for whom, until it is resolved.

    `charge` is what its commit charges, where that is not the amount that was held.
    """

    id: str
    take: Take
    organization: str
    period: str
    charge: int | None = None


@runtime_checkable
class Accounts(Protocol):
    """The durable account: quotas, and leases that live as long as a stored thing.

    Reserve, then commit with the work that the charge is for, or void; what is neither expires.
    All or nothing over the takes of one call.
    """

    async def reserve(self, organization: str, takes: Sequence[Take]) -> tuple[Sequence[Balance], Sequence[Hold]]:
        """Hold the amounts; no hold is returned where any enforced limit refuses.

        Raises StoreUnavailable, StoreBusy.
        """
        ...

    async def commit(
        self,
        holds: Sequence[Hold],
        *,
        transaction: AsyncConnection | None = None,
        lives_until: datetime | None = None,
        holder: str | None = None,
    ) -> None:
        """Turn holds into usage, inside `transaction` where the work is stored there.

        There it raises Refused (409) for a hold that was given back or charged before: somebody else has the work
        then, and the transaction must not store it a second time. By itself it passes over such a hold.
        `lives_until` and `holder` are for durable leases: the hold then stands until that time, or until
        `release` of that holder.
        """
        ...

    async def void(self, holds: Sequence[Hold]) -> None:
        """Give holds back as if they had never been. Idempotent."""
        ...

    async def release(
        self, organization: str, meter: str, holder: str, *, transaction: AsyncConnection | None = None
    ) -> None:
        """End the durable lease of `holder` (a session id). Idempotent."""
        ...

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        """Say where the limits stand, charging nothing. Raises StoreUnavailable."""
        ...


# --- who a caller is ----------------------------------------------------------------------------


@runtime_checkable
class Authenticator(Protocol):
    """Recognises one kind of credential."""

    async def authenticate(self, x: Exchange) -> Principal | Refusal | None:
        """Return who the credential proves, a refusal where it is bad, None where there is none of this kind.

        Raises StoreUnavailable where the answer cannot be known: the client gets 503, never 401.
        """
        ...


@runtime_checkable
class Revocations(Protocol):
    """Knows which credentials have ended before their time."""

    async def ended(self, principals: Collection[Principal]) -> Collection[Principal]:
        """Return those whose credential is revoked, expired or gone. Raises StoreUnavailable."""
        ...


# --- database -----------------------------------------------------------------------------------


@runtime_checkable
class Database(Protocol):
    """A pool of connections to the SQL store."""

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes may use it at once."""
        ...

    def transaction(
        self, organization: str | None, *, operation: str, table: str
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction in which only the rows of `organization` are seen.

        None is for work that belongs to no tenant (look-up of a key, sweepers, the ledger).
        `operation` and `table` are labels of the query metrics. Driver errors become
        StoreUnavailable (503 for the client), an exhausted pool StoreBusy.
        """
        ...

    async def run(
        self, work: Callable[[Connection], T], *, operation: str, table: str, organization: str | None = None
    ) -> T:
        """Do synchronous work in a transaction of its own, where the store is; it sees what `transaction` would.

        On SQLite it is one switch of thread, where a transaction of statements takes several for each. It runs to
        its end once it has begun. Raises as `transaction` does.
        """
        ...

    async def statement(
        self, text: str, parameters: Sequence[Any], *, operation: str, table: str
    ) -> Sequence[Sequence[Any]]:
        """Run one statement of the store's own words, which is a transaction by itself and sees every organisation.

        On PostgreSQL it is one round trip, where `run` takes two more to begin and to end. Returns its rows. Raises
        as `transaction` does.
        """
        ...

    async def inside(self, connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
        """Do synchronous work in the transaction that is open on `connection`, in one switch of thread."""
        ...
