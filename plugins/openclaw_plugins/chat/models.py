"""The models of the configuration: who may use which, and which models a call may meet.

A fallback that the caller's tier may not use is left out: a failure is no way to a dearer model.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge

from openclaw_gateway.api import (
    MODEL_USE,
    PRINCIPAL,
    REQUEST_ID,
    SESSION_ID,
    TIER,
    Exchange,
    Host,
    ModelCall,
    ModelProvider,
    ModelUse,
    Refused,
    Tier,
    bad_request,
)
from openclaw_plugins.chat.attempts import Asked, Attempts, Candidate, Measures
from openclaw_plugins.chat.lanes import Breaker, Lane
from openclaw_plugins.chat.operations import Operation, Operations
from openclaw_plugins.chat.requests import Alias, forwarded
from openclaw_plugins.chat.shapes import ModelCard


class Models:
    """All models. `connect` comes when every plugin is built."""

    def __init__(self, host: Host, *, failures: int, rest: float) -> None:
        self._host = host
        self._models = host.document.models
        self._failures = failures
        self._rest = rest
        self._created = int(host.clock.now())
        self._check_names()
        fallbacks = {alias: model.fallbacks for alias, model in self._models.items()}
        #: alias → what a call of it may meet, in order
        self.orders = {alias: self._order(alias, fallbacks) for alias in self._models}
        self._usable = {name: self._usable_in(tier) for name, tier in host.tiers.items()}
        self._candidates: dict[str, Candidate] = {}
        #: (tier name, alias) → what a call of it may meet, once it was asked for; of models that the tier may use
        self._met: dict[tuple[str, str], Sequence[Candidate]] = {}
        self._measures = Measures(
            host.metric(Counter, "model_retries_total", "Calls of a model that were sent again.", ("model", "reason")),
            host.metric(
                Counter,
                "model_fallbacks_total",
                "Calls of a model that went on to another.",
                ("model", "fallback", "reason"),
            ),
        )
        self._operations = Operations(host)
        self._resting = host.metric(
            Gauge,
            "model_resting",
            "Whether a model is not asked because it failed too often, 0 or 1.",
            ("model",),
            multiprocess_mode="max",
        )

    def connect(self) -> None:
        """Find the providers: a provider's table may stand after that of who asks it."""
        breakers: dict[tuple[str, str], Breaker] = {}
        for alias, model in self._models.items():
            provider = self._host.get(model.provider, ModelProvider)
            upstream = model.provider, model.name or alias
            breaker = breakers.setdefault(upstream, Breaker(self._failures, self._rest, self._host.clock.monotonic))
            lane = Lane(provider, model.provider, Alias(alias).put, model.capacity, model.capacity_wait, breaker)
            self._candidates[alias] = Candidate(
                alias,
                lane,
                model.retries,
                model.context,
                model.timeouts.first_byte,
                self._calling(alias),
                Operation(self._operations, "chat", *upstream),
                Operation(self._operations, "embeddings", *upstream),
            )
            self._resting.labels(alias).set_function(partial(getattr, breaker, "resting"))

    def attempts(self, x: Exchange, alias: str, body: bytes, request: dict[str, Any], *, stream: bool) -> Attempts:
        """Return the call of `alias`, with what may answer in its place."""
        tier = x[TIER]
        candidates = self._met.get((tier.name, alias))
        if candidates is None:
            usable = self.usable(tier)
            candidates = [self._candidates[name] for name in self.orders[alias] if name == alias or name in usable]
            if tier.name in self._usable and alias in usable:
                self._met[tier.name, alias] = candidates
        use = ModelUse(alias, streamed=stream)
        if x.get(MODEL_USE) is None:
            x[MODEL_USE] = use
        asked = Asked(body, request, stream, x.get(REQUEST_ID), x[PRINCIPAL].organization, x.get(SESSION_ID))
        return Attempts(candidates, asked, self._models[alias].timeouts.total, use, self._measures)

    def check(self, x: Exchange, name: str) -> None:
        """Refuse a model that is unknown, or that the tier may not use: the two are not told apart."""
        tier = x[TIER]
        if (tier.name, name) in self._met:
            return
        usable = self.usable(tier)
        if name in usable:
            return
        raise Refused(bad_request(f"model: there is no model {name!r:.80}{_meant(name, usable)}", param="model"))

    def usable(self, tier: Tier) -> Sequence[str]:
        """The aliases that a tier may use, in the order of the configuration."""
        usable = self._usable.get(tier.name)
        return usable if usable is not None else self._usable_in(tier)

    def card(self, alias: str) -> ModelCard:
        return ModelCard(id=alias, created=self._created, owned_by=self._models[alias].owned_by)

    def _calling(self, alias: str) -> Callable[[Asked], ModelCall]:
        """Return what makes the call of a model out of what a client asks."""
        model = self._models[alias]
        upstream_model = model.name or alias
        times = model.timeouts

        def call(asked: Asked) -> ModelCall:
            return ModelCall(
                model=alias,
                upstream_model=upstream_model,
                body=forwarded(asked.body, asked.request, upstream_model),
                request=asked.request,
                stream=asked.stream,
                request_id=asked.request_id,
                first_byte_timeout=times.first_byte,
                idle_timeout=times.idle,
                total_timeout=times.total,
                organization=asked.organization,
                session_id=asked.session_id,
            )

        return call

    def _check_names(self) -> None:
        """Refuse names that open nothing: a slip of the pen there would only show as a model that is missing."""
        for alias, model in self._models.items():
            for name in model.tiers:
                if name not in self._host.tiers:
                    near = _meant(name, self._host.tiers)
                    raise ValueError(f"models.{alias}.tiers: no file makes the tier {name!r}{near}")
            for name in model.fallbacks:
                if name not in self._models:
                    near = _meant(name, self._models)
                    raise ValueError(f"models.{alias}.fallbacks: there is no model {name!r}{near}")

    def _order(self, alias: str, fallbacks: Mapping[str, Sequence[str]]) -> list[str]:
        try:
            return order_of(alias, fallbacks)
        except ValueError as error:
            raise ValueError(f"models.{alias}.fallbacks: they lead in a circle: {error}") from None

    def _usable_in(self, tier: Tier) -> list[str]:
        return [
            alias
            for alias, model in self._models.items()
            if (not model.tiers or tier.name in model.tiers) and (tier.models is None or alias in tier.models)
        ]


def order_of(alias: str, fallbacks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the aliases that a call of `alias` meets, each once. Raises ValueError where they lead in a circle."""
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(" → ".join((*path[path.index(name) :], name)))
        if name not in order:
            order.append(name)
        for other in fallbacks[name]:
            visit(other, (*path, name))

    visit(alias, ())
    return order


def _meant(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
