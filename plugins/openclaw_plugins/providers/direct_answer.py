"""One answer of an upstream as it comes over a `Connection`: who reads it waits for more, or takes it as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openclaw_plugins.providers.connection import Connection

#: bytes of a body that may wait here before the upstream has to wait too
WAITING = 65_536


class DirectAnswer:
    """The answer to one call. Once it is whole its connection may carry the next, whether it has been read or not."""

    __slots__ = (
        "_connection",
        "_enough",
        "_next_deadline",
        "_run",
        "_take",
        "_waiter",
        "failure",
        "fields",
        "parts",
        "size",
        "status",
        "whole",
    )

    def __init__(self, connection: Connection) -> None:
        #: 0 until the head has come
        self.status = 0
        self._connection = connection
        self.fields: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.size = 0
        self.whole = False
        self.failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        #: who takes pieces as they come, while `each` waits; whether he has enough, and until when the next is due
        self._take: Callable[[bytes], bool] | None = None
        self._enough: bool
        self._next_deadline: Callable[[], float]
        self._run: Callable[..., bool]

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.fields}

    @property
    def ended(self) -> bool:
        return self.whole and not self.parts

    async def read(self, deadline: float) -> bytes:
        while not self.parts:
            if self.whole and self.failure is None:
                return b""
            await self.more(deadline)
        return self._drain()

    async def each(self, take: Callable[[bytes], bool], next_deadline: Callable[[], float]) -> None:
        # What comes while this waits is taken by `wake`, in this context.
        self._run = copy_context().run
        self._take = take
        self._next_deadline = next_deadline
        self._enough = False
        try:
            while not self._enough:
                if self.parts:
                    self._enough = not take(self._drain())
                elif self.whole and self.failure is None:
                    take(b"")
                    return
                else:
                    await self.more(next_deadline())
        finally:
            self._take = None

    def release(self) -> None:
        if not self.whole and self.failure is None:
            self._connection.linger()

    def close(self) -> None:
        if not self.whole:
            self._connection.abort()

    def more(self, deadline: float) -> asyncio.Future[None]:
        """Return what is over once more has come. Raises TransportFailed where nothing more will."""
        if self.failure is not None:
            raise self.failure
        connection = self._connection
        self._waiter = waiter = connection.loop.create_future()
        connection.wake_by(deadline)
        return waiter

    def _drain(self) -> bytes:
        """Take what of the body has come; the upstream may go on."""
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self.size > WAITING and not self.whole:
            self._connection.resume()
        self.size = 0
        return data

    def wake(self, failure: Exception | None = None) -> None:
        """Wake who waits for more, unless that is taken at once and there is more to come."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._take is not None and failure is self.failure is None and self.parts and not self.whole:
            try:
                self._enough = not self._run(self._take, self._drain())
            except Exception as error:  # noqa: BLE001 - it is for who waits
                failure = error
            else:
                if not self._enough:
                    self._connection.wake_by(self._next_deadline())
                    return
        if failure is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(failure)
