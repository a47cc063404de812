"""What a gateway carries: counted for the reload, and a reason to let others go first."""

from __future__ import annotations

import asyncio

from openclaw_gateway.carried import Carried


async def _steps(carried: Carried, name: str, told: list[str]) -> None:
    for step in ("1", "2"):
        told.append(name + step)
        await carried.in_step()


async def test_those_that_came_together_go_in_step() -> None:
    carried, told = Carried(), list[str]()
    carried.exchanges = 2
    await asyncio.gather(_steps(carried, "a", told), _steps(carried, "b", told))
    assert told == ["a1", "b1", "a2", "b2"]


async def test_who_is_alone_goes_on_at_once() -> None:
    carried, told = Carried(), list[str]()
    carried.exchanges = 1
    asyncio.get_running_loop().call_soon(told.append, "the loop's next turn")
    await _steps(carried, "a", told)
    assert told == ["a1", "a2"]


async def test_who_waits_for_nothing_to_be_carried_waits_for_the_last() -> None:
    carried = Carried()
    await carried.none()
    carried.exchanges = 2
    waiting = asyncio.create_task(carried.none())
    carried.ended()
    await asyncio.sleep(0)
    assert not waiting.done()
    carried.ended()
    await asyncio.wait_for(waiting, 1)
