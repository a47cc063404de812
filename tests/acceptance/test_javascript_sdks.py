"""JavaScript's clients as judges: `openai` and `ai` at the versions of js/package-lock.json, installed once a machine.

Skipped where there is no node, or where the packages are not cached and no registry is reached.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from installed import npm_packages
from sdk_kit import judged

JS = Path(__file__).parent / "js"


@pytest.fixture(scope="session")
def packages() -> Path:
    return npm_packages(JS)


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
