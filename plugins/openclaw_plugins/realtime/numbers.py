"""The metrics of the socket; every series is looked up once."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from openclaw_gateway.api import Host


class Numbers:
    """Counts connections and frames. Labels come from the configuration and the protocol, never from clients."""

    def __init__(self, host: Host) -> None:
        registry = host.registry
        self._active = host.metric(
            Gauge, "websocket_connections_active", "Open WebSockets", ("tier",), multiprocess_mode="sum"
        )
        self._seconds = Histogram(
            "websocket_connection_duration_seconds",
            "From accept to close",
            ("tier",),
            buckets=(1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86_400),
            registry=registry,
        )
        self._frames = Counter(
            "websocket_messages_total", "Frames, by direction and type", ("direction", "type"), registry=registry
        )
        self._known: dict[tuple[str, str], Counter] = {}

    def opened(self, tier: str) -> None:
        self._active.labels(tier).inc()

    def closed(self, tier: str, seconds: float) -> None:
        self._active.labels(tier).dec()
        self._seconds.labels(tier).observe(seconds)

    def frame(self, direction: str, type: str) -> None:
        key = (direction, type)
        child = self._known.get(key)
        if child is None:
            child = self._known[key] = self._frames.labels(direction, type)
        child.inc()
