"""Time as the gateway sees it; a test gives another clock."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Where a process takes its time from."""

    def now(self) -> float:
        """Unix time in seconds, for what is shown and stored."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, for durations."""
        ...


class SystemClock:
    """The machine's clock."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.perf_counter)
