"""A bundle tells what a report of a problem needs, and nothing that must stay a secret."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import zipfile
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from openclaw_gateway.cli import main
from openclaw_gateway.testing import build, configuration, serving


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


async def test_no_command_and_no_page_shows_a_secret_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each place where one may stand has a secret of its own, and everything that shows a configuration is asked."""
    canaries = {
        place: f"canary-{place}-0123456789-abcdefghijklmnop"
        for place in ("jwt", "pepper", "upstream", "header", "skill")
    }
    monkeypatch.setenv("SKILL_SECRET", canaries["skill"])
    edit = {
        "plugins.jwt.secret": canaries["jwt"],
        "plugins.api_key.pepper": canaries["pepper"],
        "plugins.up": {
            "use": "providers.openai",
            "url": "http://127.0.0.1:1/v1",
            "api_key": canaries["upstream"],
            "headers": {"X-Team": canaries["header"]},
        },
        "models.up": {"provider": "up", "retries": 0},
        "targets.inside": {"url": "http://127.0.0.1:1", "private": True},
        "skills.weather": {
            "provider": "http_skills",
            "description": "d",
            "target": "inside",
            "url": "/w",
            "headers": {"X-Api-Key": "env:SKILL_SECRET"},
        },
    }
    path = configuration(tmp_path, edit=edit)
    shown: dict[str, str] = {}
    for command in (
        "check", "check --json", "config show", "config show --json", "config explain plugins.jwt.secret",
        "config explain plugins.up.api_key", "config explain plugins.up.headers", "config diff", "plugins --json",
        "pipeline --json", "routes --json", "tiers show --json", "schema", "info --json", "doctor", "doctor --json",
    ):  # fmt: skip
        result = await asyncio.to_thread(CliRunner().invoke, main, [*command.split(), "--config", str(path)])
        shown[command] = result.output
    gateway = build(path, environ=dict(os.environ))
    with caplog.at_level(logging.DEBUG):
        async with serving(gateway) as url, aiohttp.ClientSession() as http:
            token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams", scopes=("admin",))
            good = {"authorization": f"Bearer {token}"}
            for page in ("/info", "/health", "/metrics", "/api/openapi.json", "/v1/models", "/api/v1/skills"):
                async with http.get(url + page, headers=good) as answer:
                    shown[page] = await answer.text()
            turn = {"model": "up", "messages": [{"role": "user", "content": "x"}]}
            async with http.post(url + "/v1/chat/completions", headers=good, json=turn) as answer:
                assert answer.status == 502
                shown["a failed turn"] = await answer.text()
            shown["notices"] = "\n".join(gateway.notices())
    shown["log"] = caplog.text
    assert "plugins.jwt.secret" in shown["config show"] and "Secret(" in shown["config show"]
    assert all(shown[name] for name in ("check", "doctor", "schema", "info --json", "/metrics", "log"))
    leaks = [(name, place) for name, text in shown.items() for place, canary in canaries.items() if canary in text]
    assert leaks == []


def test_a_configuration_with_mistakes_has_a_bundle_too(tmp_path: Path) -> None:
    path, bundle = configuration(tmp_path, edit={"gateway.prot": 1}), tmp_path / "report.zip"
    assert CliRunner().invoke(main, ["doctor", "--config", str(path), "--bundle", str(bundle)]).exit_code == 1
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"README.txt", "findings.json", "versions.json"}
        assert "gateway.prot" in archive.read("findings.json").decode()
