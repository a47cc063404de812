"""One call of an upstream whose answer is a stream of events, told as chunks.

Chunks are read one after the other, as of any iterator; or handed on in the turn of the event loop in which they come,
without a task to be woken for each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol, Self

from openclaw_gateway.api import ModelCall
from openclaw_plugins.providers.calls import Callee, UpstreamCall
from openclaw_plugins.providers.sse import Event, EventReader
from openclaw_plugins.providers.transport import Answer
from openclaw_plugins.providers.upstream_errors import broken


class Teller(Protocol):
    """Tells what the events of one stream say, in OpenAI's shape."""

    #: whether all of the answer that matters has come
    done: bool

    @property
    def whole(self) -> bool:
        """Whether the stream may end here."""
        ...

    def take(self, event: Event) -> Iterable[bytes]:
        """Return the JSON of the chunks that an event makes. Raises UpstreamFailed."""
        ...


class Streamed(UpstreamCall):
    """The chunks of one call, which is made when the first is asked for. `aclose` ends it early."""

    __slots__ = ("_chunks", "_fault", "_over", "_reader", "_teller")

    def __init__(
        self,
        callee: Callee,
        path: str,
        call: ModelCall,
        teller: Teller,
        longest: int,
        body: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        super().__init__(callee, path, "stream", call, body, headers)
        self._teller = teller
        self._reader = EventReader(longest)
        #: what has come and was not asked for yet
        self._chunks: deque[bytes] = deque()
        #: what the call has failed with, behind those
        self._fault: BaseException | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunks = self._chunks
        while not chunks:
            if self._fault is not None:
                raise self._fault from None
            if self._over:
                raise StopAsyncIteration
            try:
                answer = self._answer or await self._opened()
                self._feed(await answer.read(self.times.next_deadline()), chunks.append)
            except BaseException as error:
                told = self._ended(error)
                if told is error and not chunks:
                    raise
                self._fault = told  # behind what has come before it
            else:
                if self._over:
                    self._ended(None)
        return chunks.popleft()

    async def hand_on(
        self, put: Callable[[bytes], bool], pass_on: Callable[[], None], room: Callable[[], Awaitable[None]]
    ) -> None:
        """As `HandsOn` says."""
        goes_on = True

        def take(piece: bytes) -> bool:
            nonlocal goes_on
            goes_on = self._feed(piece, put)
            if goes_on:
                pass_on()
            return goes_on

        while self._chunks:
            goes_on = put(self._chunks.popleft())
        if self._fault is not None:
            raise self._fault from None
        if self._over:
            return
        try:
            answer = self._answer or await self._opened()
            while not self._over:
                if goes_on:
                    pass_on()
                else:
                    await room()
                await answer.each(take, self.times.next_deadline)
        except BaseException as error:
            if (told := self._ended(error)) is None or told is error:
                raise
            raise told from None
        self._ended(None)

    async def aclose(self) -> None:
        if not self._over:
            self._ended(GeneratorExit())

    async def _opened(self) -> Answer:
        answer = self._answer = await self._asked()
        if answer.status != 200:
            raise await self._refusal(answer)
        return answer

    def _feed(self, piece: bytes, put: Callable[[bytes], object]) -> bool:
        """Put the chunks of what has come, nothing at the end. False where there is no room for more, or will be none.

        Raises UpstreamFailed, EventTooLong.
        """
        goes_on = True
        teller = self._teller
        for event in self._reader.feed(piece) if piece else self._reader.finish():
            for chunk in teller.take(event):
                self.times.begun = True
                if not put(chunk):
                    goes_on = False
        if teller.done:
            self._done = self._over = True
            return False
        if not piece:
            self._over = True
            if not teller.whole:
                raise broken("the stream was cut")
            return False
        return goes_on

    def _ended(self, error: BaseException | None) -> BaseException | None:
        self._over = True
        return self._left(error)
