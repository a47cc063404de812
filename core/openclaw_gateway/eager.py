"""Awaits with a time limit that costs nothing where there is nothing to wait for.

Most steps that may wait answer from memory. `asyncio.timeout` sets a timer and takes it back for each of them, which
is more than all that they do.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine returns. Raises TimeoutError where it waits for longer than `seconds`.

    It runs at once up to its first wait, and only then is there a timer. What it raises passes through.
    """
    done, found = begin(coroutine)
    returned: T = found if done else await finish(seconds, coroutine, found)
    return returned


def begin(coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
    """Run a coroutine up to its first wait: return True and what it returns, or False and what it waits for.

    This and `finish` are `within` in two steps, without a coroutine around one that does not wait.
    """
    try:
        return False, coroutine.send(None)
    except StopIteration as done:
        return True, done.value


async def finish(seconds: float, coroutine: Coroutine[Any, Any, T], waits_for: Any) -> T:
    """Go on with a coroutine that was begun, for `seconds` at most. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        return await resumed(coroutine, waits_for)


@types.coroutine
def resumed(coroutine: Coroutine[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Go on with a coroutine that was run by hand up to a wait, and waits for that: as `await` would, from there."""
    while True:
        thrown: BaseException | None = None
        try:
            given = yield waits_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle: a cancellation above all
            thrown = error
        try:
            waits_for = coroutine.send(given) if thrown is None else coroutine.throw(thrown)
        except StopIteration as done:
            found: T = done.value
            return found
