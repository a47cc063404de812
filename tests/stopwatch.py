"""What work costs, for tests that compare costs: the least of some runs, which a busy machine disturbs least."""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(work: Callable[[], object], runs: int = 3) -> float:
    """CPU seconds of this process for one run of `work`."""
    best = float("inf")
    for _ in range(runs):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best
