"""The way to an MCP server that is a process of this gateway: one JSON-RPC message a line on its stdin and stdout.

The SDK's own transport keeps a line of any length and passes on the environment; a process here gets the environment
that it was given, is one group that ends as one, and may say no more in a message than was agreed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

#: for a process to end by itself once its stdin is closed, and once it is told to
_GRACE = 1.0
#: of what a process says on stderr
_LONGEST_LINE = 1_000
_MOST_LINES = 200


@asynccontextmanager
async def process(
    command: Sequence[str],
    environment: Mapping[str, str],
    directory: Path,
    *,
    max_message: int,
    told: Callable[[str], None],
    gone: Callable[[], None],
) -> AsyncIterator[Any]:
    """Run the program; yield the streams of the SDK. Raises OSError where it cannot be run.

    `told` gets the lines of its stderr, as far as they are not too many; `gone` is called when it says no more.
    """
    running = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environment),
        cwd=directory,
        limit=max_message,
        start_new_session=True,
    )
    incoming, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    stopping = False

    async def read() -> None:
        await _read(running, incoming)
        if not stopping:
            gone()

    async with incoming, read_stream, write_stream, outgoing, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(_write, running, outgoing, incoming)
        tasks.start_soon(_listen, running, told)
        try:
            yield read_stream, write_stream
        finally:
            stopping = True
            with anyio.CancelScope(shield=True):
                await _stop(running)
            tasks.cancel_scope.cancel()


async def _read(running: asyncio.subprocess.Process, incoming: Any) -> None:
    """Pass on what the process says. The end of the stream is the end of the connection."""
    assert running.stdout is not None
    async with incoming:
        with suppress(ValueError, anyio.BrokenResourceError, anyio.ClosedResourceError):  # ValueError: a line too long
            while line := await running.stdout.readline():
                try:
                    message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError as error:
                    await incoming.send(error)
                else:
                    await incoming.send(SessionMessage(message))


async def _write(running: asyncio.subprocess.Process, outgoing: Any, incoming: Any) -> None:
    assert running.stdin is not None
    with suppress(OSError, anyio.ClosedResourceError):
        async with outgoing:
            async for item in outgoing:
                running.stdin.write(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                await running.stdin.drain()
            return
    await incoming.aclose()  # nobody reads there: what waits for an answer would wait for ever


async def _listen(running: asyncio.subprocess.Process, told: Callable[[str], None]) -> None:
    assert running.stderr is not None
    lines = 0
    while True:
        try:
            line = await running.stderr.readline()
        except ValueError:
            continue
        if not line:
            return
        lines += 1
        if lines <= _MOST_LINES:
            told(line.decode(errors="replace").rstrip()[:_LONGEST_LINE])


async def _stop(running: asyncio.subprocess.Process) -> None:
    """End the process and all that it started: by the end of its input, by asking, by force."""
    assert running.stdin is not None
    running.stdin.close()
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await running.wait()
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGKILL)  # what it left behind
