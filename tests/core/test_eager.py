"""Awaiting with a limit behaves as `asyncio.timeout` does, and sets no timer where nothing is waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from openclaw_gateway.eager import within


async def at_once(value: Any) -> Any:
    return value


async def fails(error: BaseException) -> None:
    raise error


async def test_what_does_not_wait_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "timeout", None)
    assert await within(1.0, at_once(7)) == 7
    with pytest.raises(KeyError, match="x"):
        await within(1.0, fails(KeyError("x")))


async def test_what_waits_comes_back_with_its_value() -> None:
    async def waits() -> list[int]:
        found = []
        for number in range(3):
            await asyncio.sleep(0)
            found.append(number)
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)
        return found

    assert await within(5.0, waits()) == [0, 1, 2]


async def test_an_error_after_a_wait_passes_through_and_can_be_handled_inside() -> None:
    handled = []

    async def waits() -> str:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, ValueError("inside"))
        try:
            await future
        except ValueError as error:
            handled.append(str(error))
        raise LookupError("outside")

    with pytest.raises(LookupError, match="outside"):
        await within(5.0, waits())
    assert handled == ["inside"]


async def test_too_long_a_wait_is_a_time_out_and_the_coroutine_cleans_up() -> None:
    cleaned = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(TimeoutError):
        await within(0.01, waits())
    assert cleaned == [True]


async def test_a_cancellation_reaches_the_coroutine_and_is_not_taken_for_a_time_out() -> None:
    seen = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(within(60.0, waits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_what_ends_well_in_spite_of_the_limit_has_its_value_as_with_asyncio() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        raise AssertionError

    async with asyncio.timeout(0.01):
        assert await stubborn() == "late"
    assert await within(0.01, stubborn()) == "late"


async def test_closing_closes_the_coroutine() -> None:
    closed = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    outer = within(60.0, waits())
    outer.send(None)
    outer.close()
    assert closed == [True]
