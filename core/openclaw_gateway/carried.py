"""Counts what a gateway carries, so that one that was replaced is closed when it carries nothing any more."""

from __future__ import annotations

import asyncio


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

    async def none(self) -> None:
        """Wait until it carries none."""
        while self.exchanges:
            self._none = self._none or asyncio.Event()
            self._none.clear()
            await self._none.wait()
