"""Packages that only a judge needs, installed once a machine from locks of hashes, outside the checkout.

What is not cached and cannot be fetched, because nobody answers or a mirror lacks it, skips the test with that reason;
any other failure to install is one of the test.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

#: how npm says that nobody answered, that a proxy lets nobody through, or that a mirror does not have them
_NPM_UNREACHED = (
    *("E404", "ETARGET"),
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH"),
    *("E401", "E403", "E407", "E502", "E503", "E504", "SELF_SIGNED_CERT_IN_CHAIN"),
)
#: the same of pip and of uv; a wrong hash is in neither
_PYTHON_UNREACHED = ("No matching distribution found", "Failed to fetch", "was not found in the package registry")
_NOBODY = "the packages are not cached, and their registry is not reached"
_WITHIN = 100


def npm_packages(folder: Path) -> Path:
    """Where the packages of the folder's lock lie; no script of theirs has run."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node and npm are not installed here")

    def fill(fresh: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(folder / name, fresh)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=10000")
        _fetch([[npm, "ci", *options]], fresh, _NPM_UNREACHED)

    return _cached(f"js-{folder.name}", (folder / "package-lock.json").read_bytes(), fill)


def python_with(lock: Path) -> Path:
    """An interpreter with the wheels of the lock and nothing else, not even the gateway."""

    def fill(fresh: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", fresh], check=True)
        options = ("--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(lock))
        uv, python = shutil.which("uv"), str(fresh / "bin/python")
        # the interpreter that this environment was made of; an environment itself has no pip
        pip = [sys._base_executable, "-m", "pip", "--python", python, "install", "--retries=0", "--timeout=10"]
        commands = [[uv, "pip", "install", "--python", python, *options]] if uv else []
        _fetch([*commands, [*pip, "--no-compile", *options]], fresh, _PYTHON_UNREACHED)

    return _cached(lock.stem, sys.version.encode() + lock.read_bytes(), fill) / "bin/python"


def _fetch(commands: list[list[str]], cwd: Path, unreached: tuple[str, ...]) -> None:
    """By the first of the commands that gets there."""
    said = ""
    for command in commands:
        try:
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_WITHIN, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{Path(command[0]).name} was not through after {_WITHIN} s; {_NOBODY}")
        if done.returncode == 0:
            return
        said += done.stderr
    if any(sign in said for sign in unreached):
        pytest.skip(_NOBODY)
    raise AssertionError(said[-2000:])


def _cached(name: str, of: bytes, fill: Callable[[Path], None]) -> Path:
    """A folder that is filled whole or not at all; it is named by what it was made of, so an old one is never taken."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclaw-gateway-tests"
    folder = cache / f"{name}-{hashlib.sha256(of).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the processes of one run, one fetches
        if not folder.is_dir():
            fresh = Path(tempfile.mkdtemp(dir=cache))
            try:
                fill(fresh)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return folder
