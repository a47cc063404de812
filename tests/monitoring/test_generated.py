"""The files are what the generator writes today, from metrics that a gateway of today has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from monitoring.generate.catalogue import Catalogue, UnknownMetric
from monitoring.generate.files import files
from monitoring.generate.grafana_alerts import ALERTS
from monitoring.generate.options import Options
from monitoring.generate.panels import panels, plain

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
TITLES = [
    "HTTP Request Rate",
    "HTTP Request Latency (p95)",
    "Error Rate",
    "Active WebSocket Connections",
    "Active Sessions by Tier",
    "Session Creation Rate",
    "Skill Execution Success Rate",
    "Skill Execution Duration (p95)",
    "CPU Usage",
    "Memory Usage",
    "Database Query Latency (p95)",
    "Database Active Connections",
    "Redis Command Latency (p95)",
    "Rate Limit Hits",
    "Quota Usage by Tier",
    "Message Processing Rate",
    "External Service Errors",
    "Pod Restarts",
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.of_all_plugins()


def test_the_files_are_up_to_date(catalogue: Catalogue) -> None:
    made = files(Options(), catalogue)
    stale = [name for name, text in made.items() if (MONITORING / name).read_text() != text]
    assert not stale, f"python -m monitoring.generate writes {', '.join(stale)}"


def test_nothing_is_awaited_that_is_written(catalogue: Catalogue) -> None:
    assert catalogue.stale() == [], "these have their call sites: take them out of catalogue.AWAITED"


def test_a_name_or_a_label_that_nothing_writes_stops_the_generator(catalogue: Catalogue) -> None:
    for query in (
        "rate(http_request_total[5m])",
        'rate(http_requests_total{service="openclaw"}[5m])',
        "sum by (organization_id) (rate(messages_total[5m]))",
        "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds[5m])))",
    ):
        with pytest.raises(UnknownMetric):
            catalogue.check(query)


def test_other_installations_get_their_own_words(catalogue: Catalogue) -> None:
    options = Options(job="edge", runbooks="https://wiki.example/alerts", slow_routes=("/v1/chat/completions",))
    made = files(options, catalogue)
    assert 'openclaw-gateway"' not in made["alerts.yaml"].replace('pod=~"openclaw-gateway', "")
    rules = [rule for group in yaml.safe_load(made["alerts.yaml"])["groups"] for rule in group["rules"]]
    assert all(rule["annotations"]["runbook_url"].startswith("https://wiki.example/alerts#") for rule in rules)
    assert ["/v1/chat/completions" in rule["expr"] for rule in rules[:4]] == [False, False, True, True]


def test_the_dashboard_has_the_18_panels_of_a_current_type() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"]] == TITLES
    assert {panel["type"] for panel in DASHBOARD["panels"]} == {"timeseries"}
    places = [tuple(panel["gridPos"][k] for k in "xywh") for panel in DASHBOARD["panels"]]
    assert len(set(places)) == 18 and all(x + w <= 24 for x, _, w, _ in places)
    assert (DASHBOARD["time"]["from"], DASHBOARD["refresh"], DASHBOARD["timezone"]) == ("now-6h", "30s", "utc")


def test_every_query_uses_the_variables_and_can_be_read(catalogue: Catalogue) -> None:
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance", "tier", "route"}
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            promql_parser.parse(plain(target["expr"]))
            assert 'job="$job"' in target["expr"] or "kube_" in target["expr"], panel["title"]


def test_series_lead_to_what_they_are_about() -> None:
    links = {panel["title"]: panel["fieldConfig"]["defaults"].get("links", []) for panel in DASHBOARD["panels"]}
    assert "var-route=${__field.labels.route}" in links["HTTP Request Latency (p95)"][0]["url"]
    assert "var-tier=${__field.labels.tier}" in links["Quota Usage by Tier"][0]["url"]
    assert "var-instance=${__field.labels.instance}" in links["Memory Usage"][0]["url"]


def test_grafana_alerts_ask_what_their_panels_ask(catalogue: Catalogue) -> None:
    text = (MONITORING / "grafana-alerts.yaml").read_text()
    assert "$" not in text, "Grafana would take it for a variable of the environment"
    (group,) = yaml.safe_load(text)["groups"]
    by_number = {i + 1: panel for i, panel in enumerate(panels(catalogue, Options()))}
    assert len(group["rules"]) == len(ALERTS) == 4
    for rule in group["rules"]:
        panel = by_number[int(rule["annotations"]["__panelId__"])]
        assert rule["data"][0]["model"]["expr"] == plain(panel.queries[0].expr)
        assert rule["annotations"]["__dashboardUid__"] == DASHBOARD["uid"]
        assert rule["condition"] == rule["data"][1]["refId"]
