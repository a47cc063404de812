"""Writes lines to a terminal, a pipe or a rotated file from a thread of its own; it must never make a caller wait."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

KEPT = 14
INTERVAL = 0.05
#: records that are encoded in one go: a tenth of a millisecond, for which no request goes on
_BATCH = 32
#: seconds between two goes, in which whoever waits for the interpreter gets it
_PAUSE = 0.001


class Target(Protocol):
    """Where bytes end."""

    def write(self, data: bytes) -> int:
        """Return how many bytes it took: fewer than there are where it cannot take more now."""
        ...

    def close(self) -> None: ...


class Sink:
    """A bounded queue of records and the thread that encodes and writes them, every 50 ms.

    `encode` turns a record into a line, in the thread. What does not fit into the queue, or cannot be written, is
    counted by `dropped` and is gone; `loss` makes the record that tells of it, once lines are written again.
    """

    def __init__(
        self,
        encode: Callable[[Any], bytes],
        open_target: Callable[[], Target],
        dropped: Callable[[float], None],
        *,
        loss: Callable[[int], Any] | None = None,
        capacity: int = 20_000,
    ) -> None:
        self._encode = encode
        self._open_target = open_target
        self._dropped = dropped
        self._loss = loss
        #: lines that did not fit (counted by callers), lines that could not be written, and how many were told of
        self._overflown = self._failed = self._told = 0
        #: the target has taken a part of a line and not the rest
        self._torn = False
        self._capacity = capacity
        self._records: deque[Any] = deque()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, record: Any) -> None:
        """Take a record; from any thread, without waiting."""
        if len(self._records) < self._capacity:
            self._records.append(record)
        else:
            self._overflown += 1
            self._dropped(1)

    def start(self) -> None:
        """Open the target and begin to write. Raises OSError where the target cannot be opened."""
        target = self._open_target()
        self._stopping.clear()
        # A daemon, so that a disk that hangs cannot keep the process from its end.
        self._thread = threading.Thread(target=self._run, args=(target,), name="access-log", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> bool:
        """Write what is queued and end; False where the target did not take it in time."""
        self._stopping.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _run(self, target: Target) -> None:
        while True:
            last = self._stopping.wait(INTERVAL)
            while self._records:
                self._write_batch(target)
                if self._records:
                    self._stopping.wait(_PAUSE)
            if last:
                break
        with contextlib.suppress(OSError, ValueError):
            target.close()

    def _write_batch(self, target: Target) -> None:
        lines: list[bytes] = []
        lost = self._overflown + self._failed - self._told
        if lost and self._loss is not None:
            lines.append(self._encode(self._loss(lost)))
        told = len(lines)
        while self._records and len(lines) < _BATCH:
            record = self._records.popleft()
            try:
                lines.append(self._encode(record))
            except Exception:  # noqa: BLE001 - one record that cannot be encoded must not end the thread
                self._fail(1)
        # Whoever reads the log finds a torn line alone, and not glued to the next one.
        opening = b"\n" if self._torn else b""
        data = opening + b"".join(lines)
        try:
            taken = target.write(data)
        except (OSError, ValueError):
            taken = 0
        if taken == len(data):
            self._torn = False
            self._told += lost if told else 0
            return
        # A full disk or a closed pipe: the next batch tries again.
        end, whole = len(opening), 0
        self._torn = self._torn and taken < end
        for line in lines:
            if end + len(line) > taken:
                self._torn = self._torn or taken > end
                break
            end += len(line)
            whole += 1
        if told and whole:
            self._told += lost
        self._fail(len(lines) - max(whole, told))

    def _fail(self, lines: int) -> None:
        self._failed += lines
        self._dropped(lines)


def _write_all(fd: int, data: bytes) -> int:
    view, taken = memoryview(data), 0
    with contextlib.suppress(OSError):
        while taken < len(data):
            taken += os.write(fd, view[taken:])
    return taken


class StreamTarget:
    """Standard error, or any other stream of bytes; closing leaves the stream open."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr.buffer
        self._stream.flush()

    def write(self, data: bytes) -> int:
        # Past the stream's own buffer: what it cannot write it keeps, and writes after all when we have given up.
        return _write_all(self._stream.fileno(), data)

    def close(self) -> None:
        self._stream.flush()


class RotatedFile:
    """A file that is put aside when a day (UTC) is over; the last 14 are kept.

    Several processes may write to the same one, and another program may move it away.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, kept: int = KEPT) -> None:
        self._path = path
        self._now = now
        self._kept = kept
        self._fd = -1
        self._day = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def write(self, data: bytes) -> int:
        self._turn()
        return _write_all(self._fd, data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.close()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        written = os.fstat(self._fd)
        self._day = _day(written.st_mtime if written.st_size else self._now())

    def _turn(self) -> None:
        if self._fd < 0 or self._was_moved():
            self._open()
        if self._day == _day(self._now()):
            return
        aside = self._path.with_name(f"{self._path.stem}-{self._day}{self._path.suffix}")
        # link fails where the name is taken, so of several processes one puts the file aside.
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(self._path, aside)
        with contextlib.suppress(FileNotFoundError):
            if aside.exists() and self._path.samefile(aside):
                self._path.unlink()
        self._open()
        self._day = _day(self._now())
        self._prune()

    def _was_moved(self) -> bool:
        try:
            there, ours = self._path.stat(), os.fstat(self._fd)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _prune(self) -> None:
        days = "[0-9]" * 4 + "-" + "[0-9]" * 2 + "-" + "[0-9]" * 2
        aside = sorted(self._path.parent.glob(f"{self._path.stem}-{days}{self._path.suffix}"))
        for old in aside[: -self._kept]:
            with contextlib.suppress(OSError):
                old.unlink()


def _day(seconds: float) -> str:
    return _named(int(seconds // 86_400))


@lru_cache(maxsize=4)  # nearly all lines of a day ask for the same
def _named(day: int) -> str:
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y-%m-%d")
