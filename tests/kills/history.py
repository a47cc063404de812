"""What a run of kills left behind, and what must hold of it. The checker is a function of its own, tested by itself."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

Outcome = Literal["stored", "refused", "lost", "unknown"]


class Operation(msgspec.Struct, frozen=True):
    """One thing that a client wanted once, under one key, with what it was told in the end."""

    key: str
    outcome: Outcome


class Aftermath(msgspec.Struct, frozen=True):
    """What the database holds after the last crash, once every hold had its time."""

    #: the key in each stored message
    stored: tuple[str, ...]
    used: int
    held: int
    committed: int
    #: the highest `used + held` that was seen while it ran
    peak: int
    events: tuple[tuple[str, str], ...]


def faults(operations: list[Operation], after: Aftermath, limit: int) -> list[str]:
    """Return every promise that the history breaks."""
    found = []
    stored = Counter(after.stored)
    for operation in operations:
        times = stored.pop(operation.key, 0)
        if operation.outcome == "stored" and times == 0:
            found.append(f"{operation.key}: acknowledged and not stored")
        if operation.outcome == "refused" and times:
            found.append(f"{operation.key}: refused and stored")
        if times > 1:
            found.append(f"{operation.key}: stored {times} times")
    found += [f"{key}: stored and never asked for" for key in stored]
    if after.used != len(after.stored):
        found.append(f"{after.used} are charged and {len(after.stored)} stored")
    if after.committed != after.used:
        found.append(f"{after.used} are used and {after.committed} committed")
    if after.peak > limit or after.used > limit:
        found.append(f"{max(after.peak, after.used)} of {limit} were granted")
    if after.held:
        found.append(f"{after.held} are held past their time")
    found += [f"{event}: told {times} times" for event, times in Counter(after.events).items() if times > 1]
    if after.used >= limit and len(after.events) < 2:
        found.append("a threshold was passed and never told")
    return found
