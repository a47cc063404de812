"""The lane of the durable account: who shares a transaction, who fails with whom, what becomes of those who left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from openclaw_gateway.api import Hold, Limit, StoreBusy, StoreUnavailable, Take
from openclaw_plugins.accounts.lane import Lane, Works
from openclaw_plugins.accounts.work import Reservation, Settlement

#: whoever is forgotten here waits for ever
pytestmark = pytest.mark.timeout(15)

TAKE = Take(Limit(name="quota.messages", meter="messages", kind="quota", limit=100), "-")


class Store:
    """What the lane carries to: `does` decides what becomes of a batch, once `open` lets it through."""

    def __init__(self, does: Callable[[Works], None] = lambda works: None) -> None:
        self.does = does
        self.batches: list[Works] = []
        self.sizes: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.lane = Lane(self._apply, self.sizes.append)

    async def _apply(self, works: Works) -> None:
        self.batches.append(list(works))
        await self.open.wait()
        self.does(works)
        for work in works:
            if isinstance(work, Reservation):
                work.holds = [Hold("h", TAKE, work.organization, "2026-11")]

    def enter(self, *names: str) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.lane.through(Reservation(name, [TAKE]))) for name in names]

    def names(self) -> list[list[str]]:
        return [[work.organization for work in works if isinstance(work, Reservation)] for works in self.batches]


async def told(*tasks: asyncio.Task[None]) -> list[str | None]:
    async with asyncio.timeout(10):
        found = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(one).__name__ if one is not None else None for one in found]


async def test_what_comes_while_one_is_on_its_way_goes_together_and_no_more_than_256() -> None:
    store = Store()
    store.open.clear()
    first = store.enter("first")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    others = store.enter(*(f"{i}" for i in range(300)))
    await asyncio.sleep(0)
    store.open.set()
    assert set(await told(*first, *others)) == {None}
    assert store.sizes == [len(batch) for batch in store.batches] == [1, 256, 44]
    assert [name for batch in store.names() for name in batch] == ["first", *(f"{i}" for i in range(300))]
    await store.lane.ended()
    assert await told(*store.enter("later")) == [None]


async def test_a_store_that_does_not_answer_fails_all_of_the_batch_and_none_that_comes_later() -> None:
    def fails(works: Works) -> None:
        raise StoreUnavailable("database", "gone")

    store = Store(fails)
    assert await told(*store.enter("a", "b")) == ["StoreUnavailable"] * 2
    assert len(store.batches) == 1
    store.does = lambda works: None
    assert await told(*store.enter("c")) == [None]


async def test_a_value_that_cannot_be_stored_fails_alone() -> None:
    def refuses(works: Works) -> None:
        if any(isinstance(work, Reservation) and work.organization == "odd" for work in works):
            raise ValueError("odd")

    store = Store(refuses)
    assert await told(*store.enter("a", "odd", "b")) == [None, "ValueError", None]
    assert store.names() == [["a", "odd", "b"], ["a"], ["odd"], ["b"]]


@pytest.mark.parametrize(("busy", "expected"), [(2, None), (3, "StoreBusy")])
async def test_a_lock_of_another_is_tried_three_times(busy: int, expected: str | None) -> None:
    store = Store()

    def locked(works: Works) -> None:
        if len(store.batches) <= busy:
            raise StoreBusy("database", "locked")

    store.does = locked
    assert await told(*store.enter("a", "b")) == [expected] * 2
    assert len(store.batches) == 3


async def test_one_who_leaves_before_its_turn_reserves_nothing_and_a_settlement_is_done_all_the_same() -> None:
    store = Store()
    store.open.clear()
    first, *_ = store.enter("first")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (gone,) = store.enter("gone")
    settled = asyncio.create_task(store.lane.through(Settlement([], "committed", None, None, bound=False)))
    await asyncio.sleep(0)
    gone.cancel()
    settled.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(gone, settled, return_exceptions=True)
    store.open.set()
    assert await told(first) == [None]
    await store.lane.ended()
    assert [[type(work) for work in batch] for batch in store.batches] == [[Reservation], [Settlement]]


async def test_what_one_who_left_was_given_meanwhile_is_given_back_once() -> None:
    store = Store()
    store.open.clear()
    (gone,) = store.enter("gone")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(store.batches) == 1
    gone.cancel()
    assert await told(gone) == ["CancelledError"]
    store.open.set()
    await store.lane.ended()
    ((back,),) = store.batches[1:]
    assert isinstance(back, Settlement)
    assert (back.how, [hold.id for hold in back.holds]) == ("voided", ["h"])


async def test_what_one_was_given_who_leaves_in_that_very_moment_is_given_back() -> None:
    store = Store()
    (gone,) = store.enter("gone")

    def leaves(works: Works) -> None:
        # It is cancelled after its answer is there and before it has seen it.
        asyncio.get_running_loop().call_soon(gone.cancel)
        store.does = lambda works: None

    store.does = leaves
    assert await told(gone) == ["CancelledError"]
    await store.lane.ended()
    ((back,),) = store.batches[1:]
    assert isinstance(back, Settlement) and back.how == "voided"


async def test_a_fault_fails_those_who_wait_and_stops_nobody_after_them() -> None:
    def broken(works: Works) -> None:
        raise AssertionError("a fault of ours")

    store = Store(broken)
    heard: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    assert await told(*store.enter("a", "b")) == ["AssertionError"] * 2
    store.does = lambda works: None
    assert await told(*store.enter("c")) == [None]
