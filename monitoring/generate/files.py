"""The texts of the generated files, by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .alerts import groups
from .catalogue import Catalogue
from .dashboard import dashboard
from .grafana_alerts import provisioning
from .groups import Alert, Group
from .options import Options
from .recordings import recordings
from .yaml import written

_MADE = "# Written by `python -m monitoring.generate`; change it there.\n"

_ALERTS = f"""{_MADE}#
# Every expression looks at the targets of one Prometheus job, `%s`: the job's name in prometheus.yml.
# Another name, other thresholds of yours: `python -m monitoring.generate --help`. What to do when one of them fires
# stands at its `runbook_url`, a path in this project's tree.

"""

_RECORDINGS = f"""{_MADE}#
# For dashboards over weeks. No alert depends on these, so that alerts.yaml can be loaded alone.

"""

_GRAFANA = f"""{_MADE}#
# The alerts of four panels, for Grafana's own (unified) alerting: a file for its provisioning/alerting folder. The data
# source must be provisioned with `uid: prometheus`. Where Prometheus and Alertmanager run alerts.yaml, leave this out.

"""


def files(options: Options, catalogue: Catalogue) -> dict[str, str]:
    """Return each file's text. Raises UnknownMetric."""
    return {
        "alerts.yaml": _ALERTS % options.job + alert_rules(groups(catalogue, options), options),
        "recording-rules.yaml": _RECORDINGS + recording_rules(catalogue, options),
        "grafana-dashboard.json": json.dumps(dashboard(catalogue, options), indent=2, ensure_ascii=False) + "\n",
        "grafana-alerts.yaml": _GRAFANA + written(provisioning(catalogue, options)),
    }


def alert_rules(made: Sequence[Group], options: Options) -> str:
    out = ["groups:"]
    for group in made:
        text = written([{"name": group.name, "interval": options.minutes(0.5), "rules": _rules(group, options)}])
        out += [f"  # {group.comment}", *(f"  {line}" for line in text.splitlines()), ""]
    return "\n".join(out).rstrip() + "\n"


def recording_rules(catalogue: Catalogue, options: Options) -> str:
    rules = [{"record": r.name, "expr": r.expr} for r in recordings(catalogue, options)]
    return written({"groups": [{"name": "openclaw-recordings", "interval": options.minutes(0.5), "rules": rules}]})


def _rules(group: Group, options: Options) -> list[dict[str, Any]]:
    return [_rule(alert, group.name.removeprefix("openclaw-"), options) for alert in group.alerts]


def _rule(alert: Alert, component: str, options: Options) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": alert.expr}
    if alert.minutes:
        rule["for"] = options.minutes(alert.minutes)
    rule["labels"] = {"severity": alert.severity, "component": component}
    rule["annotations"] = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{options.runbooks}#{alert.name.lower()}",
    }
    if alert.exporter is not None:
        rule["annotations"]["needs"] = alert.exporter
    return rule
