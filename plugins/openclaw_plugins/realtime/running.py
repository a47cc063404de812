"""All turns of the process that sockets began: they outlive their sockets, and never the process without a trace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from openclaw_gateway.api import Conversation, EventBus, Host

if TYPE_CHECKING:
    from openclaw_plugins.realtime.turns import Turn


class Turns:
    """All turns of the process that sockets began; the plugin waits for them when it ends."""

    def __init__(
        self,
        host: Host,
        conversation: Conversation,
        events: EventBus,
        *,
        at_once: int,
        waiting: int,
        waiting_bytes: int,
    ) -> None:
        self.host = host
        self.conversation = conversation
        self.events = events
        self.at_once = at_once
        self.waiting = waiting
        self.waiting_bytes = waiting_bytes
        self._tasks: dict[asyncio.Task[None], Turn] = {}

    def start(self, turn: Turn) -> None:
        task = asyncio.create_task(turn.run())
        self._tasks[task] = turn
        task.add_done_callback(self._tasks.pop)

    async def cut(self, within: float) -> None:
        """End what still runs: it is stored and charged as far as it came."""
        for turn in self._tasks.values():
            turn.cancel("shutdown")
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=within)
