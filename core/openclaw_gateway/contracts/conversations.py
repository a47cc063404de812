"""Sessions, messages, turns and events: what they are, and the Protocols of those who keep and carry them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from openclaw_gateway.contracts.capabilities import Hold
    from openclaw_gateway.exchange import Exchange
    from openclaw_gateway.facts import Principal
    from openclaw_gateway.refusals import Refusal


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
        """Store messages in order, and commit `holds` in the same transaction.

        Raises Refused where the session is gone; `holds` are then left to the caller, who knows whether what they
        are for was delivered.
        """
        ...

    async def messages(self, organization: str, session_id: str, *, limit: int, cursor: str | None) -> Page:
        """A page of the history, oldest first."""
        ...

    async def history(
        self, organization: str, session_id: str, *, limit: int, max_bytes: int | None = None
    ) -> Sequence[Message]:
        """The last `limit` messages, oldest first.

        With `max_bytes` only the last of them whose contents, as JSON, come to at most so many bytes together; what
        does not fit is not to be read from the store either.
        """
        ...


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
