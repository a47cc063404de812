"""For each alert what makes it fire, what it then says, and what comes close and must leave it quiet.

Series are in promtool's notation, a value a minute: `0+6x20` starts at 0 and grows by 6, twenty times.
"""

from __future__ import annotations

from typing import NamedTuple

A = 'job="openclaw-gateway", instance="a:9090"'
B = 'job="openclaw-gateway", instance="b:9090"'


class Case(NamedTuple):
    """`labels` are those of the firing alert beside severity and component; `at` is in minutes."""

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str]
    says: str
    at: int = 12


def requests(route: str, status: str, target: str = A) -> str:
    return f'http_requests_total{{{target}, method="POST", route="{route}", status_code="{status}"}}'


def buckets(name: str, labels: str, counts: dict[str, int], minutes: int = 20) -> dict[str, str]:
    """A histogram that grows by these counts a minute; the last one is of all observations."""
    return {f'{name}_bucket{{{labels}, le="{le}"}}': f"0+{count}x{minutes}" for le, count in counts.items()}


def latency(target: str, counts: dict[str, int]) -> dict[str, str]:
    labels = f'{target}, method="POST", route="/v1/chat/completions", status_code="200"'
    return buckets("http_request_duration_seconds", labels, counts)


def skill(status: str) -> str:
    return f'skill_executions_total{{{A}, skill_name="search", status="{status}"}}'


def socket(direction: str, type: str) -> str:
    return f'websocket_messages_total{{{A}, direction="{direction}", type="{type}"}}'


def upstream_errors(error_type: str) -> str:
    return f'external_service_errors_total{{{A}, target="openai", operation="chat", error_type="{error_type}"}}'


_CHAT, _PROBE = "/v1/chat/completions", "/health/live"
_JOB = {"job": "openclaw-gateway"}
_ROUTE = {**_JOB, "route": _CHAT}
_POD = {"namespace": "ai", "pod": "openclaw-gateway-7f9-x1"}
_POD_LABELS = 'namespace="ai", pod="openclaw-gateway-7f9-x1"'
_RESTARTS = f'kube_pod_container_status_restarts_total{{{_POD_LABELS}, container="gateway"}}'
_READY = f'kube_pod_status_ready{{{_POD_LABELS}, condition="true"}}'

