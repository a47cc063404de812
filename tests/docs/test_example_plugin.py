"""The example plugin is built, installed where no one else sees it, and swapped in over a real socket."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from package_kit import run, unpacked

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

            answers = await asyncio.gather(*(one() for _ in range(80)))
            statuses = Counter(answer.status for answer in answers)
            print(statuses[200] + statuses[429], "answered", "429" if statuses[429] else "no 429")
            # one of these: the bucket leaks eight places a second, and the next request may well find one
            refused = max(answers, key=lambda answer: answer.status)
            print(refused.status, refused.headers.get("retry-after"), refused.headers["x-ratelimit-limit"])

asyncio.run(main(None))
asyncio.run(main("leaky_bucket"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("example")
    source = shutil.copytree(EXAMPLE, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    return unpacked(source, place)


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
    assert line.split()[2:4] == ["1.0.0", "openclaw-leaky-bucket"]


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
    assert len(text.splitlines()) < 140
