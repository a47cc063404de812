"""Lets a model call skills within one turn: asks it, runs what it calls, and asks again, until it answers or a cap.

Each round is a call of its own, with the retries and fallbacks of every call; nothing of a round is asked again once
it has said something. What the model says in any round goes to the client as it comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from prometheus_client import Counter

from openclaw_gateway.api import MODEL_USE, TIER, Exchange, Host, ModelUse, SkillRunner, Tier
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.models import Models
from openclaw_plugins.chat.offers import Offer, Offers, ToolLoopConfig
from openclaw_plugins.chat.rounds import Round, Said
from openclaw_plugins.chat.tokens import BYTES, prompt_estimate
from openclaw_plugins.chat.tool_calls import ToolCalls

_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode

#: makes the call of one round
Ask = Callable[[bytes, dict[str, Any]], Attempts]


class ToolLoops:
    """Makes the loops of turns, where the operator turned them on. Raises ValueError for a model that is not there."""

    def __init__(self, config: ToolLoopConfig, runner: SkillRunner, models: Models, host: Host) -> None:
        for alias in config.models or ():
            if alias not in host.document.models:
                raise ValueError(f"tool_loop.models: there is no model {alias!r}")
        self._config = config
        self._runner = runner
        self._models = models
        self._offers = Offers(config, runner)
        self._ends = host.metric(
            Counter, "tool_loop_turns_total", "Turns in which a model could call skills.", ("model", "end")
        )

    def check(self, tiers: Mapping[str, Tier], logger: logging.Logger) -> None:
        """Log what is configured and not there."""
        self._offers.check(tiers, logger)

    def loop(
        self, x: Exchange, alias: str, request: dict[str, Any], *, session: str | None, ref: str | None = None
    ) -> ToolLoop | None:
        """Return the loop of a turn; None where its model is offered nothing."""
        offer = self._offers.of(x[TIER], alias, request)
        if offer is None:
            return None
        calls = ToolCalls(self._runner, x, offer.skills, session=session, longest=self._config.result, ref=ref)

        def ask(body: bytes, request: dict[str, Any]) -> Attempts:
            return self._models.attempts(x, alias, body, request, stream=bool(request.get("stream")))

        loop = ToolLoop(ask, request, offer, calls, self._config, self._ends)
        if MODEL_USE not in x:
            x[MODEL_USE] = loop.use  # that of the whole turn, before a round states its own
        return loop


class ToolLoop:
    """Stands where the attempts of a model stand. `complete` or `stream` is used once."""

    __slots__ = (
        "_ask",
        "_calls",
        "_client_tools",
        "_config",
        "_ends",
        "_include_usage",
        "_left",
        "_offer",
        "_request",
        "_rounds",
        "_said",
        "_theirs",
        "_until",
        "_untold",
        "metadata",
        "use",
    )

    def __init__(
        self, ask: Ask, request: dict[str, Any], offer: Offer, calls: ToolCalls, config: ToolLoopConfig, ends: Counter
    ) -> None:
        stream = bool(request.get("stream"))
        options = request.get("stream_options") or {}
        self._ask = ask
        self._offer = offer
        self._calls = calls
        self._config = config
        self._ends = ends
        self._include_usage = bool(options.get("include_usage"))
        self._client_tools = list(request.get("tools") or ())
        self._theirs = _names(self._client_tools)
        self._request = {
            **request,
            "messages": list(request["messages"]),
            "tools": [*self._client_tools, *offer.tools],
        }
        if stream:
            self._request["stream_options"] = {**options, "include_usage": True}
        self._said = Said()
        self._rounds = 0
        self._left = config.calls
        self._until = 0.0
        #: whether some round's usage is not known
        self._untold = False
        self.use = ModelUse(str(request["model"]), streamed=stream)
        #: what the answer, and the message that is stored of it, says beside its text
        self.metadata: dict[str, Any] = {}

    async def complete(self) -> bytes:
        """Return the whole answer. Raises UpstreamFailed."""
        self._start()
        texts: list[str] = []
        while True:
            attempts = self._attempts()
            try:
                body = await attempts.complete()
            finally:
                self._note(attempts.use)
            answer = _object(body)
            if not answer.get("choices"):
                return body
            round = self._round()
            message = round.whole(answer)
            if isinstance(text := message.get("content"), str) and text:
                texts.append(text)
            self._count(attempts, round)
            if not await self._go_on(round):
                break
        if not self._rounds and not round.calls:
            return body
        message["content"] = "\n\n".join(texts) or None
        answer["choices"][0].update(message=message, finish_reason=self._reason(round))
        return _encode({**answer, "usage": self._usage(), **self._told()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield chunks of all rounds as they come, and one end. Raises UpstreamFailed."""
        self._start()
        while True:
            attempts = self._attempts()
            round = self._round()
            try:
                async with aclosing(attempts.stream()) as chunks:
                    async for chunk in chunks:
                        if (shown := round.chunk(chunk)) is not None:
                            yield shown
            finally:
                self._note(attempts.use)
                self._count(attempts, round)
            if not await self._go_on(round):
                break
        if round.end is not None:
            round.end["choices"][0]["finish_reason"] = self._reason(round)
            yield _encode({**round.end, **self._told()})
        if self._include_usage and (usage := self._usage()) is not None:
            yield _encode({**self._said.head, "choices": [], "usage": usage})

    def listen(self, note: Callable[[bytes], None]) -> None:
        """Let it tell how runs go, each state a comment of an event stream."""

        def heard(skill: str, state: str, detail: str | None) -> None:
            note(b": skill " + _encode({"name": skill, "state": state, "detail": detail}) + b"\n\n")

        self._calls.heard = heard

    def _start(self) -> None:
        self._until = asyncio.get_running_loop().time() + self._config.time

    def _attempts(self) -> Attempts:
        return self._ask(_encode(self._request), self._request)

    def _round(self) -> Round:
        return Round(self._said, self._theirs, later=self._rounds > 0)

    async def _go_on(self, round: Round) -> bool:
        """Answer the calls of a round, if there are any and the model may be asked again."""
        calls = round.mine
        if not calls or self._capped():
            self._ends.labels(self.use.asked, "cap" if calls else "client" if round.calls else "answer").inc()
            return False
        try:
            messages = await self._calls.answer(calls, self._left, self._until)
        finally:
            if self._calls.executed:
                self.metadata.update(skillExecuted=True, skillNames=self._calls.executed)
        self._left -= len(calls)
        self._rounds += 1
        self._request["messages"] += [round.message(), *messages]
        # A client that insists on a call has had one; to insist for ever would never end.
        if self._request.get("tool_choice") not in (None, "auto"):
            self._request["tool_choice"] = "auto"
        if self._capped():
            # Asked for the last time. Upstreams refuse calls in a prompt that offers no tools at all.
            if self._client_tools:
                self._request["tools"] = self._client_tools
            else:
                self._request["tool_choice"] = "none"
        return True

    def _capped(self) -> bool:
        late = asyncio.get_running_loop().time() >= self._until
        return self._rounds >= self._config.rounds or self._left <= 0 or late

    def _note(self, use: ModelUse) -> None:
        """Make the turn's use of the round's."""
        mine = self.use
        mine.attempts += use.attempts
        if use.answered is not None:
            mine.answered, mine.provider, mine.upstream_model = use.answered, use.provider, use.upstream_model
        if mine.first_content is None:
            mine.first_content = use.first_content

    def _count(self, attempts: Attempts, round: Round) -> None:
        """Add what a round took; estimated where it was cut, or its upstream says no numbers."""
        if round.usage:
            self._said.add_usage(round.usage)
        else:
            self._untold = True
        prompt, answer = _number(round.usage, "prompt_tokens"), _number(round.usage, "completion_tokens")
        attempts.use.prompt_tokens, attempts.use.completion_tokens = prompt, answer
        attempts.told()
        if prompt is None or answer is None:
            if not self._rounds and not round.mine:
                return  # a turn of one round is told, or estimated, like any other
            prompt, answer = prompt_estimate(self._request), -(-len(_encode(round.message())) // BYTES)
        self.use.prompt_tokens = (self.use.prompt_tokens or 0) + prompt
        self.use.completion_tokens = (self.use.completion_tokens or 0) + answer

    def _usage(self) -> dict[str, Any] | None:
        """What clients are told: the sum, or nothing where a part of it is not known."""
        return None if self._untold else self._said.usage or None

    def _reason(self, round: Round) -> str | None:
        """Why the answer ended. A model that calls on and on was cut, like one that talks on and on."""
        if round.mine:
            return "length"
        return round.finish_reason

    def _told(self) -> Mapping[str, Any]:
        return {"metadata": self.metadata} if self.metadata else {}


def _number(usage: Mapping[str, Any], name: str) -> int | None:
    found = usage.get(name)
    return found if isinstance(found, int) else None


def _names(tools: list[Any]) -> frozenset[str]:
    found = [(tool.get("function") or tool).get("name") for tool in tools if isinstance(tool, dict)]
    return frozenset(name for name in found if isinstance(name, str))
