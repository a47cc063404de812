"""JavaScript's clients as judges: `openai` and `ai` at the versions of js/package-lock.json, installed once a machine.

Skipped where there is no node, or where the packages are not cached and no registry is reached.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from sdk_kit import judged

JS = Path(__file__).parent / "js"
#: how npm says that nobody answered, that a proxy lets nobody through, or that a mirror does not have them; any other
#: failure is one of the test
UNREACHED = (
    *("E404", "ETARGET"),
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH"),
    *("E401", "E403", "E407", "E502", "E503", "E504", "SELF_SIGNED_CERT_IN_CHAIN"),
)
NOBODY = "the JavaScript packages are not cached, and npm's registry is not reached"


@pytest.fixture(scope="session")
def packages() -> Path:
    """A directory with the packages; its name is made of what is in the lock, so that an old one is never taken."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node and npm are not installed here")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openclaw-gateway-tests"
    lock = (JS / "package-lock.json").read_bytes()
    folder = cache / f"js-{hashlib.sha256(lock).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as fresh:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(JS / name, fresh)
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=10000")
        try:
            done = subprocess.run(
                [npm, "ci", *options], cwd=fresh, capture_output=True, text=True, timeout=60, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(NOBODY)
        if done.returncode and any(code in done.stderr for code in UNREACHED):
            pytest.skip(NOBODY)
        assert done.returncode == 0, done.stderr[-2000:]
        try:
            Path(fresh).rename(folder)  # whole or not at all
        except OSError:
            assert folder.is_dir()  # another run was first
        else:
            Path(fresh).mkdir()  # for the context to take away
    return folder


@pytest.mark.parametrize("sdk", ["openai", "ai"])
async def test_javascript_sdks(tmp_path: Path, packages: Path, sdk: str) -> None:
    async with judged(tmp_path) as given:
        process = await asyncio.create_subprocess_exec(
            "node",
            *("--input-type=module", "--eval", (JS / f"{sdk}.mjs").read_text(), "--", *given),
            cwd=packages,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, said.decode()[-2000:]
