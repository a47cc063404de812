"""Counts requests by organisation, for those who asked for it: up to so many names, and one for all others.

Who comes first has a name of its own. It never has more series than it was told to.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from openclaw_gateway.api import PRINCIPAL, Exchange, Outcome

OTHER = "(other)"
_CLASSES = ("2xx", "3xx", "4xx", "5xx", "none")


class Organizations:
    """The counter, and the names that it knows."""

    __slots__ = ("_counter", "_known", "_most", "_other")

    def __init__(self, most: int, registry: CollectorRegistry) -> None:
        self._most = most
        self._counter = Counter(
            "organization_requests_total",
            "HTTP requests that ended, of organisations that came first, and of all others together",
            ("organization", "status_class"),
            registry=registry,
        )
        self._known: dict[str, tuple[Counter, ...]] = {}
        self._other = self._of(OTHER)

    def count(self, x: Exchange, outcome: Outcome) -> None:
        """Count an exchange of a known caller; anybody else belongs to no organisation."""
        principal = x.get(PRINCIPAL)
        if principal is None:
            return
        counters = self._known.get(principal.organization)
        if counters is None:
            if len(self._known) < self._most:
                counters = self._known[principal.organization] = self._of(principal.organization)
            else:
                counters = self._other
        place = outcome.status // 100 - 2
        counters[place if 0 <= place < 4 else 4].inc()

    def _of(self, name: str) -> tuple[Counter, ...]:
        return tuple(self._counter.labels(name, one) for one in _CLASSES)
