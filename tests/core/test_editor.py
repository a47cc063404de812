"""What `init` writes is understood by an editor's language server: Tombi checks files by the schema beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from openclaw_gateway.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert CliRunner().invoke(main, ["init", str(tmp_path)]).exit_code == 0
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    tombi = Path(sys.executable).with_name("tombi")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "NO_COLOR": "1"}
    done = subprocess.run(
        [tombi, "lint", "--offline", "."], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_shipped_files_are_found_good_without_a_warning(folder: Path) -> None:
    status, said = lint(folder)
    assert status == 0, said
    assert "Warning" not in said
    assert "4 files linted" in said


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("openclaw.toml", "drain_timeout =", "drain_timout =", '"drain_timout" is not allowed'),
        ("openclaw.toml", "port = 9090", 'port = "9090"', "expected a value of type Integer"),
        ("openclaw.toml", "methods =", "metods =", '"metods" is not allowed'),
        ("openclaw.toml", 'use = "accounts.sql"', 'use = "accounts.sql"\nhold_tll = "1m"', '"hold_tll" is not allowed'),
        ("tiers/teams.toml", "limit = 500", 'limit = "500"', "expected a value of type Integer"),
    ],
)
def test_a_mistake_is_underlined_where_it_stands(folder: Path, file: str, old: str, new: str, says: str) -> None:
    change(folder / file, old, new)
    line = next(i for i, text in enumerate((folder / file).read_text().splitlines(), 1) if new.splitlines()[-1] in text)
    status, said = lint(folder)
    assert status == 1
    assert says in said
    assert f"{file}:{line}:" in said