CASES = (
    Case(
        "HighHTTPErrorRate",
        # Probes that succeed a thousand times a minute hide nothing.
        {requests(_CHAT, "200"): "0+94x20", requests(_CHAT, "502"): "0+6x20", requests(_PROBE, "200"): "0+1000x20"},
        # Half of all requests wrong by the client's fault, and 5 % by ours.
        {requests(_CHAT, "200"): "0+45x20", requests(_CHAT, "429"): "0+50x20", requests(_CHAT, "500"): "0+5x20"},
        _JOB,
        "6% of the requests of openclaw-gateway were answered with a 5xx.",
    ),
    Case(
        "CriticalHTTPErrorRate",
        {requests(_CHAT, "200"): "0+44x20", requests(_CHAT, "500", B): "0+11x20", requests(_CHAT, "404"): "0+45x20"},
        {requests(_CHAT, "200"): "0+90x20", requests(_CHAT, "500"): "0+10x20"},
        _JOB,
        "11% of the requests of openclaw-gateway were answered with a 5xx.",
        at=6,
    ),
    Case(
        "HighHTTPLatency",
        # Two replicas are one quantile: the mean of their quantiles would be 0.975 s.
        {
            **latency(A, {"0.5": 0, "1": 100, "2.5": 100, "+Inf": 100}),
            **latency(B, {"0.5": 0, "1": 88, "2.5": 100, "+Inf": 100}),
        },
        latency(A, {"0.5": 0, "1": 96, "2.5": 100, "+Inf": 100}),
        _ROUTE,
        "The 95th percentile of /v1/chat/completions is 1.25s.",
    ),
    Case(
        "CriticalHTTPLatency",
        latency(A, {"2.5": 0, "5": 90, "10": 100, "+Inf": 100}),
        latency(A, {"2.5": 0, "5": 96, "10": 100, "+Inf": 100}),
        _ROUTE,
        "The 95th percentile of /v1/chat/completions is 7.5s.",
        at=6,
    ),
    Case(
        "LowSkillSuccessRate",
        {skill("completed"): "0+88x20", skill("failed"): "0+9x20", skill("timeout"): "0+3x20"},
        # What clients cancel is no failure.
        {skill("completed"): "0+90x20", skill("failed"): "0+10x20", skill("cancelled"): "0+500x20"},
        {**_JOB, "skill_name": "search"},
        "88% of the runs of search completed.",
    ),
    Case(
        "CriticalSkillSuccessRate",
        # A skill that has never completed a run has no series of that status.
        {skill("failed"): "0+4x20"},
        {skill("completed"): "0+7x20", skill("failed"): "0+3x20"},
        {**_JOB, "skill_name": "search"},
        "0% of the runs of search completed.",
        at=6,
    ),
    Case(
        "HighSkillExecutionLatency",
        buckets("skill_execution_duration_seconds", f'{A}, skill_name="search"', {"30": 9, "60": 10, "+Inf": 10}),
        buckets("skill_execution_duration_seconds", f'{A}, skill_name="search"', {"30": 10, "60": 10, "+Inf": 10}),
        {**_JOB, "skill_name": "search"},
        "The 95th percentile of search is 45s.",
    ),
    Case(
        "HighDatabaseLatency",
        buckets(
            "database_query_duration_seconds",
            f'{A}, operation="insert", table="openclaw_messages"',
            {"0.5": 90, "1": 100, "+Inf": 100},
        ),
        buckets(
            "database_query_duration_seconds",
            f'{A}, operation="insert", table="openclaw_messages"',
            {"0.5": 96, "1": 100, "+Inf": 100},
        ),
        {**_JOB, "operation": "insert", "table": "openclaw_messages"},
        "The 95th percentile of insert on openclaw_messages is 750ms, waiting for a connection included.",
    ),
    Case(
        "HighDatabaseErrorRate",
        {f'database_errors_total{{{A}, operation="insert", error_type="unavailable"}}': "0+12x20"},
        {
            f'database_errors_total{{{A}, operation="insert", error_type="unavailable"}}': "0+5x20",
            f'database_errors_total{{{A}, operation="insert", error_type="unstorable"}}': "0+600x20",
        },
        {**_JOB, "operation": "insert", "error_type": "unavailable"},
        "0.20 transactions a second fail (insert, unavailable).",
    ),
    Case(
        "DatabaseConnectionPoolExhausted",
        # Four of four: a rule that copied "18 of 20" would sleep.
        {
            f'database_connections_active{{{A}, pool="read"}}': "4x20",
            f'database_connections_limit{{{A}, pool="read"}}': "4x20",
        },
        {
            f'database_connections_active{{{A}, pool="read"}}': "19x20",
            f'database_connections_limit{{{A}, pool="read"}}': "40x20",
            # The one writer of SQLite, busy at every other look.
            f'database_connections_active{{{A}, pool="writer"}}': "1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0",
            f'database_connections_limit{{{A}, pool="writer"}}': "1x20",
        },
        {"job": "openclaw-gateway", "instance": "a:9090", "pool": "read"},
        "100% of the read connections of a:9090 are in use.",
    ),
    Case(
        "HighRedisLatency",
        buckets("redis_command_duration_seconds", f'{A}, command="charge"', {"0.1": 90, "0.3": 100, "+Inf": 100}),
        buckets("redis_command_duration_seconds", f'{A}, command="charge"', {"0.1": 96, "0.3": 100, "+Inf": 100}),
        {**_JOB, "command": "charge"},
        "The 95th percentile of charge is 200ms.",
    ),
    Case(
        "HighRedisErrorRate",
        {f'redis_errors_total{{{A}, command="charge", error_type="unreachable"}}': "0+30x20"},
        {f'redis_errors_total{{{A}, command="charge", error_type="unreachable"}}': "0+5x20"},
        {**_JOB, "command": "charge", "error_type": "unreachable"},
        "0.50 commands a second fail (charge, unreachable).",
    ),
    Case(
        "HighRedisErrorRate",
        # The outage itself: the breaker has opened, and hardly a command is sent that could fail.
        {
            f'redis_errors_total{{{A}, command="charge", error_type="unreachable"}}': "5x20",
            f'ledger_degraded{{{A}, backend="counters"}}': "1x20",
        },
        {f'ledger_degraded{{{A}, backend="counters"}}': "0x20"},
        {**_JOB, "backend": "counters"},
        "counters does not reach its store, and the failure policies of the limits decide.",
    ),
    Case(
        "HighCPUUsage",
        # Another program's process is no business of this rule.
        {
            f"process_cpu_seconds_total{{{A}}}": "0+54x30",
            'process_cpu_seconds_total{job="node", instance="n:9100"}': "0+59x30",
        },
        {f"process_cpu_seconds_total{{{A}}}": "0+48x30"},
        {"job": "openclaw-gateway", "instance": "a:9090"},
        "a:9090 uses 90% of a core, and one process cannot use much more than one.",
        at=20,
    ),
    Case(
        "HighMemoryUsage",
        {f"process_resident_memory_bytes{{{A}}}": "1610612736x30"},
        {f"process_resident_memory_bytes{{{A}}}": "1073741824x30"},
        {"job": "openclaw-gateway", "instance": "a:9090"},
        "a:9090 holds 1.5GiB.",
        at=20,
    ),
    Case(
        "CriticalMemoryUsage",
        {f"process_resident_memory_bytes{{{A}}}": "3221225472x20"},
        {f"process_resident_memory_bytes{{{A}}}": "2147483648x20"},
        {"job": "openclaw-gateway", "instance": "a:9090"},
        "a:9090 holds 3GiB.",
    ),
    Case(
        "PodRestartLoop",
        {_RESTARTS: "0 0 0 0 0 1 2 3 4 4 4 4 4 4"},
        {_RESTARTS: "0 0 0 0 0 1 2 3 3 3 3 3 3 3"},
        _POD,
        "openclaw-gateway-7f9-x1 restarted 4 times in 10m.",
    ),
    Case(
        "PodNotReady",
        {_READY: "0x20", f'kube_pod_status_phase{{{_POD_LABELS}, phase="Running"}}': "1x20"},
        # A job that is done is not ready either.
        {_READY: "0x20", f'kube_pod_status_phase{{{_POD_LABELS}, phase="Succeeded"}}': "1x20"},
        _POD,
        "openclaw-gateway-7f9-x1 in ai takes no traffic.",
    ),
    Case(
        "PodPending",
        {f'kube_pod_status_phase{{{_POD_LABELS}, phase="Pending"}}': "1x20"},
        {f'kube_pod_status_phase{{{_POD_LABELS}, phase="Pending"}}': "1x3 0x17"},
        _POD,
        "openclaw-gateway-7f9-x1 in ai waits for a node.",
    ),
    Case(
        "QuotaNearLimit",
        {
            f'quota_usage{{{A}, tier="teams", quota="quota.messages"}}': "0.2x20",
            f'quota_usage{{{B}, tier="teams", quota="quota.messages"}}': "0.92x20",
        },
        {f'quota_usage{{{A}, tier="teams", quota="quota.messages"}}': "0.8x20"},
        {**_JOB, "tier": "teams", "quota": "quota.messages"},
        "The organisation that used most of quota.messages in the tier teams stands at 92%.",
    ),
    Case(
        "QuotaExceeded",
        {f'quota_exceeded_total{{{A}, tier="teams", quota="quota.messages"}}': "0+3x20"},
        {f'quota_exceeded_total{{{A}, tier="teams", quota="quota.messages"}}': "7x20"},
        {**_JOB, "tier": "teams", "quota": "quota.messages"},
        "0.05 requests a second are refused by quota.messages in the tier teams.",
        at=6,
    ),
    Case(
        "HighRateLimitHits",
        {
            f'rate_limit_hits_total{{{A}, tier="teams", limit="ratelimit.requests"}}': "0+60x20",
            f'rate_limit_hits_total{{{B}, tier="teams", limit="ratelimit.requests"}}': "0+60x20",
        },
        {f'rate_limit_hits_total{{{A}, tier="teams", limit="ratelimit.requests"}}': "0+60x20"},
        {**_JOB, "tier": "teams", "limit": "ratelimit.requests"},
        "2.0 requests a second are refused by ratelimit.requests in the tier teams.",
    ),
    Case(
        "HighWebSocketConnectionCount",
        {
            f'websocket_connections_active{{{A}, tier="teams"}}': "500x20",
            f'websocket_connections_active{{{A}, tier="government"}}': "400x20",
            f"process_max_fds{{{A}}}": "1000x20",
        },
        {
            f'websocket_connections_active{{{A}, tier="teams"}}': "900x20",
            f"process_max_fds{{{A}}}": "65536x20",
        },
        {"job": "openclaw-gateway", "instance": "a:9090"},
        "Open WebSockets take 90% of the file descriptors that a:9090 may open.",
    ),
    Case(
        "WebSocketMessageBacklog",
        # Not one answer: there is no series of answers at all, and pongs are none.
        {socket("inbound", "message"): "0+120x20", socket("outbound", "pong"): "0+600x20"},
        {
            socket("inbound", "message"): "0+120x20",
            socket("outbound", "message"): "0+50x20",
            socket("outbound", "error"): "0+10x20",
        },
        {"job": "openclaw-gateway", "instance": "a:9090"},
        "a:9090 takes 2.0 messages a second, more than twice what it answers.",
    ),
    Case(
        "HighExternalServiceErrorRate",
        {upstream_errors("unreachable"): "0+12x20"},
        # Prompts that the upstream finds fault with are their senders' matter.
        {upstream_errors("unreachable"): "0+6x20", upstream_errors("bad_request"): "0+600x20"},
        {**_JOB, "target": "openai", "operation": "chat"},
        "0.20 calls of openai a second fail (chat).",
    ),
    Case(
        "HighExternalServiceLatency",
        buckets(
            "external_service_duration_seconds",
            f'{A}, target="openai", operation="chat"',
            {"10": 90, "30": 100, "+Inf": 100},
        ),
        buckets(
            "external_service_duration_seconds",
            f'{A}, target="openai", operation="chat"',
            {"10": 96, "30": 100, "+Inf": 100},
        ),
        {**_JOB, "target": "openai", "operation": "chat"},
        "The 95th percentile of openai (chat) is 20s.",
    ),
    Case(
        "HighActiveSessionCount",
        {
            f'sessions_active{{{A}, tier="teams"}}': "900x30",
            f'sessions_active{{{A}, tier="government"}}': "300x30",
        },
        # Two replicas read the same 900 from the same store.
        {
            f'sessions_active{{{A}, tier="teams"}}': "900x30",
            f'sessions_active{{{B}, tier="teams"}}': "900x30",
        },
        _JOB,
        "1200 sessions are active.",
        at=20,
    ),
    Case(
        "SessionCreationSpike",
        {f'sessions_total{{{A}, tier="teams"}}': "0+900x20"},
        {f'sessions_total{{{A}, tier="teams"}}': "0+600x20"},
        _JOB,
        "15.0 sessions a second are created.",
    ),
)
