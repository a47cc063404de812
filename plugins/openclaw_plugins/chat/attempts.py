"""Carries one call to the model that was asked for, and where that fails to the next; until one has something to say.

Nothing is tried again once content has left, nothing that was silent is asked twice, and all of it together takes
no longer than the total time of the model that the client named.

The wait between two tries depends on what the upstream said and on what is left of the call's time, and the next
try may be another upstream's: a library that repeats a function has no place for either, so the loop is our own.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
from prometheus_client import Counter

from openclaw_gateway.api import ModelCall, ModelUse, UpstreamFailed, UpstreamReason
from openclaw_plugins.chat.lanes import Lane
from openclaw_plugins.chat.openings import Opened, close, open_stream
from openclaw_plugins.chat.operations import Operation

T = TypeVar("T", bytes, Opened)

#: the same upstream may answer the same call when it is asked again
_AGAIN: frozenset[UpstreamReason] = frozenset({"failed", "broken", "unreachable", "rate_limited"})
#: the request itself was refused, and the client is told so
_FINAL: frozenset[UpstreamReason] = frozenset({"request", "filtered"})
#: a wait longer than this is not worth it where another model stands ready
_SOON = 2.0
_FIRST_WAIT = 0.2


class Asked(msgspec.Struct, frozen=True):
    """What a client asks of whichever model answers."""

    body: bytes
    request: dict[str, Any]
    stream: bool
    request_id: str | None
    organization: str
    session_id: str | None


class Candidate(msgspec.Struct, frozen=True):
    """A model that may answer: made at boot, one for each. `call` makes what its provider is asked for a client."""

    alias: str
    lane: Lane
    retries: int
    context: int | None
    first_byte: float
    call: Callable[[Asked], ModelCall]
    chat: Operation
    embeddings: Operation


class Measures(msgspec.Struct, frozen=True):
    """How often a call was sent again, and how often another model took it over."""

    retries: Counter
    fallbacks: Counter


class Attempts:
    """One client's call. `complete`, `stream`, `opened` or `embed` is used once."""

    __slots__ = (
        "_asked",
        "_began",
        "_candidates",
        "_end",
        "_loop",
        "_measures",
        "_operation",
        "_started",
        "_total",
        "metadata",
        "use",
    )

    def __init__(
        self, candidates: Sequence[Candidate], asked: Asked, total: float, use: ModelUse, measures: Measures
    ) -> None:
        self._candidates = candidates
        self._asked = asked
        self._total = total
        self._measures = measures
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._end = self._started + total
        #: the request that is under way, or was the last: what counts it, and when it was sent
        self._operation: Operation | None = None
        self._began = 0.0
        self.use = use
        #: what the stored answer says beside its text: a model's own words are all
        self.metadata: Mapping[str, str] = {}

    def complete(self) -> Coroutine[Any, Any, bytes]:
        """Return the whole answer. Raises UpstreamFailed."""
        return self._carry(_completed)

    def embed(self) -> Coroutine[Any, Any, bytes]:
        """Return the vectors. Raises UpstreamFailed."""
        return self._carry(_embedded)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield chunks, the first of them once content has come. Raises UpstreamFailed."""
        async with self.opened() as opened:
            for chunk in opened.opening:
                yield chunk
            if opened.rest is not None:
                async for chunk in opened.rest:
                    yield opened.named(chunk)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Opened]:
        """Hold a stream, once its first content has come: `stream`, without a generator for each chunk to pass.

        Raises UpstreamFailed. What its reader raises within the block is this call's failure.
        """
        opened = await self._carry(open_stream)
        failure: UpstreamReason | None = None
        end = "cancelled"
        try:
            yield opened
            end = ""
        except UpstreamFailed as error:
            failure, end = error.reason, error.code.lower()
            raise
        except Exception:
            end = "internal_error"
            raise
        finally:
            self._count(end)
            await close(opened.rest)
            if not end or failure is not None:
                opened.lane.leave(failure)
            else:
                opened.lane.abandon()

    def told(self) -> None:
        """Count what `use` says of tokens, once all of the answer has been looked at for it."""
        if self._operation is not None:
            self._operation.told(self.use)

    def _count(self, error_type: str) -> None:
        assert self._operation is not None
        self._operation.ended(self._loop.time() - self._began, error_type)

    async def _carry(self, attempt: Callable[[Lane, ModelCall], Awaitable[T]]) -> T:
        asked = self._candidates[0]
        failure: UpstreamFailed | None = None
        silent: set[int] = set()
        for position, candidate in enumerate(self._candidates):
            if failure is not None:
                if id(candidate.lane.breaker) in silent:
                    continue  # another name of an upstream that did not answer
                if failure.reason == "too_long" and not _larger(candidate.context, asked.context):
                    continue
                self._measures.fallbacks.labels(asked.alias, candidate.alias, failure.reason).inc()
            try:
                for number in range(candidate.retries + 1):
                    try:
                        return await self._once(candidate, attempt)
                    except UpstreamFailed as error:
                        wait = self._wait(candidate, error, number, last=position == len(self._candidates) - 1)
                        if wait is None:
                            raise
                        self._measures.retries.labels(candidate.alias, error.reason).inc()
                        await asyncio.sleep(wait)
            except UpstreamFailed as error:
                # What a fallback finds fault with, the model that was asked for may well have taken; only a
                # filter's verdict is on the content, whoever says it.
                if error.reason == "filtered" or (failure is None and error.reason in _FINAL):
                    raise
                failure = failure or error
                if error.reason == "silent":
                    silent.add(id(candidate.lane.breaker))
                if self._end <= self._loop.time():
                    break
        assert failure is not None
        raise failure

    def _wait(self, candidate: Candidate, error: UpstreamFailed, number: int, *, last: bool) -> float | None:
        """Return the seconds after which the same model is asked again; None where it is not."""
        if number == candidate.retries or error.reason not in _AGAIN:
            return None
        wait = error.retry_after
        if wait is None:
            wait = _FIRST_WAIT * 2**number * random.uniform(0.5, 1)  # noqa: S311 - no secret is made of it
        # A client that is told when to come back is better off than one that hangs on without a word.
        late = self._started + min(candidate.first_byte, self._total)
        if self._loop.time() + wait >= late or (wait > _SOON and not last):
            return None
        return wait

    async def _once(self, candidate: Candidate, attempt: Callable[[Lane, ModelCall], Awaitable[T]]) -> T:
        left = self._end - self._loop.time()
        if left <= 0:
            raise _late()
        lane = candidate.lane
        if (waiting := lane.enter(left)) is not None:
            await waiting
        call = candidate.call(self._asked)
        self._operation = candidate.embeddings if attempt is _embedded else candidate.chat
        self._began = self._loop.time()
        left = self._end - self._began
        if left < call.total_timeout:
            call = msgspec.structs.replace(
                call, total_timeout=left, first_byte_timeout=min(left, call.first_byte_timeout)
            )
        self.use.attempts += 1
        try:
            if lane.keeps_deadlines:
                found = await attempt(lane, call)
            else:
                limit = call.first_byte_timeout if call.stream else call.total_timeout
                async with asyncio.timeout(limit + 0.25):
                    found = await attempt(lane, call)
        except UpstreamFailed as error:
            self._count(error.code.lower())
            lane.leave(error.reason)
            raise
        except TimeoutError:
            late = _late()
            self._count(late.code.lower())
            lane.leave("silent")
            raise late from None
        except BaseException as error:
            self._count("internal_error" if isinstance(error, Exception) else "cancelled")
            lane.abandon()
            raise
        now = self._loop.time()
        if isinstance(found, Opened):  # which keeps its place until its end
            self._operation.begun(now - self._began)
        else:
            self._operation.ended(now - self._began)
            lane.leave(None)
        use = self.use
        use.answered = call.model
        use.upstream_model = call.upstream_model
        use.provider = lane.provider_id
        use.first_content = now - self._started
        return lane.named(found) if isinstance(found, bytes) else found


def _completed(lane: Lane, call: ModelCall) -> Awaitable[bytes]:
    return lane.provider.complete(call)


def _embedded(lane: Lane, call: ModelCall) -> Awaitable[bytes]:
    return lane.provider.embed(call)


def _larger(context: int | None, than: int | None) -> bool:
    return context is not None and than is not None and context > than


def _late() -> UpstreamFailed:
    return UpstreamFailed(
        "the model did not answer in time (total)", status=504, code="UPSTREAM_TIMEOUT", reason="silent"
    )
