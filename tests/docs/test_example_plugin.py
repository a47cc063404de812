"""The example plugin is built, installed where no one else sees it, and swapped in over a real socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "openclaw-leaky-bucket"

SWAPPED = """
import asyncio, sys
from collections import Counter
from pathlib import Path

import aiohttp
from openclaw_gateway.testing import build, configuration, serving

async def main(use):
    # The shipped tier files, as they are: teams has 500 requests a minute.
    edit = {"plugins.ratelimit.use": use} if use else {}
    gateway = build(configuration(Path(sys.argv[1]) / (use or "bundled"), edit=edit))
    print(type(gateway.plugin("ratelimit")).__module__)
    async with serving(gateway) as url:
        issued = await gateway.plugin("api_key").create(organization="acme", user="ada", tier="teams")
        async with aiohttp.ClientSession(url, headers={"Authorization": "Bearer " + issued.key}) as client:

            async def one():
                async with client.get("/v1/models") as answer:
                    await answer.read()
                    return answer

            statuses = Counter(answer.status for answer in await asyncio.gather(*(one() for _ in range(80))))
            print(statuses[200] + statuses[429], "answered", "429" if statuses[429] else "no 429")
            refused = await one()
            print(refused.status, refused.headers.get("retry-after"), refused.headers["x-ratelimit-limit"])

asyncio.run(main(None))
asyncio.run(main("leaky_bucket"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it into an empty folder: what an installer does with a pure wheel."""
    place = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place / "dist")], cwd=source)
    [wheel] = (place / "dist").glob("*.whl")
    target = place / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_bundled_rate_limit_is_swapped_by_one_line(installed: Path, tmp_path: Path) -> None:
    said = run([sys.executable, "-W", "error", "-c", SWAPPED, str(tmp_path)], cwd=tmp_path, path=installed)
    assert said.splitlines() == [
        "openclaw_plugins.ratelimit",
        "80 answered no 429",
        "200 None 500",
        "openclaw_leaky_bucket",
        "80 answered 429",
        "429 1 500",
    ]


def test_the_command_lists_it_with_its_distribution(installed: Path, tmp_path: Path) -> None:
    said = run(
        [sys.executable, "-c", "from openclaw_gateway.cli import main; main()", "plugins"], cwd=tmp_path, path=installed
    )
    [line] = [line for line in said.splitlines() if line.startswith("leaky_bucket")]
    assert "openclaw-leaky-bucket 1.0.0" in line


def test_without_the_package_the_same_line_is_refused(tmp_path: Path) -> None:
    from openclaw_gateway.errors import ConfigError
    from openclaw_gateway.testing import build, configuration

    with pytest.raises(ConfigError, match=r'ratelimit\.use: no installed plugin has this name; found "leaky_bucket"'):
        build(configuration(tmp_path, edit={"plugins.ratelimit.use": "leaky_bucket"}))


def test_its_own_tests_pass_against_this_gateway(installed: Path) -> None:
    said = run([sys.executable, "-m", "pytest", "-q", "tests"], cwd=installed.parent / "source", path=installed)
    assert said.strip().splitlines()[-1].endswith("s") and " passed" in said and "failed" not in said


def test_it_uses_the_public_surface_alone_and_stays_small() -> None:
    text = (EXAMPLE / "openclaw_leaky_bucket.py").read_text()
    imports = [line for line in text.splitlines() if "openclaw_" in line and line.startswith(("from", "import"))]
    assert imports == ["from openclaw_gateway.api import ("]
    assert len(text.splitlines()) < 120


def run(command: list[str], *, cwd: Path, path: Path | None = None) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONDONTWRITEBYTECODE": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
