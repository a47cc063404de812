"""Every alert fires when it should, says what it should, and keeps quiet where it is close: judged by promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cases import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
GROUPS = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}

# Group, alert, threshold as it stands in the rule, minutes, severity.
REQUIRED = """\
http HighHTTPErrorRate 0.05 5 warning
http CriticalHTTPErrorRate 0.1 2 critical
http HighHTTPLatency 1 5 warning
http CriticalHTTPLatency 5 2 critical
skill LowSkillSuccessRate 0.9 5 warning
skill CriticalSkillSuccessRate 0.7 2 critical
skill HighSkillExecutionLatency 30 5 warning
database HighDatabaseLatency 0.5 5 warning
database HighDatabaseErrorRate 0.1 5 warning
database DatabaseConnectionPoolExhausted 0.9 5 warning
redis HighRedisLatency 0.1 5 warning
redis HighRedisErrorRate 0.1 5 warning
resource HighCPUUsage 0.8 10 warning
resource HighMemoryUsage 1073741824 10 warning
resource CriticalMemoryUsage 2147483648 5 critical
pod PodRestartLoop 3 0 warning
pod PodNotReady 0 5 critical
pod PodPending 1 5 warning
quota QuotaNearLimit 0.8 5 warning
quota QuotaExceeded 0 2 warning
ratelimit HighRateLimitHits 1 5 warning
websocket HighWebSocketConnectionCount 0.8 5 warning
websocket WebSocketMessageBacklog - 5 warning
external HighExternalServiceErrorRate 0.1 5 warning
external HighExternalServiceLatency 10 5 warning
session HighActiveSessionCount 1000 10 warning
session SessionCreationSpike 10 5 warning
""".splitlines()


def test_there_are_27_rules_in_11_groups_with_their_thresholds() -> None:
    found = []
    for group in GROUPS:
        for rule in group["rules"]:
            threshold = re.search(r" [<>=]=? (\d[\d.]*)$", rule["expr"], re.M)
            minutes = rule.get("for", "0m").removesuffix("m")
            component, severity = rule["labels"]["component"], rule["labels"]["severity"]
            found.append(f"{component} {rule['alert']} {threshold[1] if threshold else '-'} {minutes} {severity}")
            assert group["name"] == f"openclaw-{component}"
    assert found == REQUIRED
    assert (len(GROUPS), len(RULES)) == (11, 27)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    assert list(dict.fromkeys(case.alert for case in CASES)) == list(RULES)


@pytest.fixture(scope="module")
def all_hold(promtool: Path, tmp_path_factory: pytest.TempPathFactory) -> bool:
    """Whether all cases hold, asked once; only where one does not are they asked one by one."""
    tests = [test for case in CASES for test in (firing(case), quiet(case))]
    return run_promtool(promtool, tmp_path_factory.mktemp("all"), tests).returncode == 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_fires(case: Case, all_hold: bool, promtool: Path, tmp_path: Path) -> None:
    if not all_hold:
        judge(promtool, tmp_path, firing(case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_keeps_quiet(case: Case, all_hold: bool, promtool: Path, tmp_path: Path) -> None:
    if not all_hold:
        judge(promtool, tmp_path, quiet(case))


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.alert)
def test_the_judge_can_say_no(case: Case, promtool: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=case.alert):
        judge(promtool, tmp_path, {**firing(case), "input_series": quiet(case)["input_series"]})


def test_a_gateway_without_traffic_is_quiet(promtool: Path, tmp_path: Path) -> None:
    expected = [{"eval_time": "25m", "alertname": name, "exp_alerts": []} for name in RULES]
    judge(promtool, tmp_path, promtool_test({'up{job="openclaw-gateway", instance="a:9090"}': "1x30"}, expected))


def test_prometheus_takes_the_files(promtool: Path, amtool: Path) -> None:
    for program, *arguments in (
        (promtool, "check", "config", MONITORING / "prometheus.yml"),
        (promtool, "check", "rules", MONITORING / "alerts.yaml", MONITORING / "recording-rules.yaml"),
        (amtool, "check-config", MONITORING / "alertmanager.yml"),
    ):
        subprocess.run([program, *arguments], check=True, capture_output=True)


def test_the_rules_look_at_the_job_that_prometheus_scrapes() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    for rule in RULES.values():
        assert f'job="{job["job_name"]}"' in rule["expr"] or rule["annotations"].get("needs") == "kube-state-metrics"


def test_what_needs_another_exporter_says_so() -> None:
    for rule in RULES.values():
        assert ("kube_" in rule["expr"]) == (rule["annotations"].get("needs") == "kube-state-metrics")


def test_every_runbook_is_written() -> None:
    for name, rule in RULES.items():
        path, anchor = rule["annotations"]["runbook_url"].split("#")
        page = (ROOT / path).read_text()
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
        assert anchor == name.lower() and section, f"{path} has no section {name}"
        assert len(section[1].split()) > 30, f"{path}: {name} tells nobody what to do"


def test_the_critical_one_of_a_pair_silences_its_warning() -> None:
    inhibited = yaml.safe_load((MONITORING / "alertmanager.yml").read_text())["inhibit_rules"]
    for rule in inhibited:
        (source,), (target,) = rule["source_matchers"], rule["target_matchers"]
        critical, warning = source.removeprefix("alertname = "), target.removeprefix("alertname = ")
        assert (RULES[critical]["labels"]["severity"], RULES[warning]["labels"]["severity"]) == ("critical", "warning")


def firing(case: Case) -> dict[str, Any]:
    rule = RULES[case.alert]
    annotations = {**rule["annotations"], "description": case.says}
    expected = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": annotations}]
    return promtool_test(case.fires, [{"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": expected}])


def quiet(case: Case) -> dict[str, Any]:
    return promtool_test(case.quiet, [{"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": []}])


def promtool_test(series: dict[str, str], expected: list[Any]) -> dict[str, Any]:
    given = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": given, "alert_rule_test": expected}


def judge(promtool: Path, folder: Path, test: dict[str, Any]) -> None:
    run = run_promtool(promtool, folder, [test])
    assert run.returncode == 0, run.stdout + run.stderr


def run_promtool(promtool: Path, folder: Path, tests: list[Any]) -> subprocess.CompletedProcess[str]:
    file = folder / "test.yaml"
    rules = str(MONITORING / "alerts.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "30s", "tests": tests}))
    return subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
