"""The Dockerfile copies what there is, installs by hash, and tells a gateway that lives from one that does not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from asyncio import to_thread
from pathlib import Path

import pytest
from servers import free_port

from openclaw_gateway import __version__
from openclaw_gateway.testing import build, configuration, serving

from .deploy_files import CONFIGURATION, DEPLOY, FOLDER, ROOT, STATE, UID, argument_list, dockerfile

COPIES = [rest.split() for name, rest in dockerfile() if name == "COPY" and not rest.startswith("--from")]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    assert hadolint, "hadolint is in the test environment"
    command = [hadolint, "--no-color", "--config", str(DEPLOY / "hadolint.yaml"), str(DEPLOY / "Dockerfile")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0 and not said.stdout, said.stdout + said.stderr


def test_it_copies_what_is_there_and_what_the_build_is_sent() -> None:
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sources = {source for *found, _ in COPIES for source in found}
    assert sources >= {"core", "plugins", "migrations", "pyproject.toml"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in sent, f"{source} is left out by Dockerfile.dockerignore"
    allowed = {line[1:] for line in sent if line.startswith("!")}
    assert allowed == sources


def test_the_wheel_finds_all_that_it_is_built_from() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, target = wheel["project"], wheel["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *target["only-include"]}
    needed |= set(target["force-include"])
    assert needed <= {source for *found, to in COPIES if not to.startswith("/etc") for source in found}


def test_everything_is_installed_by_hash() -> None:
    installs = [rest for name, rest in dockerfile() if name == "RUN" and '"install"' in rest]
    assert len(installs) == 3
    for text in installs:
        by_hash = '"--require-hashes"' in text and '"--only-binary"' in text
        assert by_hash or '"--no-index"' in text, text


def test_the_driver_of_postgresql_is_the_one_that_was_tested() -> None:
    locked = (ROOT / ".ci" / "requirements-test.lock").read_text()
    entry = re.search(r"^asyncpg==.*?(?=^\w)", locked, re.M | re.S)
    assert entry is not None
    assert (DEPLOY / "requirements-postgres.lock").read_text() == entry[0]


def test_no_instruction_needs_a_shell() -> None:
    for name, rest in dockerfile():
        if name in {"RUN", "CMD", "ENTRYPOINT"}:
            assert rest.startswith("["), f"{name} {rest}"


def test_it_is_not_root_and_writes_to_its_state_alone() -> None:
    last = dict(dockerfile())
    assert last["USER"] == f"{UID}:{UID}" and last["STOPSIGNAL"] == "SIGTERM"
    assert f"--chown={UID}:{UID} /state {STATE}" in (DEPLOY / "Dockerfile").read_text()
    assert (DEPLOY / "Dockerfile").read_text().count("--chown") == 1
    assert tomllib.loads(CONFIGURATION.read_text())["gateway"]["data_dir"] == STATE


def test_it_serves_the_configuration_that_it_was_given() -> None:
    assert argument_list("CMD") == ["serve", "--config", f"{FOLDER}/openclaw.toml"]
    assert ["docs/deploy/openclaw.toml", f"{FOLDER}/openclaw.toml"] in COPIES
    assert ["tiers", f"{FOLDER}/tiers"] in COPIES
    assert dict(dockerfile())["EXPOSE"] == str(tomllib.loads(CONFIGURATION.read_text())["gateway"]["port"])
    assert f"openclaw-gateway:{__version__}" in (DEPLOY / "Dockerfile").read_text()


def test_its_python_is_one_that_the_project_supports() -> None:
    images = {rest.split()[0] for name, rest in dockerfile() if name == "FROM"}
    assert len(images) == 1, "an environment made by one Python does not run on another"
    minor = re.match(r"python:3\.(\d+)-slim", images.pop())
    supported = re.match(
        r">=3\.(\d+),<3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert minor and supported
    assert int(supported[1]) <= int(minor[1]) < int(supported[2])


async def test_its_health_check_tells_a_gateway_that_lives_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    async with serving(build(configuration(tmp_path))) as url:
        assert await to_thread(health_check, url.rpartition(":")[2]) == 0
    assert health_check(str(free_port())) != 0


def health_check(port: str) -> int:
    text = dict(dockerfile())["HEALTHCHECK"].partition("CMD ")[2]
    python, *arguments = json.loads(text)
    assert python == "/opt/openclaw-gateway/bin/python" and "127.0.0.1:9090/health/live" in arguments[-1]
    command = [sys.executable, *(argument.replace("9090", port) for argument in arguments)]
    return subprocess.run(command, capture_output=True, timeout=20).returncode
