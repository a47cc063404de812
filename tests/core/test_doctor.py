"""Each seeded fault is found by its id, and only what `--fix` names is changed, when asked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from small import CONFIG, TIERS

from openclaw_gateway.cli import main
from openclaw_gateway.testing import configuration

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ROOT / "core" / "openclaw_gateway" / "cli"

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
        ({"gateway.host": "0.0.0.0"}, "S007"),
        ({"gateway.operations": {"host": "0.0.0.0", "port": 9}}, "S008"),
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


@pytest.mark.parametrize(
    ("secret", "ids"),
    [
        ("correct-horse-battery-staple-0123456789", {"S004"}),
        ("change-me-" + "0123456789abcdef" * 2, {"S004", "S009"}),
        ("env:THE_SECRET", {"S009"}),
    ],
)
def test_secrets_in_the_file_and_those_that_can_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str, ids: set[str]
) -> None:
    monkeypatch.setenv("THE_SECRET", "x" * 40)
    found = findings(configuration(tmp_path, edit={"plugins.jwt.secret": secret}))
    assert {id for id in found if id in {"S004", "S009"}} == ids
    for id in ids:
        assert "plugins.jwt.secret" in found[id]["evidence"]
        assert secret not in str(found[id]) or secret.startswith("env:")
        assert "xxxx" not in str(found[id])


def test_the_password_of_a_store_is_looked_at_and_its_name_is_not(tmp_path: Path) -> None:
    edit: dict[str, Any] = {"plugins.counters.use": "counters.redis"}
    good = {**edit, "plugins.redis": {"use": "redis", "url": "redis://gw:9f1c47be02d8@example.internal/0"}}
    assert "S009" not in findings(configuration(tmp_path, edit=good))
    bad = {**edit, "plugins.redis": {"use": "redis", "url": "redis://gw:changeme@10.0.0.1/0"}}
    assert "plugins.redis.url" in findings(configuration(tmp_path, edit=bad))["S009"]["evidence"]


def test_the_folder_and_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    with monkeypatch.context() as patch:
        # The tests may be run by root, who may write everywhere.
        patch.setattr("os.access", lambda path, mode, **_: mode != os.W_OK)
        assert "cannot be written" in findings(path, status=1)["O002"]["evidence"]
    taken = CONFIG.replace("[gateway]", '[gateway]\ndata_dir = "openclaw.toml"')
    a_file = configuration(tmp_path, toml=taken, tiers=TIERS)
    assert "cannot be written" in findings(a_file, status=1)["O002"]["evidence"]
    path = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100 * 2**20))
        assert findings(path, status=0)["O003"]["evidence"].startswith("100 MiB")


def test_open_files_and_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = {"gateway.edge": {"max_connections": 10_000_000}, "gateway.workers": 3}
    alone = '[gateway]\npipeline = ["named"]\n[plugins.named]\n'  # with no store that is of one process
    path = configuration(tmp_path, toml=alone, edit=edit, tiers={"basic": ""})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    found = findings(path)
    assert "10000200" in found["O004"]["evidence"]
    assert found["O008"]["fix"] == "gateway.workers = 2"


def test_deep_says_which_plugin_cannot_be_opened(tmp_path: Path) -> None:
    path = configuration(tmp_path, edit={"plugins.database.url": "sqlite:////nowhere/at/all.db"})
    assert "O007" not in findings(path)
    assert "database" in findings(path, "--deep", status=1)["O007"]["evidence"]


def test_every_finding_is_described_and_tested() -> None:
    sources = "".join((COMMANDS / name).read_text() for name in ("diagnoses.py", "doctor.py"))
    ids = set(re.findall(r'id="([SO]\d{3})"', sources))
    assert ids == set(re.findall(r"(?m)^\| ([SO]\d{3}) \|", (ROOT / "docs" / "how-to" / "operate.md").read_text()))
    assert ids == set(re.findall(r'"([SO]\d{3})"', Path(__file__).read_text()))
