"""compose.yaml mounts what is there, starts things in an order that works, and agrees with the gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openclaw_gateway import __version__

from .deploy_files import DEPLOY, FOLDER, ROOT, STATE, UID, argument_list, compose, production, referenced, stop_time

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
MOUNTS = [
    pytest.param(service, mount, id=f"{name}-{mount['target']}")
    for name, service in SERVICES.items()
    for mount in service.get("volumes", ())
]


def test_compose_takes_it() -> None:
    judge = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    said = subprocess.run([*judge, str(DEPLOY / "compose.yaml")], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(("service", "mount"), MOUNTS)
def test_what_is_mounted_is_there(service: dict[str, Any], mount: dict[str, Any]) -> None:
    if mount["type"] == "volume":
        assert mount["source"] in compose()["volumes"]
        return
    source = (DEPLOY / mount["source"]).resolve()
    assert source.exists() and source.is_relative_to(ROOT)
    assert mount["read_only"] is True


def test_every_image_has_a_version() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)?$", service["image"]), name
    assert SERVICES["gateway"]["image"] == SERVICES["schema"]["image"] == f"openclaw-gateway:{__version__}"


def test_what_stays_up_is_asked_whether_it_is_well() -> None:
    for name, service in SERVICES.items():
        if name == "gateway":  # the image brings its own
            assert "healthcheck" not in service
        elif name == "schema":
            assert service["healthcheck"] == {"disable": True} and service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"][0] == "CMD"


def test_nobody_waits_for_what_is_not_there() -> None:
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] in {"service_healthy", "service_completed_successfully"}
            assert other in SERVICES
    assert SERVICES["gateway"]["depends_on"]["schema"] == {"condition": "service_completed_successfully"}
    assert SERVICES["schema"]["command"] == ["db", "upgrade", *argument_list("CMD")[1:]]


def test_the_gateway_gets_every_secret_that_its_configuration_names() -> None:
    assert set(SERVICES["gateway"]["environment"]) == referenced()
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|PEPPER|SECRET", variable)
            assert not secret or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {variable} is written out"


def test_paths_ports_and_times_are_those_of_the_gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = SERVICES["gateway"]
    assert {mount["target"] for mount in service["volumes"]} == {f"{FOLDER}/openclaw.toml", f"{FOLDER}/tiers"}
    assert service["tmpfs"][0].startswith(f"{STATE}:") and f"uid={UID}" in service["tmpfs"][0]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    gateway = production(monkeypatch, tmp_path)
    assert int(service["stop_grace_period"].removesuffix("s")) > stop_time(gateway)
    assert service["ports"] == ["127.0.0.1:9090:9090"]


def test_only_this_machine_is_listened_to() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    for store in ("postgres", "valkey"):
        assert SERVICES[store]["networks"] == ["back"] and "ports" not in SERVICES[store]
    assert compose()["networks"]["back"] == {"internal": True}


def test_prometheus_has_the_job_and_the_rules_that_the_shipped_one_has() -> None:
    ours = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
    shipped = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    assert ours["global"] == shipped["global"] and ours["rule_files"] == shipped["rule_files"]
    (job,), (theirs,) = ours["scrape_configs"], shipped["scrape_configs"]
    assert job["job_name"] == theirs["job_name"]
    assert job["static_configs"] == [{"targets": ["gateway:9090"]}]
    mounted = {mount["target"] for mount in SERVICES["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ours["rule_files"]} <= mounted


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    folder = DEPLOY / "compose" / "grafana"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["uid"] == "prometheus" and source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((folder / "dashboards" / "openclaw.yaml").read_text())["providers"]
    mounted = {mount["target"]: mount["source"] for mount in SERVICES["grafana"]["volumes"]}
    assert mounted[f"{provider['options']['path']}/openclaw-gateway.json"].endswith("monitoring/grafana-dashboard.json")


def test_postgresql_makes_the_role_that_requests_run_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounted = {mount["target"] for mount in SERVICES["postgres"]["volumes"]}
    assert "/docker-entrypoint-initdb.d/roles.sql" in mounted
    role = production(monkeypatch, tmp_path).document.plugins["database"]["application_role"]
    assert f"CREATE ROLE {role} NOLOGIN;" in (DEPLOY / "roles.sql").read_text()
