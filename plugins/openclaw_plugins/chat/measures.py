"""Counts turns and times them, from a turn's request to its commit."""

from __future__ import annotations

import time
from collections.abc import Callable

from openclaw_gateway.api import TIER, Exchange, Host, Spread, Tally
from openclaw_plugins.chat.turns import Turn


class Measures:
    """The metrics of turns, whichever way they come in."""

    def __init__(self, host: Host) -> None:
        messages = host.metric(Tally, "messages_total", "Turns of clients, and answers.", ("tier", "direction"))
        #: tier name → what counts its turns and its answers
        self._told = {
            tier: (messages.labels(tier, "inbound"), messages.labels(tier, "outbound")) for tier in host.tiers
        }
        self._seconds = host.metric(
            Spread,
            "message_processing_duration_seconds",
            "From a turn's request to its commit.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        ).labels()

    def begun(self, x: Exchange) -> Callable[[Turn], None]:
        """Count a turn; return what counts its end."""
        started = time.perf_counter()
        inbound, outbound = self._told[x[TIER].name]
        inbound.inc()

        def ended(turn: Turn) -> None:
            self._seconds.observe(time.perf_counter() - started)
            if turn.delivered:
                outbound.inc()

        return ended
