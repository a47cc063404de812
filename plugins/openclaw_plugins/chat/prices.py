"""Counts what models took, and what that cost, by the prices of the configuration. It refuses nothing and bills nobody.

A model without a price, whose fallbacks have none either, is not counted, and nothing is computed for its calls.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from prometheus_client import Counter

from openclaw_gateway.api import TIER, Exchange, Host, ModelUse

#: a price is for so many tokens, as providers publish theirs
PER = 1_000_000


class _Counted(NamedTuple):
    input: Counter
    output: Counter
    cost: Counter
    input_price: float
    output_price: float


class Prices:
    """The prices of one configuration. `priced` are the aliases of which a call may meet a model that has one."""

    def __init__(self, host: Host, orders: Mapping[str, Collection[str]]) -> None:
        tokens = host.metric(
            Counter,
            "model_tokens_total",
            "Tokens of calls of models that have a price.",
            ("model", "tier", "direction"),
        )
        cost = host.metric(
            Counter, "model_cost_total", "What these tokens cost, in the unit of the prices.", ("model", "tier")
        )
        prices = {alias: model.price for alias, model in host.document.models.items() if model.price is not None}
        self.priced = frozenset(alias for alias, order in orders.items() if not prices.keys().isdisjoint(order))
        self._counted = {
            (alias, tier): _Counted(
                tokens.labels(alias, tier, "input"),
                tokens.labels(alias, tier, "output"),
                cost.labels(alias, tier),
                price.input,
                price.output,
            )
            for alias, price in prices.items()
            for tier in host.tiers
        }

    def count(self, x: Exchange, use: ModelUse, prompt: int, answer: int) -> None:
        """Count a call that has ended, under the model that answered it."""
        found = self._counted.get((use.answered or "", x[TIER].name))
        if found is not None:
            found.input.inc(prompt)
            found.output.inc(answer)
            found.cost.inc((prompt * found.input_price + answer * found.output_price) / PER)
