"""One place for a worker: the sockets that stay while processes come and go, and the process that has it now."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from openclaw_gateway.serving import listeners
from openclaw_gateway.serving.workers import Order, WorkerState

logger = logging.getLogger("openclaw.supervisor")

#: a worker that has said nothing for so many seconds hangs, and is ended
_SILENCE = 30.0
#: the same for the time before its first word: a slow machine imports for long
_START = 120.0
#: bytes of one message; a report names every problem of a configuration
_LINE = 2**24
#: seconds for a worker to reload
_RELOAD = 60.0


class Place:
    """One worker, and what the supervisor knows of it."""

    def __init__(self, index: int, public: list[socket.socket], operations: list[socket.socket]) -> None:
        self.index = index
        self.serving = asyncio.Event()
        self.ended = asyncio.Event()
        self.restarts = 0
        #: what it said when it was ready
        self.said: dict[str, Any] = {}
        self.returncode: int | None = None
        self._public = public
        #: the addresses of sockets that are closed for now
        self._closed: list[list[tuple[int, Any]]] = []
        self._operations = operations
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reloaded: asyncio.Future[dict[str, Any]] | None = None

    @property
    def state(self) -> WorkerState:
        pid = self._process.pid if self._process is not None else 0
        return WorkerState(self.index, pid, self.serving.is_set(), self.restarts)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one message to the worker, if it serves."""
        if self._writer is not None and self.serving.is_set():
            self._writer.write(json.dumps(message).encode() + b"\n")

    def signal(self, how: signal.Signals) -> None:
        """Send a signal to the worker, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)

    async def run(self, order: Order, environ: Mapping[str, str], hear: Callable[[Place, dict[str, Any]], None]) -> int:
        """Start a process and listen to it until its end; return its exit status.

        `order` says everything but what it inherits; `hear` gets what is not for this place alone.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            public, operations = (tuple(s.fileno() for s in sockets) for sockets in (self._public, self._operations))
            order = msgspec.structs.replace(order, channel=theirs.fileno(), public=public, operations=operations)
            # A new interpreter: a fork would share the state of random numbers and of every library at hand. A session
            # of its own, so that a terminal's ^C comes once, from us. -P: nothing is imported from where we stand.
            process = self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "openclaw_gateway.serving.workers", msgspec.json.encode(order).decode()),
                stdin=asyncio.subprocess.DEVNULL,
                env=environ,
                pass_fds=(*public, *operations, theirs.fileno()),
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_LINE)
        patience = _START
        try:
            while True:
                async with asyncio.timeout(patience):
                    line = await reader.readline()
                if not line:
                    break
                patience = _SILENCE
                self._hear(json.loads(line), hear)
        except TimeoutError:
            logger.error("worker %d says nothing any more and is killed", self.index)
            self.signal(signal.SIGKILL)
        except ConnectionError:
            pass  # it died with something of ours unread
        finally:
            self._writer.close()
        self.returncode = await process.wait()
        self.serving.clear()
        self.ended.set()
        self._settle(_failed("the worker ended during the reload"))
        return self.returncode

    async def reload(self, how: Literal["real", "rehearsal"] = "real") -> dict[str, Any]:
        """Have it reload, or say what a reload would do; return its report."""
        self._reloaded = asyncio.get_running_loop().create_future()
        self.tell({"reload": how})
        try:
            async with asyncio.timeout(_RELOAD):
                return await self._reloaded
        except TimeoutError:
            return _failed(f"no word of the reload within {_RELOAD:g}s")

    def close(self) -> None:
        """Leave what connects to the others: without a process it would wait in the queue of our sockets."""
        self._closed = self._closed or [listeners.unlisten(sockets) for sockets in (self._public, self._operations)]

    def open(self) -> None:
        """Take connections again, on the same addresses. Raises OSError where they cannot be had."""
        if self._closed:
            self._public, self._operations = (listeners.listen_again(known) for known in self._closed)
            self._closed = []

    def _hear(self, message: dict[str, Any], hear: Callable[[Place, dict[str, Any]], None]) -> None:
        if "reloaded" in message:
            self._settle(message["reloaded"])
            return
        if "ready" in message:
            self.said = message["ready"]
            self.serving.set()
        hear(self, message)

    def _settle(self, report: dict[str, Any]) -> None:
        if self._reloaded is not None and not self._reloaded.done():
            self._reloaded.set_result(report)


def _failed(problem: str) -> dict[str, Any]:
    return {"ok": False, "generation": 0, "problems": [problem]}
