"""The dashboard: 18 panels over one job, with variables and a way down from each series to what it is about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as style
from grafana_foundation_sdk.models import dashboard as model

from .catalogue import Catalogue
from .options import Options
from .panels import Panel, Query, panels

UID = "openclaw-gateway"
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def dashboard(catalogue: Catalogue, options: Options) -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    page = (
        build.Dashboard("OpenClaw Gateway")
        .uid(UID)
        .tags(["openclaw", "gateway"])
        .timezone("utc")
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("More of this gateway")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["openclaw"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
    )
    for variable in _variables(options):
        page = page.with_variable(variable)
    for number, panel in enumerate(panels(catalogue, options)):
        page = page.with_panel(_drawn(panel, number))
    made: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(page.build()))
    return made


def _variables(options: Options) -> Iterator[Any]:
    yield build.DatasourceVariable("datasource").label("Data source").type("prometheus")
    job = build.QueryVariable("job").label("Job").datasource(_SOURCE).query("label_values(config_generation, job)")
    yield job.current(model.VariableOption(selected=True, text=options.job, value=options.job)).refresh(
        model.VariableRefresh.ON_DASHBOARD_LOAD
    )
    for name, label, query in (
        ("instance", "Instance", 'label_values(config_generation{job="$job"}, instance)'),
        ("tier", "Tier", 'label_values(quota_limit{job="$job"}, tier)'),
        ("route", "Route", 'label_values(http_requests_total{job="$job"}, route)'),
    ):
        yield (
            build.QueryVariable(name)
            .label(label)
            .datasource(_SOURCE)
            .query(query)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all"))
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
        )


def _drawn(panel: Panel, number: int) -> Any:
    drawn = (
        timeseries.Panel()
        .id(number + 1)
        .title(panel.title)
        .description(panel.text)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .min(0)
        .fill_opacity(10)
        .show_points(style.VisibilityMode.NEVER)
        .grid_pos(model.GridPos(h=8, w=8, x=8 * (number % 3), y=8 * (number // 3)))
        .legend(
            common.VizLegendOptions()
            .display_mode(style.LegendDisplayMode.TABLE)
            .placement(style.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull", "max"])
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(style.TooltipDisplayMode.MULTI).sort(style.SortOrder.DESCENDING))
        .data_links(_ways_down(panel.queries))
    )
    if panel.top is not None:
        drawn = drawn.max(panel.top)
    if panel.limits:
        colours = ("orange", "red") if len(panel.limits) > 1 else ("red",)
        steps = [model.Threshold(value=None, color="green")]
        steps += [model.Threshold(value=v, color=c) for v, c in zip(panel.limits, colours, strict=True)]
        drawn = drawn.thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        drawn = drawn.thresholds_style(common.GraphThresholdsStyleConfig().mode(style.GraphTresholdsStyleMode.DASHED))
    for letter, query in zip("ABC", panel.queries, strict=False):
        drawn = drawn.with_target(
            prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend).range()
        )
    return drawn


def _ways_down(queries: Sequence[Query]) -> list[Any]:
    """From a series to this dashboard with only its route, tier or instance."""
    return [
        build.DashboardLink(f"Only this {label}").url(
            f"/d/{UID}?${{datasource:queryparam}}&${{job:queryparam}}&var-{label}=${{__field.labels.{label}}}"
            "&${__url_time_range}"
        )
        for label in ("route", "tier", "instance")
        if any(f"{{{{{label}}}}}" in query.legend for query in queries)
    ]
