"""The Protocols by which plugins serve one another; the only way in which they meet.

A config field that names another plugin carries one of these (`needs(Counters)`), and the loader
checks that the named plugin satisfies it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from openclaw_gateway.meters import Balance, Take

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from openclaw_gateway.exchange import Exchange
    from openclaw_gateway.facts import Principal
    from openclaw_gateway.refusals import Refusal


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
    """A reservation in the durable account: what was held, for whom, until it is resolved."""

    id: str
    take: Take
    organization: str
    period: str


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


# --- sessions -----------------------------------------------------------------------------------


class Session(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A session as clients see it."""

    session_id: str
    organization_id: str
    user_id: str
    tier: str
    status: str
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    expires_at: datetime


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A message of a session's history as clients see it."""

    message_id: str
    session_id: str
    role: str
    content: Any
    timestamp: datetime
    metadata: dict[str, Any] = {}

    def as_event(self, **more: Any) -> dict[str, Any]:
        """Return the body of the event that tells a session's listeners of it."""
        return {"type": "message", **msgspec.to_builtins(self), **more}


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be stored; its id, place and time are given by the store."""

    role: str
    content: Any
    metadata: dict[str, Any] = {}


class Page(msgspec.Struct, frozen=True):
    """One page of a listing; `next_cursor` is None on the last."""

    items: list[Any]
    next_cursor: str | None


@runtime_checkable
class SessionStore(Protocol):
    """Sessions and their messages. The organisation is a parameter of every call.

    `get` and all that start from a session id raise Refused: 404 for an unknown, deleted or expired
    session, 403 for another organisation's.
    """

    async def create(
        self,
        principal: Principal,
        *,
        tier: str,
        metadata: Mapping[str, Any],
        ttl: float | None,
        holds: Sequence[Hold],
    ) -> Session: ...

    async def get(self, organization: str, session_id: str) -> Session: ...

    async def list(self, organization: str, *, status: str | None, limit: int, cursor: str | None) -> Page: ...

    async def update(
        self,
        organization: str,
        session_id: str,
        *,
        metadata: Mapping[str, Any] | None,
        status: str | None,
    ) -> Session: ...

    async def delete(self, organization: str, session_id: str) -> None: ...

    async def append(
        self,
        organization: str,
        session_id: str,
        messages: Sequence[NewMessage],
        *,
        holds: Sequence[Hold] = (),
    ) -> Sequence[Message]:
        """Store messages in order, and commit `holds` in the same transaction."""
        ...

    async def messages(self, organization: str, session_id: str, *, limit: int, cursor: str | None) -> Page:
        """A page of the history, oldest first."""
        ...

    async def history(self, organization: str, session_id: str, *, limit: int) -> Sequence[Message]:
        """The last `limit` messages, oldest first."""
        ...


# --- turns and events ---------------------------------------------------------------------------


class TurnEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a turn ended. `message` is the answer as it was stored; None where nothing was.

    `cut` says why there is no more of the answer, `failure` what went wrong; a whole answer has neither.
    """

    message: Message | None = None
    usage: Mapping[str, Any] | None = None
    cut: str | None = None
    failure: Refusal | None = None


@runtime_checkable
class RunningTurn(Protocol):
    """A turn that runs by itself, whoever listens: it is stored and charged also if nobody does."""

    def texts(self) -> AsyncIterator[str]:
        """Yield the answer in pieces, as they come; ends when the turn has ended."""
        ...

    def cancel(self, why: str) -> None:
        """End it now; `why` is stored with what there is of the answer. Says nothing to one that has ended."""
        ...

    async def end(self) -> TurnEnd:
        """Wait until it is stored and charged."""
        ...


@runtime_checkable
class Conversation(Protocol):
    """Runs turns of a session: the model sees the stored history and the new content, and both are stored."""

    async def turn(
        self,
        x: Exchange,
        *,
        session_id: str,
        content: str,
        model: str | None,
        stream: bool,
        metadata: Mapping[str, Any],
    ) -> RunningTurn:
        """Start a turn of the caller of `x`, whose receipt holds the charge. Raises Refused, StoreUnavailable.

        `model` None is the first that the caller's tier may use. `metadata` is stored with the new content.
        """
        ...


#: the type of an event that stands for those that cannot be delivered any more
EVENTS_LOST = "events_lost"


class Event(msgspec.Struct, frozen=True):
    """One event of a session: its place in the session's order, its type, and the JSON object that clients get."""

    seq: int
    type: str
    body: bytes


class Subscription(Protocol):
    """A place at which the events of one session arrive."""

    @property
    def head(self) -> int:
        """The last seq before this subscription: everything later arrives."""
        ...

    async def replay(self, after: int) -> Sequence[Event] | None:
        """Return the events after `after` up to `head`, in order; None where some of them are not kept any more."""
        ...

    def close(self) -> None:
        """End it; nothing arrives afterwards. Idempotent."""
        ...


@runtime_checkable
class EventBus(Protocol):
    """Carries the events of a session to all who listen to it, in one order; keeps a bounded window of them."""

    async def publish(self, organization: str, session_id: str, body: Mapping[str, Any]) -> int:
        """Give the event its `seq`, which grows within the session, also over restarts; return it.

        `body` is what clients get, without `seq`; it has a `type`. Raises StoreUnavailable.
        """
        ...

    async def subscribe(self, organization: str, session_id: str, deliver: Callable[[Event], None]) -> Subscription:
        """Call `deliver` with every later event, in order, each once. It must not block. Raises StoreUnavailable.

        Where events were lost for good, an Event of the type EVENTS_LOST stands in their place; it has no body.
        """
        ...


@runtime_checkable
class Revocations(Protocol):
    """Knows which credentials have ended before their time."""

    async def ended(self, principals: Collection[Principal]) -> Collection[Principal]:
        """Return those whose credential is revoked, expired or gone. Raises StoreUnavailable."""
        ...


# --- models -------------------------------------------------------------------------------------


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model: the client's body as it came, and what was read of it.

    `body` is forwarded byte for byte where `upstream_model` equals the model that the client named.
    """

    model: str
    upstream_model: str
    body: bytes
    request: Mapping[str, Any]
    stream: bool
    request_id: str | None
    first_byte_timeout: float
    idle_timeout: float
    total_timeout: float


@runtime_checkable
class ModelProvider(Protocol):
    """Speaks to one kind of upstream in OpenAI's chat completion shape."""

    async def complete(self, call: ModelCall) -> bytes:
        """Return the whole JSON answer. Raises UpstreamFailed before anything was sent on."""
        ...

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        """Yield the JSON of each chunk, without SSE framing; ends after the last one.

        Raises UpstreamFailed, also in the middle. Closing the iterator stops the upstream.
        """
        ...

    async def embed(self, call: ModelCall) -> bytes:
        """Return the whole JSON answer of an embeddings request. Raises UpstreamFailed."""
        ...
