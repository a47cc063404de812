"""What a call takes in tokens: estimated before it, so that it can be admitted, and settled after it.

Where a tier has no limit on tokens and a model no price, nothing here is ever computed. It counts no tokens exactly: a
model's upstream does that, and what it says is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from openclaw_gateway.api import TIER, TOKENS, Exchange, Host, ModelUse, Refused
from openclaw_plugins.chat.prices import Prices

_encode = msgspec.json.Encoder().encode

#: bytes of UTF-8 that one token is taken to stand for; English has about four, and other scripts more
BYTES = 4
#: what a message costs beside its text, and what a part that is no text (an image) is taken to cost
MESSAGE, PART = 4, 1_000


class Tokens:
    """Charges calls for tokens. `answer` is how many an answer is taken to have whose request sets no bound."""

    def __init__(self, host: Host, prices: Prices, *, answer: int) -> None:
        self._host = host
        self._prices = prices
        self._answer = answer
        #: tier name → whether it limits tokens, once it was asked for
        self._limits: dict[str, bool] = {}

    def counted(self, x: Exchange, alias: str) -> bool:
        """Whether anything asks for the tokens of a call: a limit of the caller's tier, or a price."""
        return alias in self._prices.priced or self._limited(x)

    def _limited(self, x: Exchange) -> bool:
        tier = x[TIER].name
        limited = self._limits.get(tier)
        if limited is None:
            limited = self._limits[tier] = self._host.gateway.admission.counts(x, TOKENS)
        return limited

    async def charge(self, x: Exchange, request: Mapping[str, Any]) -> Spent:
        """Admit a chat by its estimate, where tokens are limited. Raises Refused, StoreUnavailable."""
        prompt = prompt_estimate(request)
        bound = request.get("max_completion_tokens") or request.get("max_tokens")
        answers = request.get("n") if isinstance(request.get("n"), int) else None
        answer = (bound if isinstance(bound, int) else self._answer) * max(1, answers or 1)
        return await self._admitted(x, prompt, answer)

    async def charge_embedding(self, x: Exchange, request: Mapping[str, Any]) -> Spent:
        """Admit an embedding by its estimate, where tokens are limited. Raises Refused, StoreUnavailable."""
        return await self._admitted(x, _input_estimate(request.get("input")), 0)

    async def _admitted(self, x: Exchange, prompt: int, answer: int) -> Spent:
        limited = self._limited(x)
        if limited:
            refusal = await self._host.gateway.admission.charge(x, TOKENS, amount=max(1, prompt + answer))
            if refusal is not None:
                raise Refused(refusal)
        return Spent(x, prompt, self._prices, limited=limited)


class Spent:
    """What one call was admitted for, until it is settled."""

    __slots__ = ("_delivered", "_limited", "_prices", "_prompt", "_x")

    def __init__(self, x: Exchange, prompt: int, prices: Prices, *, limited: bool) -> None:
        self._x = x
        self._prompt = prompt
        self._prices = prices
        self._limited = limited
        self._delivered = 0

    def delivered(self, text: str) -> None:
        """Note text that was delivered, for an upstream that says no numbers, or is cut before it does."""
        self._delivered += len(text.encode("utf-8", "surrogatepass"))

    def settle(self, use: ModelUse) -> None:
        """Charge what the upstream counted, and what is estimated where it did not; zero is a count."""
        prompt = max(0, use.prompt_tokens if use.prompt_tokens is not None else self._prompt)
        answer = max(0, use.completion_tokens if use.completion_tokens is not None else -(-self._delivered // BYTES))
        self._prices.count(self._x, use, prompt, answer)
        if self._limited and self._x.receipt is not None:
            self._x.receipt.settle(TOKENS.name, prompt + answer)


def prompt_estimate(request: Mapping[str, Any]) -> int:
    """Tokens that a prompt is taken to have: its texts by their bytes, its messages, its parts, its tools."""
    total = 0
    for message in request.get("messages") or ():
        total += MESSAGE
        content = message.get("content")
        if isinstance(content, str):
            total += _text_estimate(content)
        elif isinstance(content, list):
            for part in content:
                text = part.get("text") if isinstance(part, dict) else None
                total += _text_estimate(text) if isinstance(text, str) else PART
        if calls := message.get("tool_calls"):
            total += -(-len(_encode(calls)) // BYTES)
    if tools := request.get("tools"):
        total += -(-len(_encode(tools)) // BYTES)
    return total


def _input_estimate(given: Any) -> int:
    if isinstance(given, str):
        return _text_estimate(given)
    if isinstance(given, list):
        return sum(1 if isinstance(item, int) else _input_estimate(item) for item in given)
    return 0


def _text_estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES)
