"""The alerts of four panels, as Grafana's unified alerting is provisioned."""

from __future__ import annotations

from typing import Any, NamedTuple

from .catalogue import Catalogue
from .dashboard import UID
from .options import Options
from .panels import panels, plain

_SOURCE = "prometheus"


class PanelAlert(NamedTuple):
    uid: str
    panel: str
    title: str
    above: bool
    threshold: float
    minutes: int
    component: str
    runbook: str


ALERTS = (
    PanelAlert(
        "openclaw-latency", "HTTP Request Latency (p95)", "Latency above 1 s", True, 1, 5, "http", "HighHTTPLatency"
    ),
    PanelAlert(
        "openclaw-errors", "Error Rate", "More than 5 % of requests fail", True, 0.05, 5, "http", "HighHTTPErrorRate"
    ),
    PanelAlert(
        "openclaw-skills",
        "Skill Execution Success Rate",
        "Less than 90 % of a skill's runs complete",
        False,
        0.9,
        5,
        "skill",
        "LowSkillSuccessRate",
    ),
    PanelAlert(
        "openclaw-restarts", "Pod Restarts", "More than 3 restarts in 10 minutes", True, 3, 0, "pod", "PodRestartLoop"
    ),
)


def provisioning(catalogue: Catalogue, options: Options) -> dict[str, Any]:
    """Return the provisioning file; each alert asks what the first query of its panel asks."""
    numbered = {panel.title: (i + 1, panel) for i, panel in enumerate(panels(catalogue, options))}
    rules = []
    for alert in ALERTS:
        number, panel = numbered[alert.panel]
        rules.append(
            _rule(alert, number, plain(panel.queries[0].expr).replace("openclaw-gateway", options.job), options)
        )
    group = {"orgId": 1, "name": "openclaw-gateway", "folder": "OpenClaw", "interval": "30s", "rules": rules}
    return {"apiVersion": 1, "groups": [group]}


def _rule(alert: PanelAlert, panel: int, expr: str, options: Options) -> dict[str, Any]:
    evaluator = {"type": "gt" if alert.above else "lt", "params": [alert.threshold]}
    return {
        "uid": alert.uid,
        "title": alert.title,
        "condition": "B",
        "data": [
            {
                "refId": "A",
                "relativeTimeRange": {"from": 600, "to": 0},
                "datasourceUid": _SOURCE,
                "model": {"refId": "A", "expr": expr, "instant": True},
            },
            {
                "refId": "B",
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": evaluator}],
                },
            },
        ],
        # Without traffic, skills or Kubernetes there is nothing to alert on; a broken query is another matter.
        "noDataState": "OK",
        "execErrState": "Error",
        "for": f"{alert.minutes}m",
        "labels": {"severity": "warning", "component": alert.component},
        "annotations": {
            "summary": alert.title,
            "runbook_url": f"{options.runbooks}#{alert.runbook.lower()}",
            "__dashboardUid__": UID,
            "__panelId__": str(panel),
        },
    }
