"""Watches every transaction: how long it takes, how it fails, and that no driver's error goes past here.

Where the exchange is traced, a transaction is a span of its trace, by OpenTelemetry's conventions for databases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter

from openclaw_gateway.api import Host, Spread, end_span, start_span, traced
from openclaw_plugins.database.faults import kind_of, translated


class Watched:
    """The metrics of one gateway's transactions."""

    def __init__(self, host: Host, system: str) -> None:
        self._system = system
        self._monotonic = host.clock.monotonic
        self._seconds = host.metric(
            Spread,
            "database_query_duration_seconds",
            "From the wait for a connection to the end of the transaction",
            ("operation", "table"),
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self._errors = host.metric(Counter, "database_errors", "Transactions that failed", ("operation", "error_type"))

    @contextmanager
    def transaction(self, operation: str, table: str) -> Iterator[None]:
        """Stand around one. Raises the gateway's own exceptions for a driver's."""
        started = self._monotonic()
        span = start_span(f"{operation.upper()} {table}", self._attributes(operation, table)) if traced() else None
        kind = None
        try:
            yield
        except Exception as error:
            fault = translated(error)
            if fault is None:
                raise
            kind = kind_of(fault, error)
            self._errors.labels(operation, kind).inc()
            raise fault from error
        finally:
            end_span(span, kind)
            self._seconds.labels(operation, table).observe(self._monotonic() - started)

    def _attributes(self, operation: str, table: str) -> dict[str, str]:
        return {
            "db.system.name": self._system,
            "db.operation.name": operation.upper(),
            "db.collection.name": table,
        }
