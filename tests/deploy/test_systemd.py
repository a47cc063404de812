"""The unit is one that systemd takes, and hands over the secrets under the names by which they are read."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from openclaw_gateway.testing import build

from .deploy_files import CONFIGURATION, DEPLOY, FOLDER, ROOT, SECRETS, STATE, argument_list, production, stop_time

UNIT = DEPLOY / "openclaw-gateway.service"
LINES = [line.partition("=")[::2] for line in UNIT.read_text().splitlines() if re.match(r"[A-Z]\w+=", line)]
PROGRAM = "/opt/openclaw-gateway/bin/openclaw-gateway"


def values(key: str) -> list[str]:
    return [value for name, value in LINES if name == key]


def test_systemd_takes_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))  # verify looks for the program too
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert said.returncode == 0 and UNIT.name not in said.stderr, said.stderr


def test_it_waits_for_the_words_that_the_gateway_says() -> None:
    # That the gateway says them is proved by tests/workers/test_notify.py.
    assert values("Type") == ["notify"] and values("WatchdogSec") == ["30s"]


def test_its_commands_are_those_of_the_gateway() -> None:
    assert values("ExecStart") == [" ".join([PROGRAM, *argument_list("CMD")])]
    assert values("ExecStartPre") == [f"{PROGRAM} check --config {FOLDER}/openclaw.toml"]
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert f"/var/lib/{values('StateDirectory')[0]}" == STATE


def test_a_stop_has_the_time_that_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gateway = production(monkeypatch, tmp_path)
    assert int(values("TimeoutStopSec")[0].removesuffix("s")) > stop_time(gateway)
    assert int(values("LimitNOFILE")[0]) > gateway.document.gateway.edge.max_connections


def test_the_credentials_take_the_place_of_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    for credential in values("LoadCredential"):
        name, _, source = credential.partition(":")
        assert source == f"{FOLDER}/secrets/{name}"
        (tmp_path / name).write_text(SECRETS[name.upper()] + "\n")
    given = dict(text.split("=", 1) for text in values("Environment"))
    environ = {name: value.replace("%d", str(tmp_path)) for name, value in given.items()}
    environ |= {"OPENCLAW_GATEWAY__TIERS": str(ROOT / "tiers"), "OPENCLAW_GATEWAY__DATA_DIR": str(tmp_path)}
    gateway = build(CONFIGURATION, environ=environ)
    assert gateway.document.gateway.host == "127.0.0.1"
    shown = " ".join(str(table) for table in gateway.document.plugins.values())
    assert not any(secret in shown for secret in SECRETS.values())


def test_no_section_is_there_twice() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]
