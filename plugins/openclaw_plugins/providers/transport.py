"""What carries a call to an upstream and its answer back: the interface, and the ways in which it can fail.

Two implementations stand behind it: `direct.py` for speed, `proxied.py` for what only a whole HTTP client knows.
Neither retries, follows a redirect, keeps a cookie or decides what a status means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec


class TransportFailed(Exception):
    """The call has no answer. `kind` names it in metrics."""

    kind = "connection_lost"


class Unreachable(TransportFailed):
    """No connection could be opened."""

    kind = "unreachable"


class ConnectTimeout(TransportFailed):
    """No connection was open in time."""

    kind = "connect_timeout"


class ConnectionLost(TransportFailed):
    """The connection ended before the answer did.

    `stale` says that it had been used before and ended without a byte of this answer: most likely the upstream
    closed it while our request was on its way, which says nothing of the upstream's health.
    """

    def __init__(self, text: str = "", *, stale: bool = False) -> None:
        super().__init__(text)
        self.stale = stale


class Malformed(TransportFailed):
    """What came is not an HTTP/1.1 answer that two readers would read alike, or is larger than one may be."""

    kind = "malformed"


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where calls go. `headers` travel with every one; `url` is the base URL without a final slash."""

    url: str
    headers: Mapping[str, str]
    max_connections: int
    verify_tls: bool
    proxy: str | None = None


class Answer(Protocol):
    """One answer whose head has come. Who holds it calls `release` or `close`, once."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; of several the last."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it is known that nothing more comes, so that nobody has to `read` for it."""
        ...

    async def read(self, deadline: float) -> bytes:
        """Return what of the body has come, waiting for the first of it; empty at the end.

        `deadline` is in the loop's time. Raises TimeoutError, TransportFailed.
        """
        ...

    async def each(self, take: Callable[[bytes], bool], next_deadline: Callable[[], float]) -> None:
        """Give `take` what of the body comes, as it comes, and nothing at the end; return there, or once it is False.

        `next_deadline` says until when the next has to come. Raises as `read`, and what `take` raises.
        """
        ...

    def release(self) -> None:
        """Say that nothing more is wanted of an answer that is whole but for its end mark."""
        ...

    def close(self) -> None:
        """End the connection, unless the answer has been whole: an upstream notices at once that nobody listens."""
        ...


class Transport(Protocol):
    """A way to one destination."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Hold it open; on leaving, every connection is closed."""
        ...

    async def ask(
        self, path: str, headers: Mapping[str, str], body: bytes, *, connect_within: float, deadline: float
    ) -> Answer:
        """POST `body` to `path` below the base URL; return the answer once its head has come.

        `connect_within` bounds the opening of a connection, in seconds; `deadline`, in the loop's time, bounds all.
        Raises TimeoutError, TransportFailed.
        """
        ...
