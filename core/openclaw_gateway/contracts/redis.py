"""The Protocol of a Redis or Valkey that several plugins share; the driver stays with the plugin that provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable


class Prepared(Protocol):
    """A script call, encoded once; it may be run any number of times."""


class Feed(Protocol):
    """What is published to channels, on a connection of its own that is made again whenever it is lost."""

    async def add(self, channel: str) -> None:
        """Hear a channel from the moment on at which this returns. Raises StoreUnavailable. Idempotent."""
        ...

    def remove(self, channel: str) -> None:
        """Hear it no more. Idempotent."""
        ...


@runtime_checkable
class Redis(Protocol):
    """One server, a primary behind Sentinels, or a cluster: who asks need not know.

    Nothing is ever sent twice whose outcome is unknown: what raised StoreUnavailable may have been done.
    StoreBusy means that it was not sent. Neither call takes longer than `timeout`, and none waits at all while the
    node is known to be down.
    """

    @property
    def timeout(self) -> float:
        """Seconds after which a call has failed."""
        ...

    @property
    def prefix(self) -> str:
        """What every key of this gateway begins with; it holds no braces, so a hash tag may follow."""
        ...

    @property
    def degraded(self) -> bool:
        """Whether any node is known not to answer now."""
        ...

    def prepare(self, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Prepared:
        """Encode the call of a Lua script. All keys share one hash tag; there is at least one."""
        ...

    async def run(self, prepared: Prepared) -> Any:
        """Run a script once. Raises StoreUnavailable, StoreBusy."""
        ...

    async def call(self, key: str | None, *command: str | bytes | int) -> Any:
        """Send one command to the node that holds `key`, or to any. Raises StoreUnavailable, StoreBusy."""
        ...

    def feed(
        self, received: Callable[[str, bytes], None], restored: Callable[[], None]
    ) -> AbstractAsyncContextManager[Feed]:
        """Open a feed; its channels begin with `prefix`, in a cluster too.

        `received(channel, data)` is called in the order of publication, for each message at most once. What is
        published while the connection is down is lost to it: `restored()` is called when all channels are heard again.
        """
        ...
