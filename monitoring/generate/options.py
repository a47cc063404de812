"""What differs between installations."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """What differs between installations, and `speed` by which tests shorten every window and every `for`."""

    job: str = "openclaw-gateway"
    pods: str = "openclaw-gateway.*"
    #: routes that take as long as a model takes, left out of the latency rules where that is no news
    slow_routes: tuple[str, ...] = ()
    active_sessions: int = 1000
    runbooks: str = "docs/reference/alerts.md"
    speed: float = 1.0

    def minutes(self, count: float) -> str:
        seconds = count * 60 / self.speed
        return f"{seconds / 60:g}m" if seconds % 60 == 0 else f"{max(1, round(seconds))}s"
