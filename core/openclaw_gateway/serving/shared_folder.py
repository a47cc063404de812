"""The folder in data_dir through which the workers of one gateway leave files for one another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from openclaw_gateway.errors import StartFailed

_PREFIX = "workers-"


def make(data_dir: Path) -> None:
    """Make it, for its owner alone, if it is not there. Raises StartFailed where that cannot be."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartFailed(f"nothing can be written to gateway.data_dir, {data_dir}: {reason}") from error


@contextmanager
def emptied(data_dir: Path) -> Iterator[Path]:
    """Make the folder of this process for as long as the block, and remove those of processes that are no more."""
    make(data_dir)
    for left in data_dir.glob(f"{_PREFIX}*"):
        if not _runs(left.name.removeprefix(_PREFIX)):
            shutil.rmtree(left, ignore_errors=True)
    folder = data_dir / f"{_PREFIX}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of another life: in a container the process id is often the same
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
