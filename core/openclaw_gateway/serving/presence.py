"""Says where the process is that serves a configuration, and turns SIGHUP and changed files into reloads.

SIGUSR1 is a rehearsal: what a reload would do is found out and left, and nothing is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from openclaw_gateway.serving.notify import notify, reloading

logger = logging.getLogger("openclaw.reload")

#: in data_dir: the process to signal, what became of its last reload, and what the last rehearsal has found
PID_FILE, OUTCOME_FILE, REHEARSAL_FILE = "gateway.pid", "reload.json", "rehearsal.json"

Report = Callable[[], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def present(
    folder: Path, reload: Report, rehearse: Report, *, files: tuple[Path, Path], watch: float
) -> AsyncIterator[None]:
    """Be found under `folder` for as long as the block; every SIGHUP is a reload, whose outcome is left there too.

    The same goes for SIGUSR1 and `rehearse`.

    `files` are the configuration and the folder of tiers; `watch` is how often they are looked at for a change, in
    seconds, and 0 never.
    """
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    pid = folder / PID_FILE
    asked, asked_to_rehearse = asyncio.Event(), asyncio.Event()

    async def keep_reloading() -> None:
        while True:
            await asked.wait()
            asked.clear()
            reloading()
            report = await reload()
            notify(READY="1", STATUS=_status(report))
            _leave(report, folder / OUTCOME_FILE)

    async def keep_rehearsing() -> None:
        while True:
            await asked_to_rehearse.wait()
            asked_to_rehearse.clear()
            _leave(await rehearse(), folder / REHEARSAL_FILE)

    async def keep_watching() -> None:
        seen = await asyncio.to_thread(fingerprint, *files)
        while True:
            await asyncio.sleep(watch)
            found = await asyncio.to_thread(fingerprint, *files)
            if found != seen:
                seen = found
                asked.set()

    tasks = [asyncio.create_task(keep_reloading()), asyncio.create_task(keep_rehearsing())]
    if watch:
        tasks.append(asyncio.create_task(keep_watching()))
    loop = asyncio.get_running_loop()
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        loop.add_signal_handler(signal.SIGUSR1, asked_to_rehearse.set)
    pid.write_text(str(os.getpid()))
    try:
        yield
    finally:
        # Another process may serve from here by now: a rolling restart, say.
        with suppress(OSError):
            if pid.read_text() == str(os.getpid()):
                pid.unlink()
        if hasattr(signal, "SIGHUP"):
            loop.remove_signal_handler(signal.SIGHUP)
            loop.remove_signal_handler(signal.SIGUSR1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def fingerprint(config: Path, tiers: Path) -> bytes:
    """Hash what a configuration is made of. By content: times of change lie on network drives and in images."""
    digest = hashlib.blake2b()
    for path in (config, *sorted(tiers.glob("*.toml"))):
        digest.update(path.name.encode() + b"\0")
        with suppress(OSError):
            digest.update(path.read_bytes())
        digest.update(b"\0")
    return digest.digest()


def _leave(report: dict[str, Any], path: Path) -> None:
    fresh = path.with_suffix(".new")
    try:
        fresh.write_text(json.dumps(report))
        fresh.replace(path)
    except OSError as error:
        logger.error("the outcome of a reload could not be left in %s: %s", path, error.strerror)


def _status(report: dict[str, Any]) -> str:
    if report["ok"]:
        return f"serving configuration {report['generation']}"
    return f"serving configuration {report['generation']}; the last reload was refused"
