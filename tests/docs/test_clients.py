"""The example clients do what their first lines say, against a gateway as it is shipped."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from socket_kit import Place, place

CLIENTS = Path(__file__).parents[2] / "docs" / "examples" / "clients"


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path) as found:
        yield found


async def run(here: Place, *command: str, key: str | None = None) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OPENCLAW_URL": here.url, "OPENCLAW_KEY": key or here.key},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def node() -> tuple[str, ...]:
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed here")
    version = int(subprocess.run([found, "--version"], capture_output=True, text=True).stdout[1:].split(".")[0])
    if version < 20:
        pytest.skip("this node knows no WebSocket")
    return (found,) if version >= 22 else (found, "--experimental-websocket")


async def test_the_python_client_prints_the_answer(here: Place) -> None:
    status, out, err = await run(here, sys.executable, str(CLIENTS / "chat.py"), "Good", "morning")
    assert (status, out) == (0, "Good morning\n"), err


async def test_the_python_client_says_why_it_was_refused(here: Place) -> None:
    broken = here.key[:-4] + "0000"
    status, _, err = await run(here, sys.executable, str(CLIENTS / "chat.py"), "Hello", key=broken)
    assert status != 0
    assert "401" in err


async def test_the_javascript_client_prints_the_answer(here: Place) -> None:
    status, out, err = await run(here, *node(), str(CLIENTS / "chat.mjs"), "Good", "morning")
    assert (status, out) == (0, "Good morning\n"), err
