"""What must stay silent while a gateway is under fire: error lines with a traceback, tasks that died alone."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.testing import configuration

#: `FIRE_SEED=7 pytest tests/fire` asks other questions; a failure names the seed that it had
SEED = int(os.environ.get("FIRE_SEED", "20260"))
#: share of what the long form fires; the command's `--scale`
SCALE = float(os.environ.get("FIRE_SCALE", "1"))


#: pytest's `record_property`: a figure for the table of reliability
Recorder = Callable[[str, object], None]


def counts(short: int, long: int) -> list[Any]:
    """How often a test fires: with every commit, and in the long form."""
    return [
        pytest.param(short, id="short"),
        pytest.param(max(short, round(long * SCALE)), id="long", marks=pytest.mark.long),
    ]


def wide(directory: Path, **edit: Any) -> Path:
    """The shipped configuration, with limits that answer in the place of nothing."""
    text = (asset("tiers") / "government.toml").read_text()
    edits = {
        "plugins.access_log.file": "fire.log",
        "plugins.auth.failures.per_address": 0,
        "plugins.auth.failures.per_key": 0,
        "gateway.max_body": "100KB",
        "gateway.edge": {"headers": "500ms", "body_idle": "500ms", "body_total": "2s", "first_byte": "2s"},
        **edit,
    }
    return configuration(
        directory, edit=edits, tiers={"wide": re.sub(r"(?m)^(limit *= *)[\d_]+", r"\g<1>100000000", text)}
    )


def say(line: str) -> None:
    """Show the figures of a run, with `-s` or where it failed."""
    sys.stdout.write(f"\n{line}\n")


class Heard(logging.Handler):
    """Faults that were logged, and faults that a loop was told of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.faults.append(f"{record.name}: {record.getMessage()}: {error!r}")

    def told(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"loop: {context.get('message')}: {context.get('exception')!r}")


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear every error of the process, and of the running loop."""
    heard = Heard()
    loop = asyncio.get_running_loop()
    names = ("", "openclaw", "uvicorn", "uvicorn.error", "asyncio", "litestar")
    loggers = [logging.getLogger(name) for name in names]
    closed = [logger for logger in loggers if logger.name == "root" or not logger.propagate]
    loop.set_exception_handler(heard.told)
    for logger in closed:
        logger.addHandler(heard)
    try:
        yield heard
    finally:
        loop.set_exception_handler(None)
        for logger in closed:
            logger.removeHandler(heard)
