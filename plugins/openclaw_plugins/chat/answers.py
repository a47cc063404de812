"""What a turn leaves behind: the answer as far as it was delivered, kept in a history, and its charge.

The message and the charge for it are one transaction; neither is ever kept without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from openclaw_gateway.api import (
    PRINCIPAL,
    EventBus,
    Exchange,
    Message,
    ModelUse,
    NewMessage,
    Refused,
    SessionStore,
    StoreUnavailable,
)
from openclaw_plugins.chat.tokens import Spent


class ToolFunction(msgspec.Struct):
    """What a call of a tool calls."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A call of a tool, or a piece of one."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: ToolFunction | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] = []


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _End(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Told(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[_End] = []


_REASON = b'"finish_reason"'
_decode = msgspec.json.Decoder(_Piece).decode
_told = msgspec.json.Decoder(_Told).decode


class Answer:
    """The first choice of an answer, put together from its pieces."""

    __slots__ = ("_calls", "_finish_reason", "_text")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None

    def add(self, piece: bytes) -> None:
        """Take in a chunk of a stream, or a whole answer. What cannot be read is no part of a history."""
        try:
            choices = _decode(piece).choices
        except msgspec.DecodeError:
            return
        for choice in choices:
            if choice.index != 0:
                continue
            self._finish_reason = choice.finish_reason or self._finish_reason
            said = choice.delta or choice.message
            if said is None:
                continue
            text = said.content or said.refusal
            if text:
                self._text.append(text)
            for position, call in enumerate(said.tool_calls or ()):
                self._add_call(call, position if choice.message is said else call.index)

    @property
    def text(self) -> str:
        """All that was said, calls of tools included."""
        calls = (call["name"] + call["arguments"] for call in self._calls.values())
        return "".join((*self._text, *calls))

    def message(self, model: str, cut: str | None) -> NewMessage:
        """Return the answer for a history; `cut` says why there is no more of it."""
        metadata: dict[str, Any] = {"model": model}
        if self._finish_reason is not None:
            metadata["finishReason"] = self._finish_reason
        if self._calls:
            metadata["toolCalls"] = [self._calls[index] for index in sorted(self._calls)]
        if cut is not None:
            metadata["cut"] = cut
        # PostgreSQL holds no NUL, and a model may say one.
        return NewMessage(role="assistant", content="".join(self._text).replace("\x00", ""), metadata=metadata)

    def _add_call(self, call: ToolCall, index: int) -> None:
        whole = self._calls.setdefault(index, {"id": None, "type": "function", "name": "", "arguments": ""})
        whole["id"] = call.id or whole["id"]
        whole["type"] = call.type or whole["type"]
        if call.function is not None:
            whole["name"] += call.function.name or ""
            whole["arguments"] += call.function.arguments or ""


def _ends(piece: bytes) -> bool:
    """Whether a chunk may say how an answer ended: most say of its one choice that it has not."""
    at = piece.find(_REASON)
    if at < 0:
        return False
    behind = at + len(_REASON)
    return piece.find(b'"', behind, behind + 3) >= 0 or piece.find(_REASON, behind) >= 0


def note_usage(piece: bytes, use: ModelUse) -> None:
    """Note what an upstream says of tokens and of the end, in a chunk or in a whole answer."""
    try:
        told = _told(piece)
    except msgspec.DecodeError:
        return
    if told.usage is not None:
        use.prompt_tokens = told.usage.prompt_tokens
        use.completion_tokens = told.usage.completion_tokens
    for choice in told.choices:
        if choice.index == 0 and choice.finish_reason is not None:
            use.finish_reason = choice.finish_reason


def note_usage_of_vectors(answer: bytes, use: ModelUse) -> None:
    """As `note_usage`, of an embedding: the vectors are long, and what comes before the usage is not read."""
    at = answer.rfind(b'"usage"')
    if at >= 0:
        note_usage(b"{" + answer[at:], use)


class Record:
    """Where a turn is kept and charged: a session's history where the client named one, and the receipt."""

    __slots__ = ("_answer", "_asked", "_events", "_metadata", "_session", "_spent", "_store", "_use", "_x", "stored")

    def __init__(
        self,
        x: Exchange,
        store: SessionStore,
        *,
        session: str | None,
        asked: list[NewMessage],
        use: ModelUse,
        metadata: Mapping[str, Any] = {},
        events: EventBus | None = None,
        spent: Spent | None = None,
    ) -> None:
        self._x = x
        self._store = store
        self._session = session
        self._asked = asked
        self._use = use
        #: what is stored of the answer beside what it says itself
        self._metadata = metadata
        self._events = events
        #: the tokens that the turn was admitted for, where its tier limits them
        self._spent = spent
        #: what was said, where anybody asks
        self._answer = Answer() if session is not None or spent is not None else None
        #: what was kept: what was asked, then the answer
        self.stored: Sequence[Message] = ()

    def add(self, piece: bytes) -> None:
        """Note what was delivered."""
        # Most chunks say neither how an answer ended nor what it took, and are not read for it.
        if piece.find(b'"usage"') >= 0 or _ends(piece):
            note_usage(piece, self._use)
        if self._answer is not None:
            self._answer.add(piece)

    def commits(self, *, at_once: bool) -> bool:
        """Whether `commit` has anything to do."""
        return self._answer is not None or (at_once and self._x.receipt is not None)

    async def commit(self, *, cut: str | None, at_once: bool) -> None:
        """Keep and charge the turn. Raises StoreUnavailable, Refused where the session is gone.

        With `at_once` it has been delivered, and is charged whether there is a history to keep it or not.
        Without, a charge that no history carries is left to the end of the exchange.
        """
        receipt = self._x.receipt
        organization = self._x[PRINCIPAL].organization
        if self._spent is not None:
            assert self._answer is not None
            self._spent.delivered(self._answer.text)
            self._spent.settle(self._use)
        if self._session is not None:
            holds = (*receipt.take_holds("messages"), *receipt.take_holds("tokens")) if receipt is not None else ()
            turn = [*self._asked, self._said(cut)]
            try:
                self.stored = await self._store.append(organization, self._session, turn, holds=holds)
            except BaseException as error:
                # Where it was stored after all, nothing more comes of them.
                if receipt is not None and (not at_once or isinstance(error, Refused)):
                    receipt.give_back(holds)
                    if at_once:  # delivered all the same: to delete a session while it is answered saves nothing
                        await receipt.commit()
                raise
        if at_once and receipt is not None:
            await receipt.commit()
        if self._session is not None and self._events is not None:
            # What is stored stays stored: a bus that fails logs it, and listeners find it in the history.
            with suppress(StoreUnavailable):
                for message in self.stored:
                    await self._events.publish(organization, self._session, message.as_event())

    def _said(self, cut: str | None) -> NewMessage:
        assert self._answer is not None
        message = self._answer.message(self._use.answered or self._use.asked, cut)
        return msgspec.structs.replace(message, metadata={**message.metadata, **self._metadata})

    async def void(self) -> None:
        """Charge nothing: nothing was delivered."""
        if self._x.receipt is not None:
            await self._x.receipt.void()
