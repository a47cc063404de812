"""The Protocol of a Redis or Valkey that several plugins share; the driver stays with the plugin that provides it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


class Prepared(Protocol):
    """A script call, encoded once; it may be run any number of times."""


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
