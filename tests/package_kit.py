"""Packages of plugins as their authors ship them: built, and put where only the process that asks for it sees them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path


def unpacked(source: Path, place: Path) -> Path:
    """Build the wheel and unpack it into an empty folder: what an installer does with a pure wheel."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")], cwd=source)
    [wheel] = (place / "dist").glob("*.whl")
    target = place / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(command: list[str], *, cwd: Path, path: Path | None = None) -> str:
    """Run a command in a clean environment, with `path` on Python's; return what it printed. It must succeed."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
