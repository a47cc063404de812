"""One worker of several: serves on the sockets that its supervisor has bound, and talks to it over one channel.

The channel carries a JSON object a line. When it breaks the supervisor is gone, and the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

logger = logging.getLogger("openclaw.workers")

#: how often a worker says that its event loop turns, in seconds
PULSE = 1.0


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is started with; `public`, `operations` and `channel` are descriptors that it inherits."""

    config: str
    shown: str
    index: int
    count: int
    folder: str
    generation: int
    channel: int = -1
    public: tuple[int, ...] = ()
    operations: tuple[int, ...] = ()


class WorkerState(msgspec.Struct, frozen=True):
    """One worker as the supervisor sees it. `restarts` counts its unexpected ends."""

    index: int
    pid: int
    serving: bool
    restarts: int


class Workers:
    """The workers of one gateway, as seen by one of them."""

    def __init__(self, index: int, count: int, folder: Path, writer: asyncio.StreamWriter) -> None:
        self.index = index
        self.count = count
        #: where workers leave files for one another; it is emptied at a start of the gateway
        self.folder = folder
        self.states: tuple[WorkerState, ...] = ()
        self._writer = writer
        self._answers: dict[str, Callable[[], Awaitable[None]]] = {}
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, topic: str, do: Callable[[], Awaitable[None]]) -> None:
        """Call `do` whenever another worker asks for `topic`. Set anew at each reload."""
        self._answers[topic] = do

    async def ask(self, topic: str, within: float) -> None:
        """Have every other worker do what it has registered for `topic`; return when all have, or after `within` s."""
        self._count += 1
        answered = self._asked[self._count] = asyncio.get_running_loop().create_future()
        self.tell({"ask": topic, "id": self._count, "within": within})
        await asyncio.wait([answered], timeout=within)
        self._asked = {id: asked for id, asked in self._asked.items() if asked is not answered}

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message to the supervisor."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message of the supervisor."""
        if "workers" in message:
            self.states = msgspec.convert(message["workers"], tuple[WorkerState, ...])
        elif "asked" in message:
            asked = self._asked.get(message["asked"])
            if asked is not None and not asked.done():
                asked.set_result(None)
        elif "do" in message:
            task = asyncio.create_task(self._do(message["do"], message["token"]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _do(self, topic: str, token: list[int]) -> None:
        try:
            if topic in self._answers:
                await self._answers[topic]()
        except Exception as error:
            logger.error("what another worker asked for failed: %s", topic, exc_info=error)
        self.tell({"done": token})


async def _work(order: Order) -> int:
    from openclaw_gateway.config.layers import Layers, TomlFile
    from openclaw_gateway.gateway import Gateway
    from openclaw_gateway.serving.front import rehearse_and_report, reload_and_report
    from openclaw_gateway.serving.server import Server

    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=order.channel))
    workers = Workers(order.index, order.count, Path(order.folder), writer)
    layers = Layers(TomlFile(Path(order.config), order.shown))
    gateway = await asyncio.to_thread(Gateway, layers, generation=order.generation, workers=workers)

    def ready() -> None:
        at = {"url": gateway.url, "operationsUrl": gateway.operations_url}
        workers.tell({"ready": {**at, "notices": gateway.notices()}})

    server = Server(
        gateway,
        ready=ready,
        public=[socket.socket(fileno=fd) for fd in order.public],
        operations=[socket.socket(fileno=fd) for fd in order.operations],
    )

    async def reload(*, rehearsal: bool) -> None:
        report = rehearse_and_report if rehearsal else reload_and_report
        workers.tell({"reloaded": await report(server.front)})

    async def listen() -> None:
        reloads: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            message = json.loads(line)
            if "reload" in message:
                task = asyncio.create_task(reload(rehearsal=message["reload"] == "rehearsal"))
                reloads.add(task)
                task.add_done_callback(reloads.discard)
            else:
                workers.hear(message)
        logger.error("the supervisor is gone; worker %d drains and ends", order.index)
        os.kill(os.getpid(), signal.SIGTERM)

    async def pulse() -> None:
        while True:
            workers.tell({"alive": True})
            await asyncio.sleep(PULSE)

    # A reload comes over the channel: a signal to the whole group must not make each reload by itself.
    for asks in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(asks, signal.SIG_IGN)
    tasks = [asyncio.create_task(listen()), asyncio.create_task(pulse())]
    try:
        return await server.serve_until_stopped()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        writer.close()


def main(arguments: str) -> int:
    """Serve as one worker; return the exit status."""
    from openclaw_gateway.errors import ConfigError, StartFailed
    from openclaw_gateway.serving.server import in_loop

    order = msgspec.json.decode(arguments, type=Order)
    try:
        return in_loop(_work(order))
    except (ConfigError, StartFailed) as error:
        print(f"worker {order.index} not started: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 1


if __name__ == "__main__":
    # By name: what is run as `__main__` would be a second copy of these classes.
    from openclaw_gateway.serving import workers

    sys.exit(workers.main(sys.argv[1]))
