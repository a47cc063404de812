"""Keeps the garbage collector off what boot has made: it is there for the life of the gateway, and is not looked at."""

from __future__ import annotations

import gc

#: allocations between two looks at the youngest objects: some hundred requests, where the default is seven
_YOUNG = 10_000


def settle() -> None:
    """Set apart everything that exists now. Call it after a start and after a reload, when the old gateway is closed.

    A request makes hardly any cycle, so what is left to collect is little and young. It looks at everything once, and
    that holds the loop for about a tenth of a second.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
