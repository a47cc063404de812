"""Counts what a gateway carries: one that was replaced is closed once that is nothing, and what comes together goes in
step.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator


class Carried:
    """How many exchanges a gateway carries just now."""

    __slots__ = ("_none", "exchanges")

    def __init__(self) -> None:
        self.exchanges = 0
        self._none: asyncio.Event | None = None

    def ended(self) -> None:
        self.exchanges -= 1
        if not self.exchanges and self._none is not None:
            self._none.set()

    @types.coroutine
    def in_step(self) -> Generator[None, None, None]:
        """Go on in the next turn of the event loop, after all else that is ready, where others are under way.

        What many requests do one after the other costs a processor less than what each of them does from end to end:
        it finds what it needs where the last one left it. See `docs/decisions/0013-requests-in-step.md`.
        """
        if self.exchanges > 1:
            yield

    async def none(self) -> None:
        """Wait until it carries none."""
        while self.exchanges:
            self._none = self._none or asyncio.Event()
            self._none.clear()
            await self._none.wait()
