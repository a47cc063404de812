"""A bundle tells what a report of a problem needs, and nothing that must stay a secret."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from openclaw_gateway.cli import main
from openclaw_gateway.testing import configuration


def test_a_bundle_holds_what_a_report_needs_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "correct-horse-battery-staple-0123456789")
    monkeypatch.setenv("OPENCLAW_PLUGINS__JWT__SECRET", "another-horse-battery-staple-0123456789")
    edit = {
        "plugins.database.url": "postgresql://gateway:pass-word-of-the-url@127.0.0.1:1/db",
        "plugins.api_key.pepper": "env:SECRET_OF_THE_TEST",
    }
    path, bundle = configuration(tmp_path, edit=edit), tmp_path / "report.zip"
    result = CliRunner().invoke(main, ["doctor", "--config", str(path), "--bundle", str(bundle)])
    assert bundle.stat().st_mode & 0o777 == 0o600, result.output
    with zipfile.ZipFile(bundle) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(texts) == {
        "README.txt", "configuration.json", "findings.json", "limits.json", "pipeline.json", "versions.json",
    }  # fmt: skip
    whole = "".join(texts.values())
    for secret in ("battery-staple", "pass-word-of-the-url"):
        assert secret not in whole
    assert (
        json.loads(texts["configuration.json"])["plugins.api_key.pepper"]["value"] == "Secret(env:SECRET_OF_THE_TEST)"
    )
    assert json.loads(texts["limits.json"])["teams"]
    again = CliRunner().invoke(main, ["doctor", "--config", str(path), "--bundle", str(bundle)])
    assert again.exit_code == 2
    assert "File exists" in again.output


def test_a_configuration_with_mistakes_has_a_bundle_too(tmp_path: Path) -> None:
    path, bundle = configuration(tmp_path, edit={"gateway.prot": 1}), tmp_path / "report.zip"
    assert CliRunner().invoke(main, ["doctor", "--config", str(path), "--bundle", str(bundle)]).exit_code == 1
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"README.txt", "findings.json", "versions.json"}
        assert "gateway.prot" in archive.read("findings.json").decode()
