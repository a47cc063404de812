"""The manifests agree with the configuration, the image and one another; judged by the real tools where they are."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from openclaw_gateway import __version__

from .deploy_files import (
    BASE,
    DEPLOY,
    FOLDER,
    ROOT,
    STATE,
    UID,
    argument_list,
    manifests,
    production,
    referenced,
    script,
    stop_time,
)

NAME = "openclaw-gateway"
FOUND = manifests()
POD: dict[str, Any] = FOUND["Deployment"]["spec"]["template"]["spec"]
CONTAINERS = [*POD["initContainers"], *POD["containers"]]
SERVES = POD["containers"][0]
KUSTOMIZATIONS = [BASE, DEPLOY / "kubernetes" / "overlays" / "example"]


@pytest.fixture(scope="module", params=KUSTOMIZATIONS, ids=lambda path: path.name)
def built(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What kustomize makes of a folder."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed here; the other tests read the manifests as they are")
    made = subprocess.run(["kubectl", "kustomize", str(request.param)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def test_what_is_generated_is_up_to_date() -> None:
    files = script(DEPLOY / "generate.py").files()
    assert len(files) == 3 + len(list((ROOT / "tiers").glob("*.toml")))
    for path, text in files.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: python docs/deploy/generate.py"


def test_every_file_of_the_base_is_used() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    used = {"kustomization.yaml", *kustomization["resources"]}
    used |= {file for generator in kustomization["configMapGenerator"] for file in generator["files"]}
    assert used == {str(path.relative_to(BASE)) for path in BASE.rglob("*") if path.is_file()}
    assert kustomization["images"] == [{"name": NAME, "newTag": __version__}]


def test_kustomize_joins_it(built: list[dict[str, Any]]) -> None:
    kinds = [resource["kind"] for resource in built]
    assert sorted(kinds) == sorted([*FOUND, "ConfigMap", "ConfigMap", "PrometheusRule", "PrometheusRule"])
    by_kind = {resource["kind"]: resource for resource in built}
    pod = by_kind["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        by_kind["Service"]["spec"]["selector"],
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels
    monitored = by_kind["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= by_kind["Service"]["metadata"]["labels"].items()
    configured = {
        resource["metadata"]["name"]: resource["data"] for resource in built if resource["kind"] == "ConfigMap"
    }
    mounted = {volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume}
    assert mounted == set(configured)
    files = {file for data in configured.values() for file in data}
    assert files == {"openclaw.toml", *(path.name for path in (ROOT / "tiers").glob("*.toml"))}


def test_kubernetes_takes_it(built: list[dict[str, Any]]) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed: 17,000 files of schemas are too much for every run")
    judge = importlib.import_module("kubernetes_validate")
    ours = [resource for resource in built if "monitoring.coreos.com" not in resource["apiVersion"]]
    assert len(ours) >= 8
    for resource in ours:
        judge.validate(resource, "1.37", strict=True)


def test_the_pod_is_confined() -> None:
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] == UID
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    for container in CONTAINERS:
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True and confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]


def test_it_is_given_what_the_configuration_names() -> None:
    for container in CONTAINERS:
        assert {variable["name"] for variable in container["env"]} == referenced()
        for variable in container["env"]:
            key = variable["name"].lower().replace("_", "-")
            assert variable["valueFrom"] == {"secretKeyRef": {"name": NAME, "key": key}}
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounted) == {f"{FOLDER}/openclaw.toml", f"{FOLDER}/tiers", STATE}
        assert set(mounted.values()) == {volume["name"] for volume in POD["volumes"]}
    assert SERVES["args"] == argument_list("CMD")
    assert POD["initContainers"][0]["args"] == ["db", "upgrade", *argument_list("CMD")[1:]]


def test_ports_and_paths_are_those_of_the_gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gateway = production(monkeypatch, tmp_path)
    (port,) = SERVES["ports"]
    assert port["containerPort"] == 9090 and port["name"] == "http"
    paths = {route.path for route in gateway.routes}
    probes = [SERVES[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/health/startup", "/health/live", "/health/ready"]
    (endpoint,) = FOUND["ServiceMonitor"]["spec"]["endpoints"]
    assert {*(probe["path"] for probe in probes), endpoint["path"]} <= paths
    named = [*(probe["port"] for probe in probes), endpoint["port"], FOUND["Service"]["spec"]["ports"][0]["targetPort"]]
    named.append(FOUND["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"])
    assert set(named) == {port["name"]}


def test_a_stop_has_the_time_that_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gateway = production(monkeypatch, tmp_path)
    assert POD["terminationGracePeriodSeconds"] > stop_time(gateway)
    readiness = SERVES["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < gateway.document.gateway.lame_duck


def test_the_share_of_a_replica_is_of_the_most_that_ever_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surge = FOUND["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    most = FOUND["HorizontalPodAutoscaler"]["spec"]["maxReplicas"]
    assert production(monkeypatch, tmp_path).document.plugins["counters"]["replicas"] == most + surge
    assert "replicas" not in FOUND["Deployment"]["spec"], "an apply would undo what the autoscaler did"


def test_the_rules_find_the_job_and_the_pods() -> None:
    job = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())["scrape_configs"][0]["job_name"]
    # Without a jobLabel the operator of Prometheus names the job after the Service.
    assert FOUND["Service"]["metadata"]["name"] == job and "jobLabel" not in FOUND["ServiceMonitor"]["spec"]
    rules = (BASE / "prometheus-rule-alerts.yaml").read_text()
    assert f'job="{job}"' in rules and f'pod=~"{FOUND["Deployment"]["metadata"]["name"]}.*"' in rules
    scaled = FOUND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert scaled["name"] == FOUND["Deployment"]["metadata"]["name"]


def test_no_upstream_is_inside() -> None:
    (outside,) = [
        rule["to"][0]["ipBlock"]
        for rule in FOUND["NetworkPolicy"]["spec"]["egress"]
        if rule["to"][0].get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    ]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(outside["except"])
