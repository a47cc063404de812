"""The command as operators use it: light help, clear problems, exit codes, JSON for every reading command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small import CONFIG, TIERS

from openclaw_gateway import __version__
from openclaw_gateway.cli import main
from openclaw_gateway.testing import configuration


@pytest.fixture
def config(tmp_path: Path, small: None) -> Path:
    return configuration(tmp_path, toml=CONFIG, tiers=TIERS)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_help_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from openclaw_gateway.cli import main\n"
        "result = CliRunner().invoke(main, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'litestar', 'sqlalchemy', 'alembic', 'dynaconf', 'aiohttp', 'prometheus_client', 'jwt', 'redis'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_has_help() -> None:
    listed = main.list_commands(None)  # type: ignore[arg-type]
    assert {"serve", "check", "init", "pipeline", "plugins", "routes", "keys", "token", "db", "schema"} <= set(listed)
    for name in listed:
        result = run(name, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.output


def test_a_misspelt_command_names_the_nearest() -> None:
    result = run("chekc")
    assert result.exit_code == 2
    assert '"check"' in result.output


@pytest.mark.parametrize("leads_to", ["nowhere.toml", "openclaw.toml"])
def test_a_link_that_leads_nowhere_is_a_problem_and_no_reason_for_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads_to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openclaw.toml").symlink_to(leads_to)
    result = run("check")
    assert result.exit_code == 1
    assert result.output.startswith("openclaw.toml: cannot be read: ")
    assert not (tmp_path / ".openclaw").exists()


def test_defaults_that_cannot_be_written_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".openclaw").touch()
    result = run("check")
    assert result.exit_code == 2
    assert result.output == (
        "no openclaw.toml here, and the embedded defaults cannot be written to .openclaw: file exists\n"
    )


def test_a_folder_of_tiers_that_is_no_text_is_told_once(config: Path) -> None:
    config.write_text("[gateway]\ntiers = 5\n" + CONFIG.split("[gateway]\n", 1)[1])
    result = run("check", "--config", config)
    (line, _) = result.output.splitlines()
    assert "gateway.tiers: not a valid value; found 5; expected text" in line


def test_check_of_a_good_configuration(config: Path) -> None:
    result = run("check", "--config", config)
    assert result.exit_code == 0
    assert "good" in result.output
    assert json.loads(run("check", "--config", config, "--json").output)["ok"] is True


def test_check_prints_every_problem_and_exits_1(tmp_path: Path, small: None) -> None:
    path = configuration(tmp_path, toml=CONFIG.replace("port", "prot") + "\n[plugins.tally2]\n", tiers=TIERS)
    result = run("check", "--config", path)
    assert result.exit_code == 1
    assert f"{path}:3:1: gateway.prot: unknown key" in result.output
    assert "plugins.tally2" in result.output
    found = json.loads(run("check", "--config", path, "--json").output)
    assert [p["path"] for p in found["problems"]] == ["gateway.prot", "plugins.tally2"]


def test_serve_refuses_what_check_refuses(tmp_path: Path, small: None) -> None:
    path = configuration(tmp_path, toml=CONFIG.replace("port", "prot"), tiers=TIERS)
    result = run("serve", "--config", path)
    assert result.exit_code == 2
    assert "nothing was started" in result.output


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = run("check", "--config", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "no such file" in result.output


def test_pipeline_shows_order_and_parameters(config: Path) -> None:
    result = run("pipeline", "--config", config)
    assert result.exit_code == 0
    places = [result.output.index(name) for name in ("named", "known", "ranked", "capped")]
    assert places == sorted(places)
    steps = json.loads(run("pipeline", "--config", config, "--json").output)["pipeline"]
    assert [s["id"] for s in steps] == ["named", "known", "ranked", "capped"]
    assert steps[0]["parameters"] == {"prefix": "r", "size": 3}


def test_pipeline_explains_a_request(config: Path) -> None:
    words = ("pipeline", "--config", config, "--explain", "POST", "/things", "--tier", "basic", "--json")
    answer = json.loads(run(*words).output)
    assert answer["route"] == "/things"
    assert [s["id"] for s in answer["steps"]] == ["named", "known", "ranked", "capped"]
    assert {x["name"]: x["limit"] for x in answer["limits"]} == {"capped.requests": 3, "capped.messages": 100}
    public = json.loads(run("pipeline", "--config", config, "--explain", "GET", "/open", "--json").output)
    assert [s["id"] for s in public["steps"]] == ["named", "capped"]
    unknown = run("pipeline", "--config", config, "--explain", "GET", "/open", "--tier", "basc")
    assert unknown.exit_code == 2
    assert "'basic'" in unknown.output


def test_routes_proof(config: Path) -> None:
    proof = {
        (",".join(r["methods"]), r["path"]): r
        for r in json.loads(run("routes", "--config", config, "--json").output)["routes"]
    }
    things = proof["POST", "/things"]
    assert things["authenticated_by"] == "known"
    assert things["metered_by"] == {"requests": ["capped.requests"], "messages": ["capped.messages"]}
    assert proof["GET", "/open"]["authenticated_by"] is None
    assert ("", "(unmatched)") in proof
    assert "every need met" in run("routes", "--config", config, "--proof").output


def test_tiers_show(config: Path) -> None:
    shown = json.loads(run("tiers", "show", "--config", config, "--json").output)
    assert [x["name"] for x in shown["basic"]] == ["capped.requests", "capped.messages"]
    assert run("tiers", "show", "nowhere", "--config", config).exit_code == 2


def test_config_explain_names_the_origin(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "default" in run("config", "explain", "gateway.host", "--config", config).output
    monkeypatch.setenv("OPENCLAW_GATEWAY__PORT", "9191")
    explained = json.loads(run("config", "explain", "gateway.port", "--config", config, "--json").output)
    assert explained["value"] == "9191"
    assert explained["origin"] == "OPENCLAW_GATEWAY__PORT"
    assert explained["shadows"].endswith("openclaw.toml:3:1")
    assert "did you mean gateway.port" in run("config", "explain", "gateway.prot", "--config", config).output


def test_init_writes_a_configuration_that_checks(tmp_path: Path) -> None:
    target = tmp_path / "fresh"
    assert run("init", target).exit_code == 0
    assert (target / "openclaw.toml").read_text().startswith("#:schema ./openclaw.schema.json\n")
    schema = json.loads((target / "openclaw.schema.json").read_text())
    assert "ratelimit" in schema["properties"]["plugins"]["properties"]
    assert run("check", "--config", target / "openclaw.toml").exit_code == 0
    again = run("init", target)
    assert again.exit_code == 1
    assert "nothing was written" in again.output


def test_plugins_says_where_each_comes_from(config: Path) -> None:
    rows = json.loads(run("plugins", "--config", config, "--json").output)["plugins"]
    ratelimit = next(r for r in rows if r["name"] == "ratelimit")
    assert ratelimit["origin"] == "openclaw-gateway"
    assert ratelimit["version"] == __version__
    assert "charges" in ratelimit["hooks"]


def test_plugins_are_listed_where_the_configuration_has_mistakes(tmp_path: Path, small: None) -> None:
    path = configuration(tmp_path, toml=CONFIG.replace("port", "prot") + '\n[plugins.more]\nuse = "ratelimit"\n')
    rows = json.loads(run("plugins", "--config", path, "--json").output)["plugins"]
    assert next(r for r in rows if r["name"] == "ratelimit")["ids"] == ["more"]


def test_the_manual_page_has_every_command_and_option() -> None:
    page = run("man").output
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", '"EXIT STATUS"', "FILES", "ENVIRONMENT"):
        assert f"\n.SH {heading}\n" in page
    for usage in ("check", "db downgrade", "tiers plan", "keys create"):
        assert f'\n.SS "{usage} ' in page
    for option in ("\\-\\-dry\\-run", "\\-\\-config FILE", "\\-\\-json"):
        assert f"\n.B {option}\n" in page
    if groff := shutil.which("groff"):
        made = subprocess.run([groff, "-man", "-ww", "-Tutf8"], input=page, capture_output=True, text=True, check=True)
        assert made.stderr == "" and 'eval "$(openclaw-gateway completion bash)"' in made.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(shell: str) -> None:
    assert "_OPENCLAW_GATEWAY_COMPLETE" in run("completion", shell).output
    environment = {
        "PATH": os.environ["PATH"],
        "_OPENCLAW_GATEWAY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "openclaw-gateway pl",
        "COMP_CWORD": "pl" if shell == "fish" else "1",
    }
    command = Path(sys.executable).with_name("openclaw-gateway")
    done = subprocess.run([command], env=environment, capture_output=True, text=True, timeout=60)
    assert "plugin" in done.stdout and "plugins" in done.stdout
    assert "serve" not in done.stdout


@pytest.mark.parametrize(("variable", "folder"), [(None, ".openclaw"), ("state", "state")])
def test_reload_says_where_it_has_looked_for_a_gateway(
    config: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, folder: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("OPENCLAW_GATEWAY__DATA_DIR", variable)
    for more in ((), ("--dry-run",)):
        result = run("reload", "--config", config, *more)
        assert result.exit_code == 2
        assert f"no process by {config.parent / folder / 'gateway.pid'}" in result.output
