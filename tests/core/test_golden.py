"""Each file in tests/golden is a configuration, a dashed line, and what boot says of it, to the letter.

Tier files follow in the same text as `--- tiers/NAME.toml`. Run with OPENCLAW_GOLDEN=write to rewrite the last part.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from small import TIERS

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

FOLDER = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("*.txt")))
def test_golden(name: str, tmp_path: Path) -> None:
    path = FOLDER / name
    given, said = path.read_text().split("\n--- says\n")
    toml, *files = re.split(r"^--- tiers/(\w+)\.toml\n", given, flags=re.M)
    tiers = dict(zip(files[::2], files[1::2], strict=True)) or TIERS
    toml, _, environment = toml.partition("\n--- environment\n")
    environ = dict(line.split("=", 1) for line in environment.splitlines() if line)
    try:
        gateway = build(configuration(tmp_path, toml=toml, tiers=tiers), environ=environ)
        got = "\n".join(f"{i + 1}. {step.id}" for i, step in enumerate(gateway.steps)) + "\n"
    except ConfigError as error:
        got = str(error) + "\n"
    if os.environ.get("OPENCLAW_GOLDEN") == "write":
        path.write_text(f"{given}\n--- says\n{got}")
    assert got == said
