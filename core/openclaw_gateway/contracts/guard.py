"""What may stand around the effects of one HTTP exchange: it answers in their place, or watches the answer go out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from openclaw_gateway.exchange import Headers, Reply
    from openclaw_gateway.refusals import Refusal


class Guard(Protocol):
    """Set on an exchange by a step's `on_request`. Without one the runner does nothing of this.

    What is reserved in the durable account while it stands carries its `reference`, so that its effect can be found
    again after a crash.
    """

    @property
    def reference(self) -> str | None: ...

    async def enter(self) -> Reply | Refusal | None:
        """Called once the rates are counted and before anything that lasts is charged; an answer ends the exchange.

        It may read the body from `x.receive`, if it puts something there from which it can be read again.
        """
        ...

    def started(self, status: int, headers: Headers) -> None:
        """Called with the status and headers of the handler, before any `on_response`. Must not wait."""
        ...

    def chunk(self, data: bytes) -> None:
        """Called with each piece of the body as it goes out, before any `on_chunk`. Must not wait."""
        ...

    async def leave(self) -> None:
        """Called after charges are settled and before the last byte, of a refusal too. Must not raise.

        It is not called where the exchange is cut before its end.
        """
        ...
