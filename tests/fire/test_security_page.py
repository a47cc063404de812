"""The page of demands names tests that are there, and leaves no demand without a word."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text()


def test_every_demand_has_its_line() -> None:
    rows = re.findall(r"^\| S(\d+) \| (.+?) \| (.+?) \|$", PAGE, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 101))
    for _, _, proof in rows:
        assert re.match(r"`tests/|no: ", proof), proof


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 70
    for file, name in named:
        text = (ROOT / file).read_text()
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.M), f"{file}::{name}"
