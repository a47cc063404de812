"""The garbage collector is kept off what boot made, and a gateway that was replaced is not kept with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from openclaw_gateway.serving.collecting import settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


class Thing:
    pass


def circle() -> weakref.ref[Thing]:
    thing = Thing()
    thing.itself = thing  # type: ignore[attr-defined]
    return weakref.ref(thing)


def test_what_exists_is_set_apart_and_what_comes_later_is_collected() -> None:
    kept = Thing()
    settle()
    assert gc.get_freeze_count() > 1_000
    assert not any(found is kept for found in gc.get_objects())
    later = circle()
    gc.collect()
    assert later() is None


def test_what_was_set_apart_and_is_not_used_any_more_goes_at_the_next_time() -> None:
    gc.disable()
    try:
        lost = circle()
        gc.freeze()
        gc.collect()
        assert lost() is not None
        settle()
        assert lost() is None
    finally:
        gc.enable()
