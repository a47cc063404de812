"""The 18 panels: what each asks, in which unit, and where its colours change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .catalogue import Catalogue
from .options import Options
from .queries import Queries, but


class Query(NamedTuple):
    expr: str
    legend: str


class Panel(NamedTuple):
    """One panel; `unit` is Grafana's word, `limits` are where its colours change, `links` lead on."""

    title: str
    unit: str
    text: str
    queries: tuple[Query, ...]
    limits: tuple[float, ...] = ()
    top: float | None = None


def panels(catalogue: Catalogue, options: Options) -> list[Panel]:
    """Return the panels, each query checked against what is written."""
    made = list(_panels(but(catalogue.operations), options))
    for panel in made:
        for query in panel.queries:
            catalogue.check(plain(query.expr))
    return made


def plain(expr: str, *, job: str = "openclaw-gateway", window: str = "5m") -> str:
    """The query with every variable of the dashboard set to everything, as Prometheus itself understands it."""
    for variable, value in {
        "$__rate_interval": window,
        "$job": job,
        "$instance": ".*",
        "$tier": ".*",
        "$route": ".*",
    }.items():
        expr = expr.replace(variable, value)
    return expr


def _panels(served: str, options: Options) -> Iterator[Panel]:
    q = Queries('job="$job", instance=~"$instance"', "$__rate_interval")
    route, tier = 'route=~"$route"', 'tier=~"$tier"'
    yield Panel(
        "HTTP Request Rate",
        "reqps",
        "Requests that ended, a second, by route and status. A status of 0 is a client that left before the answer.",
        (
            Query(
                q.rate("http_requests_total", route, by=("route", "status_code")),
                "{{route}} {{status_code}}",
            ),
        ),
    )
    yield Panel(
        "HTTP Request Latency (p95)",
        "s",
        "From the first byte of a request to the last of its response. Routes that wait for a model are as slow as it.",
        (Query(q.p95("http_request_duration_seconds", route, by=("route",)), "{{route}}"),),
        (1, 5),
    )
    refused = q.rate("http_requests_total", route, served, 'status_code=~"4.."', by=("job",))
    everything = q.rate("http_requests_total", route, served, by=("job",))
    yield Panel(
        "Error Rate",
        "percentunit",
        "Share of requests that end in an error, without probes and scrapes. 5xx is ours, 4xx the client's.",
        (
            Query(q.failed_share(route, served), "server errors (5xx)"),
            Query(
                f"{refused}\n/ {everything}",
                "client errors (4xx)",
            ),
        ),
        (0.05, 0.1),
    )
    yield Panel(
        "Active WebSocket Connections",
        "none",
        "Open sockets of all processes.",
        (Query(f"sum by (tier) ({q.series('websocket_connections_active', tier)})", "{{tier}}"),),
    )
    yield Panel(
        "Active Sessions by Tier",
        "none",
        "As counted in the store; every process says the same, so the highest is taken and not the sum.",
        (Query(q.most("sessions_active", tier, by=("tier",)), "{{tier}}"),),
    )
    yield Panel(
        "Session Creation Rate",
        "ops",
        "Sessions created a second.",
        (Query(q.rate("sessions_total", tier, by=("tier",)), "{{tier}}"),),
    )
    yield Panel(
        "Skill Execution Success Rate",
        "percentunit",
        "Share of runs that completed.",
        (Query(q.skill_success(), "{{skill_name}}"),),
        top=1,
    )
    yield Panel(
        "Skill Execution Duration (p95)",
        "s",
        "From start to end of a run.",
        (Query(q.p95("skill_execution_duration_seconds", by=("skill_name",)), "{{skill_name}}"),),
        (30,),
    )
    yield Panel(
        "CPU Usage",
        "percentunit",
        "Share of one core that each process uses.",
        (Query(f"rate({q.series('process_cpu_seconds_total')}[{q.window}])", "{{instance}}"),),
        (0.8,),
    )
    yield Panel(
        "Memory Usage",
        "bytes",
        "Resident memory of each process.",
        (Query(q.series("process_resident_memory_bytes"), "{{instance}}"),),
        (2**30, 2 * 2**30),
    )
    yield Panel(
        "Database Query Latency (p95)",
        "s",
        "From the wait for a connection to the end of the transaction.",
        (
            Query(
                q.p95("database_query_duration_seconds", by=("operation", "table")),
                "{{operation}} {{table}}",
            ),
        ),
        (0.5,),
    )
    yield Panel(
        "Database Active Connections",
        "none",
        "Connections in use, and how many there may be.",
        (
            Query(q.most("database_connections_active", by=("instance", "pool")), "{{instance}} {{pool}}"),
            Query(q.most("database_connections_limit", by=("pool",)), "limit of {{pool}}"),
        ),
    )
    yield Panel(
        "Redis Command Latency (p95)",
        "s",
        "By command; empty without Redis or Valkey.",
        (Query(q.p95("redis_command_duration_seconds", by=("command",)), "{{command}}"),),
        (0.1,),
    )
    yield Panel(
        "Rate Limit Hits",
        "reqps",
        "Requests that a rate limit refused.",
        (Query(q.rate("rate_limit_hits_total", tier, by=("tier", "limit")), "{{tier}} {{limit}}"),),
    )
    yield Panel(
        "Quota Usage by Tier",
        "percentunit",
        "How far the organisation that has used most of a quota stands, as seen by any process.",
        (Query(q.most("quota_usage", tier, by=("tier", "quota")), "{{tier}} {{quota}}"),),
        (0.8, 1),
        top=1,
    )
    yield Panel(
        "Message Processing Rate",
        "ops",
        "Turns that clients send (inbound), and answers (outbound).",
        (Query(q.rate("messages_total", tier, by=("tier", "direction")), "{{tier}} {{direction}}"),),
    )
    yield Panel(
        "External Service Errors",
        "ops",
        "Failed calls of services behind the gateway, a second.",
        (
            Query(
                q.rate("external_service_errors_total", by=("target", "operation", "error_type")),
                "{{target}} {{operation}} {{error_type}}",
            ),
        ),
    )
    restarts = f'kube_pod_container_status_restarts_total{{pod=~"{options.pods}"}}[10m]'
    yield Panel(
        "Pod Restarts",
        "none",
        "Restarts within 10 minutes. Needs kube-state-metrics.",
        (Query(f"round(sum by (namespace, pod) (increase({restarts})))", "{{pod}}"),),
        (3,),
    )
