"""Alerts on what the gateway stands on: stores, processes, pods."""

from __future__ import annotations

from .groups import Alert, Group
from .options import Options
from .queries import Queries

_KUBE = "kube-state-metrics"


def database(q: Queries) -> Group:
    # What a client sent and no table can hold is refused as his mistake.
    faults = 'error_type!="unstorable"'
    pool = ("job", "instance", "pool")
    return Group(
        "openclaw-database",
        "The pool rule compares with the size that the process itself states, and follows its configuration.",
        (
            Alert(
                "HighDatabaseLatency",
                f"{q.p95('database_query_duration_seconds', by=('job', 'operation', 'table'))} > 0.5",
                5,
                "warning",
                "The database is slow",
                "The 95th percentile of {{ $labels.operation }} on {{ $labels.table }} is "
                "{{ $value | humanizeDuration }}, waiting for a connection included.",
            ),
            Alert(
                "HighDatabaseErrorRate",
                f"{q.rate('database_errors_total', faults, by=('job', 'operation', 'error_type'))} > 0.1",
                5,
                "warning",
                "Transactions fail",
                '{{ $value | printf "%.2f" }} transactions a second fail ({{ $labels.operation }}, '
                "{{ $labels.error_type }}).",
            ),
            Alert(
                "DatabaseConnectionPoolExhausted",
                # Over the whole window: a pool of one, SQLite's writer, is full whenever anything is written.
                f"max by ({', '.join(pool)}) "
                f"(avg_over_time({q.series('database_connections_active')}[{q.window}]))\n"
                f"/ {q.most('database_connections_limit', by=pool)} > 0.9",
                5,
                "warning",
                "A connection pool is nearly used up",
                "{{ $value | humanizePercentage }} of the {{ $labels.pool }} connections of {{ $labels.instance }} "
                "are in use.",
            ),
        ),
    )


def redis(q: Queries) -> Group:
    return Group(
        "openclaw-redis",
        "For installations with Redis or Valkey; without one there are no series and the rules stay quiet.",
        (
            Alert(
                "HighRedisLatency",
                f"{q.p95('redis_command_duration_seconds', by=('job', 'command'))} > 0.1",
                5,
                "warning",
                "Redis is slow",
                "The 95th percentile of {{ $labels.command }} is {{ $value | humanizeDuration }}.",
            ),
            Alert(
                "HighRedisErrorRate",
                # In an outage the breaker opens and few calls are made at all: then it is the breaker that tells.
                f"{q.rate('redis_errors_total', by=('job', 'command', 'error_type'))} > 0.1\n"
                f"or {q.most('ledger_degraded', by=('job', 'backend'))} > 0",
                5,
                "warning",
                "Redis commands fail, or are held back",
                "{{ if $labels.backend }}{{ $labels.backend }} does not reach its store, and the failure policies of "
                'the limits decide.{{ else }}{{ $value | printf "%.2f" }} commands a second fail '
                "({{ $labels.command }}, {{ $labels.error_type }}).{{ end }}",
            ),
        ),
    )


def resource(q: Queries) -> Group:
    memory = q.series("process_resident_memory_bytes")
    return Group(
        "openclaw-resource",
        "From the gateway's own /metrics: no exporter of the node is needed.",
        (
            Alert(
                "HighCPUUsage",
                f"rate({q.series('process_cpu_seconds_total')}[{q.window}]) > 0.8",
                10,
                "warning",
                "A process uses more than 80 % of a core",
                "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of a core, and one process cannot use "
                "much more than one.",
            ),
            Alert(
                "HighMemoryUsage",
                f"{memory} > {2**30}",
                10,
                "warning",
                "A process holds more than 1 GiB",
                "{{ $labels.instance }} holds {{ $value | humanize1024 }}B.",
            ),
            Alert(
                "CriticalMemoryUsage",
                f"{memory} > {2 * 2**30}",
                5,
                "critical",
                "A process holds more than 2 GiB",
                "{{ $labels.instance }} holds {{ $value | humanize1024 }}B.",
            ),
        ),
    )


def pod(q: Queries, options: Options) -> Group:
    pods = f'pod=~"{options.pods}"'
    finished = f'max by (namespace, pod) (kube_pod_status_phase{{{pods}, phase=~"Succeeded|Failed"}}) == 1'
    return Group(
        "openclaw-pod",
        f"Needs {_KUBE}, scraped by the same Prometheus; elsewhere the rules stay quiet.",
        (
            Alert(
                "PodRestartLoop",
                # Rounded: a counter's increase is extrapolated to the edges of its window, and 3 must not become 3.2.
                "round(sum by (namespace, pod) "
                f"(increase(kube_pod_container_status_restarts_total{{{pods}}}[{options.minutes(10)}]))) > 3",
                0,
                "warning",
                "A pod restarts again and again",
                f"{{{{ $labels.pod }}}} restarted {{{{ $value }}}} times in {options.minutes(10)}.",
                _KUBE,
            ),
            Alert(
                "PodNotReady",
                # A job's pod that is done is not ready either, for ever.
                f'max by (namespace, pod) (kube_pod_status_ready{{{pods}, condition="true"}}) == 0\n'
                f"unless on (namespace, pod) {finished}",
                5,
                "critical",
                "A pod is not ready",
                "{{ $labels.pod }} in {{ $labels.namespace }} takes no traffic.",
                _KUBE,
            ),
            Alert(
                "PodPending",
                f'max by (namespace, pod) (kube_pod_status_phase{{{pods}, phase="Pending"}}) == 1',
                5,
                "warning",
                "A pod cannot be scheduled",
                "{{ $labels.pod }} in {{ $labels.namespace }} waits for a node.",
                _KUBE,
            ),
        ),
    )
