"""The checker finds each way in which a history can be wrong, and nothing in one that is right."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from .history import Aftermath, Operation, Outcome, faults

TOLD = (("2026-11", "warning"), ("2026-11", "exhausted"))
GOOD = Aftermath(stored=("a", "b"), used=2, held=0, committed=2, peak=3, events=TOLD)
OUTCOMES: list[tuple[str, Outcome]] = [("a", "stored"), ("b", "unknown"), ("c", "refused"), ("d", "unknown")]


def check(after: Aftermath, limit: int = 3) -> list[str]:
    return faults([Operation(key, outcome) for key, outcome in OUTCOMES], after, limit)


def test_a_good_history_has_no_fault() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"stored": ("b", "d")}, "a: acknowledged and not stored"),
        ({"stored": ("a", "c")}, "c: refused and stored"),
        ({"stored": ("a", "b", "b"), "used": 3, "committed": 3}, "b: stored 2 times"),
        ({"stored": ("a", "x")}, "x: stored and never asked for"),
        ({"used": 3, "committed": 3}, "3 are charged and 2 stored"),
        ({"committed": 1}, "2 are used and 1 committed"),
        ({"peak": 4}, "4 of 3 were granted"),
        ({"held": 1}, "1 are held past their time"),
        ({"events": (*TOLD, TOLD[0])}, "('2026-11', 'warning'): told 2 times"),
    ],
)
def test_each_fault_is_found(change: dict[str, Any], fault: str) -> None:
    assert fault in check(replace(GOOD, **change))


def test_a_threshold_that_nobody_was_told_of_is_found() -> None:
    assert "a threshold was passed and never told" in check(replace(GOOD, events=TOLD[:1]), limit=2)
