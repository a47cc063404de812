"""What flows through the pipeline: an Exchange with its facts, a Reply that ends it early, its Outcome.

An exchange is one HTTP request, one WebSocket handshake or one WebSocket message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import msgspec

from openclaw_gateway.carried import Carried
from openclaw_gateway.refusals import Refusal

if TYPE_CHECKING:
    from openclaw_gateway.contracts.guard import Guard
    from openclaw_gateway.pipeline import CompiledRoute
    from openclaw_gateway.receipt import Receipt

T = TypeVar("T")
D = TypeVar("D")

#: bytes that may stand in no header: the control characters but the tab (RFC 9110 5.5)
CONTROLS = bytes(byte for byte in (*range(0x20), 0x7F) if byte != 0x09)

#: for exchanges that no gateway carries
_NOTHING = Carried()

Kind = Literal["http", "websocket", "message"]
Headers = list[tuple[bytes, bytes]]


class Fact(Generic[T]):
    """A typed key under which one step leaves a value for later steps; compared by identity."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Fact({self.name!r})"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response that a step gives in place of the handler; it still passes `on_response`."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


class ResponseHead:
    """Status and headers of a response that is about to start; `on_response` may change both."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers

    def set(self, name: bytes, value: bytes) -> None:
        """Set a header (lower-case `name`), replacing what a handler gave under that name."""
        headers = self.headers
        if name not in [present for present, _ in headers]:  # nearly always
            headers.append((name, value))
            return
        for i, (present, _) in enumerate(headers):
            if present == name:
                headers[i] = (name, value)
                return


class Outcome(msgspec.Struct, eq=False):
    """How an exchange ended; every `on_complete` sees the same one, exactly once.

    `status` is 0 where no response was started. `bytes_sent` counts body bytes. `seconds` is the
    whole time from the first byte of the request to completion. `refused_by` is the plugin id, or
    the limit's name, that refused. `disconnected` says that the client left before the end.
    """

    status: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0
    refused_by: str | None = None
    error: BaseException | None = None
    error_code: str | None = None
    disconnected: bool = False


class Exchange:
    """One request on its way. Steps share facts through it and nothing else."""

    __slots__ = (
        "_facts",
        "_first",
        "carried",
        "client",
        "get",
        "guard",
        "kind",
        "method",
        "outcome",
        "parent",
        "path",
        "receipt",
        "receive",
        "refusal",
        "route",
        "scope",
        "started",
        "timings",
        "trusted_peer",
    )

    def __init__(
        self,
        kind: Kind,
        method: str,
        path: str,
        route: CompiledRoute,
        scope: Any,
        started: float,
        carried: Carried = _NOTHING,
    ) -> None:
        self.kind: Kind = kind
        self.method = method
        self.path = path
        self.route = route
        self.scope = scope
        #: `Clock.monotonic()` at the first byte of the request, in seconds
        self.started = started
        #: what its gateway carries just now, this exchange among it; `in_step` lets the others go first
        self.carried = carried
        #: the address of the client, past trusted proxies; empty where the transport has none
        self.client = ""
        #: whether the peer that we speak to is a trusted proxy
        self.trusted_peer = False
        self.outcome = Outcome()
        #: what admission charged; None before admission, and where no limit applied
        self.receipt: Receipt | None = None
        #: where the handler reads the body of an HTTP request; a guard that has read it puts it back
        self.receive: Callable[[], Awaitable[Any]] | None = None
        #: what a step has put around the effects of this exchange
        self.guard: Guard | None = None
        #: the refusal that ended the exchange, if one did
        self.refusal: Refusal | None = None
        #: for kind "message": the exchange of the handshake
        self.parent: Exchange | None = None
        #: seconds by stage, where this exchange is one whose steps are timed
        self.timings: dict[str, float] | None = None
        self._facts: dict[Fact[Any], Any] = {}
        if not TYPE_CHECKING:
            self.get = self._facts.get  # the dictionary's own: steps ask for facts ten times a request
        #: request headers by name, of several the first; made when one is first asked for
        self._first: dict[bytes, bytes] | None = None

    def __getitem__(self, fact: Fact[T]) -> T:
        value: T = self._facts[fact]
        return value

    def __setitem__(self, fact: Fact[T], value: T) -> None:
        """State a fact. Each fact has one authoritative source: a second write is an error."""
        if fact in self._facts:
            raise RuntimeError(f"the fact {fact.name!r} is already stated")
        self._facts[fact] = value

    def __contains__(self, fact: object) -> bool:
        return fact in self._facts

    if TYPE_CHECKING:

        @overload
        def get(self, fact: Fact[T]) -> T | None: ...
        @overload
        def get(self, fact: Fact[T], default: D) -> T | D: ...
        def get(self, fact: Fact[Any], default: Any = None) -> Any: ...

    def header(self, name: bytes) -> bytes | None:
        """Return the first request header called `name` (lower case), or None."""
        if self._first is None:
            self._first = dict(reversed(self.scope["headers"]))
        return self._first.get(name)

    def headers(self, name: bytes) -> list[bytes]:
        """Return every request header called `name` (lower case), in order."""
        return [value for present, value in self.scope["headers"] if present == name]

    def when_left(self, call: Callable[[], None] | None) -> bool:
        """Have `call` called once the client leaves before its answer is whole; None takes that back.

        False where the server cannot say so by itself: then only `receive` tells of it.
        """
        connection = self.scope.get("openclaw.connection")
        if connection is None:
            return False
        connection.when_left(call)
        return True

    def inherit(self, parent: Exchange) -> None:
        """Take over the facts of the handshake (kind "message")."""
        self.parent = parent
        self.client = parent.client
        self.trusted_peer = parent.trusted_peer
        self._facts.update(parent._facts)
