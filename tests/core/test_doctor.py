"""Each seeded fault is found by its id, and only what `--fix` names is changed, when asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small import CONFIG, TIERS

from openclaw_gateway.cli import main
from openclaw_gateway.testing import configuration

pytestmark = pytest.mark.usefixtures("small")


def findings(path: Path, *options: str, status: int | None = None) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(main, ["doctor", "--config", str(path), "--json", *options], catch_exceptions=False)
    if status is not None:
        assert result.exit_code == status, result.output
    return {f["id"]: f for f in json.loads(result.output)["findings"]}


def test_a_good_installation_has_no_error(tmp_path: Path) -> None:
    found = findings(configuration(tmp_path, toml=CONFIG, tiers=TIERS), status=0)
    assert set(found) <= {"O003", "O004"}


@pytest.mark.parametrize(
    ("edit", "id"),
    [
        ({"gateway.insecure_dev": True}, "S001"),
        ({"gateway.host": "0.0.0.0"}, "S002"),
        ({"gateway.host": "0.0.0.0"}, "O005"),
        ({"gateway.unmetered": ["tokens"]}, "S005"),
    ],
)
def test_a_risky_setting_is_named(tmp_path: Path, edit: dict[str, Any], id: str) -> None:
    found = findings(configuration(tmp_path, toml=CONFIG, edit=edit, tiers=TIERS), status=0)
    assert id in found
    assert found[id]["fix"]


def test_a_broken_configuration_is_an_error(tmp_path: Path) -> None:
    found = findings(configuration(tmp_path, toml=CONFIG.replace("port", "prot"), tiers=TIERS), status=1)
    assert "gateway.prot" in found["O001"]["evidence"]


def test_files_of_others_are_mended_only_when_asked(tmp_path: Path) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    secret = tmp_path / ".openclaw" / "jwt.secret"
    secret.parent.mkdir()
    secret.write_text("x")
    secret.chmod(0o644)
    path.chmod(0o666)
    found = findings(path, status=1)
    assert found["S003"]["fixable"]
    assert found["S006"]["fixable"]
    assert secret.stat().st_mode & 0o777 == 0o644
    assert not {"S003", "S006"} & set(findings(path, "--fix", status=0))
    assert secret.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_mode & 0o002 == 0


def test_deep_asks_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from small import Tally

    from openclaw_gateway.api import HealthCheck, hookimpl

    async def ill() -> dict[str, Any]:
        raise OSError("connection refused")

    def health(self: Tally) -> list[HealthCheck]:
        return [HealthCheck("tally", ill, "ready")]

    monkeypatch.setattr(Tally, "health", hookimpl(health), raising=False)
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    assert "O006" not in findings(path, status=0)
    found = findings(path, "--deep", status=1)
    assert "connection refused" in found["O006"]["evidence"]
