"""schemathesis over the OpenAPI document with all checks but one: what it allows is served, and answered as it says.

It takes minutes: `pytest tests/fire/test_schema.py -m long`; `FIRE_SEED` chooses other examples.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from openclaw_gateway.testing import build, serving

from .watch import SCALE, SEED, Recorder, wide

#: A value that fits its schema may still name nothing, or come beside a second credential: that is 4xx, and right.
EXCLUDED = "positive_data_acceptance"


@pytest.mark.long
@pytest.mark.timeout(3_600)
async def test_the_document_holds_under_all_checks(tmp_path: Path, record_property: Recorder) -> None:
    gateway = build(wide(tmp_path))
    async with serving(gateway) as url:
        token = gateway.plugin("jwt").mint(
            organization="acme", user="ada", tier="wide", scopes=("admin", "keys"), ttl=36_000
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/api/openapi.json", "--no-color"),
            *(
                "--checks",
                "all",
                "--exclude-checks",
                EXCLUDED,
                "--max-examples",
                str(max(2, round(50 * SCALE))),
                "--seed",
                str(SEED),
            ),
            *("--header", f"Authorization: Bearer {token}"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said[-20_000:]
    tested = re.search(r"Tested: (\d+)", said)
    generated = re.search(r"(\d[\d,]*) generated", said)
    assert tested is not None and generated is not None, said
    assert int(tested[1]) >= 30
    record_property("operations of the document", int(tested[1]))
    record_property("test cases", int(generated[1].replace(",", "")))
    record_property("promises of the document broken", 0)
