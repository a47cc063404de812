"""Says where the process is that serves a configuration, and turns SIGHUP and changed files into reloads."""

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

#: in data_dir: the process to signal, and what became of its last reload
PID_FILE, OUTCOME_FILE = "gateway.pid", "reload.json"


@asynccontextmanager
async def present(
    folder: Path, reload: Callable[[], Awaitable[dict[str, Any]]], *, files: tuple[Path, Path], watch: float
) -> AsyncIterator[None]:
    """Be found under `folder` for as long as the block; every SIGHUP is a reload, whose outcome is left there too.

    `files` are the configuration and the folder of tiers; `watch` is how often they are looked at for a change, in
    seconds, and 0 never.
    """
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    pid, outcome = folder / PID_FILE, folder / OUTCOME_FILE
    asked = asyncio.Event()

    async def keep_reloading() -> None:
        while True:
            await asked.wait()
            asked.clear()
            reloading()
            report = await reload()
            notify(READY="1", STATUS=_status(report))
            fresh = outcome.with_suffix(".new")
            try:
                fresh.write_text(json.dumps(report))
                fresh.replace(outcome)
            except OSError as error:
                logger.error("the outcome of a reload could not be left in %s: %s", outcome, error.strerror)

    async def keep_watching() -> None:
        seen = await asyncio.to_thread(fingerprint, *files)
        while True:
            await asyncio.sleep(watch)
            found = await asyncio.to_thread(fingerprint, *files)
            if found != seen:
                seen = found
                asked.set()

    tasks = [asyncio.create_task(keep_reloading())]
    if watch:
        tasks.append(asyncio.create_task(keep_watching()))
    loop = asyncio.get_running_loop()
    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, asked.set)
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


def _status(report: dict[str, Any]) -> str:
    if report["ok"]:
        return f"serving configuration {report['generation']}"
    return f"serving configuration {report['generation']}; the last reload was refused"
