"""Says where the process is that serves a configuration, and turns SIGHUP and changed files into reloads.

SIGUSR1 is a rehearsal: what a reload would do is found out and left, and nothing is done. Several may serve from one
data_dir, the old and the new half of a rolling restart say, but not where each would count limits by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from openclaw_gateway.config.effective import FILE
from openclaw_gateway.errors import StartFailed
from openclaw_gateway.serving.notify import notify, reloading
from openclaw_gateway.serving.shared_folder import make

try:
    import fcntl
except ImportError:  # Windows: nothing is found there by signals either
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("openclaw.reload")

#: in data_dir: the process to signal, what became of its last reload, and what the last rehearsal has found
PID_FILE, OUTCOME_FILE, REHEARSAL_FILE = "gateway.pid", "reload.json", "rehearsal.json"

#: in data_dir: a file of each process that serves, which it keeps locked
_MARK = "serving-"

Report = Callable[[], Awaitable[dict[str, Any]]]


@asynccontextmanager
async def present(
    folder: Path,
    reload: Report,
    rehearse: Report,
    *,
    files: tuple[Path, Path],
    watch: float,
    alone: Sequence[str] = (),
) -> AsyncIterator[None]:
    """Be found under `folder` for as long as the block; every SIGHUP is a reload, whose outcome is left there too.

    The same goes for SIGUSR1 and `rehearse`.

    `files` are the configuration and the folder of tiers; `watch` is how often they are looked at for a change, in
    seconds, and 0 never. `alone` names the plugins whose state is this process's own. Raises StartFailed where there
    are some and another process serves from `folder`.
    """
    await asyncio.to_thread(make, folder)
    with _marked(folder) as mark:
        if alone and (others := serving(folder, besides=mark)):
            raise StartFailed(
                f"process {others[0]} serves from {folder} already, and {', '.join(alone)} would count here by itself, "
                "so that each admits the full limits: stop the other first, give this one a data_dir of its own, "
                "or share the stores of both"
            )
        async with _found(folder, mark, reload, rehearse, files, watch):
            yield


@asynccontextmanager
async def _found(
    folder: Path, mark: Path, reload: Report, rehearse: Report, files: tuple[Path, Path], watch: float
) -> AsyncIterator[None]:
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
        with suppress(OSError):
            _hand_over(folder, mark)
        if hasattr(signal, "SIGHUP"):
            loop.remove_signal_handler(signal.SIGHUP)
            loop.remove_signal_handler(signal.SIGUSR1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def serving(folder: Path, *, besides: Path | None = None) -> list[int]:
    """Return the processes that serve from `folder`, the one that began last first; `besides` is one's own mark.

    By locks, which end with their process: a number alone may be another program's by now.
    """
    found: list[tuple[int, int]] = []
    for mark in folder.glob(f"{_MARK}*"):
        with suppress(FileNotFoundError, ValueError):
            began, pid = (int(part) for part in mark.name.removeprefix(_MARK).split("-"))
            if mark != besides and _held(mark, pid):
                found.append((began, pid))
    return [pid for _, pid in sorted(found, reverse=True)]


def _held(mark: Path, pid: int) -> bool:
    """Whether its process lives; a mark of a dead one is removed."""
    if fcntl is None:
        return False
    with mark.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks: the number has to do
            return Path(f"/proc/{pid}").exists()
        mark.unlink()
        return False


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    mark = folder / f"{_MARK}{time.time_ns()}-{os.getpid()}"
    fresh = folder / f".{mark.name}"
    with fresh.open("wb") as file:
        if fcntl is not None:
            with suppress(OSError):  # as above
                fcntl.flock(file, fcntl.LOCK_EX)
        fresh.rename(mark)  # nobody sees it unlocked
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)


def _hand_over(folder: Path, mark: Path) -> None:
    """Name another process that serves from here in place of this one, or nobody."""
    pid = folder / PID_FILE
    others = serving(folder, besides=mark)
    if not others:
        (folder / FILE).unlink(missing_ok=True)
    if pid.read_text() != str(os.getpid()):
        return
    if others:
        pid.write_text(str(others[0]))
    else:
        pid.unlink()


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
