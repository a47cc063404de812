"""Alerts on what clients meet: requests, skills, sockets, limits, sessions, services behind."""

from __future__ import annotations

from .catalogue import Catalogue
from .groups import Alert, Group
from .options import Options
from .queries import Queries, but


def http(q: Queries, options: Options, catalogue: Catalogue) -> Group:
    served = but(catalogue.operations)
    timed = but([*catalogue.operations, *options.slow_routes])
    return Group(
        "openclaw-http",
        "Errors are ours (5xx): what a client gets wrong pages nobody. Probes and scrapes are left out of all four.",
        (
            Alert(
                "HighHTTPErrorRate",
                f"{q.failed_share(served)} > 0.05",
                5,
                "warning",
                "More than 5 % of requests fail",
                "{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} were answered with a 5xx.",
            ),
            Alert(
                "CriticalHTTPErrorRate",
                f"{q.failed_share(served)} > 0.1",
                2,
                "critical",
                "More than 10 % of requests fail",
                "{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} were answered with a 5xx.",
            ),
            Alert(
                "HighHTTPLatency",
                f"{q.p95('http_request_duration_seconds', timed, by=('job', 'route'))} > 1",
                5,
                "warning",
                "A route takes longer than 1 s",
                "The 95th percentile of {{ $labels.route }} is {{ $value | humanizeDuration }}.",
            ),
            Alert(
                "CriticalHTTPLatency",
                f"{q.p95('http_request_duration_seconds', timed, by=('job', 'route'))} > 5",
                2,
                "critical",
                "A route takes longer than 5 s",
                "The 95th percentile of {{ $labels.route }} is {{ $value | humanizeDuration }}.",
            ),
        ),
    )


def skill(q: Queries) -> Group:
    return Group(
        "openclaw-skill",
        "Success is the status `completed`; what a client cancelled counts as neither, everything else is a failure.",
        (
            Alert(
                "LowSkillSuccessRate",
                f"{q.skill_success()} < 0.9",
                5,
                "warning",
                "A skill succeeds less than 90 % of the time",
                "{{ $value | humanizePercentage }} of the runs of {{ $labels.skill_name }} completed.",
            ),
            Alert(
                "CriticalSkillSuccessRate",
                f"{q.skill_success()} < 0.7",
                2,
                "critical",
                "A skill succeeds less than 70 % of the time",
                "{{ $value | humanizePercentage }} of the runs of {{ $labels.skill_name }} completed.",
            ),
            Alert(
                "HighSkillExecutionLatency",
                f"{q.p95('skill_execution_duration_seconds', by=('job', 'skill_name'))} > 30",
                5,
                "warning",
                "A skill takes longer than 30 s",
                "The 95th percentile of {{ $labels.skill_name }} is {{ $value | humanizeDuration }}.",
            ),
        ),
    )


def quota(q: Queries) -> Group:
    return Group(
        "openclaw-quota",
        "A customer's quota is his and his account manager's matter: a warning, at no hour of the night.",
        (
            Alert(
                "QuotaNearLimit",
                f"{q.most('quota_usage', by=('job', 'tier', 'quota'))} > 0.8",
                5,
                "warning",
                "An organisation has used more than 80 % of a quota",
                "The organisation that used most of {{ $labels.quota }} in the tier {{ $labels.tier }} stands at "
                "{{ $value | humanizePercentage }}.",
            ),
            Alert(
                "QuotaExceeded",
                f"{q.rate('quota_exceeded_total', by=('job', 'tier', 'quota'))} > 0",
                2,
                "warning",
                "Requests are refused by a quota",
                '{{ $value | printf "%.2f" }} requests a second are refused by {{ $labels.quota }} in the tier '
                "{{ $labels.tier }}.",
            ),
        ),
    )


def ratelimit(q: Queries) -> Group:
    return Group(
        "openclaw-ratelimit",
        "Refusals by a rate limit are the gateway doing its work; many of them are worth a look.",
        (
            Alert(
                "HighRateLimitHits",
                f"{q.rate('rate_limit_hits_total', by=('job', 'tier', 'limit'))} > 1",
                5,
                "warning",
                "Many requests are refused by a rate limit",
                '{{ $value | printf "%.1f" }} requests a second are refused by {{ $labels.limit }} in the tier '
                "{{ $labels.tier }}.",
            ),
        ),
    )


def websocket(q: Queries) -> Group:
    sockets, answered = ("job", "instance"), 'type=~"message|error"'
    received = q.rate("websocket_messages_total", 'direction="inbound"', 'type="message"', by=sockets)
    sent = q.rate("websocket_messages_total", 'direction="outbound"', answered, by=sockets)
    return Group(
        "openclaw-websocket",
        "A tier's cap on sockets is enforced, so no alert repeats it; what no tier knows is what the process can hold.",
        (
            Alert(
                "HighWebSocketConnectionCount",
                f"sum by (job, instance) ({q.series('websocket_connections_active')})\n"
                f"/ {q.most('process_max_fds', by=sockets)} > 0.8",
                5,
                "warning",
                "A process is running out of room for sockets",
                "Open WebSockets take {{ $value | humanizePercentage }} of the file descriptors that "
                "{{ $labels.instance }} may open.",
            ),
            Alert(
                "WebSocketMessageBacklog",
                # Both sides are added up to the same labels; where nothing at all was sent there is no series of it.
                f"{received}\n> 2 * ({sent} or 0 * {received})",
                5,
                "warning",
                "WebSocket messages are not being answered",
                '{{ $labels.instance }} takes {{ $value | printf "%.1f" }} messages a second, more than twice what '
                "it answers.",
            ),
        ),
    )


def external(q: Queries) -> Group:
    called = ("job", "target", "operation")
    # What a client asked for wrongly, or gave up, is no fault of the service.
    faults = 'error_type!~"bad_request|cancelled"'
    return Group(
        "openclaw-external",
        "Services behind the gateway, models above all, by the id of the plugin that calls them.",
        (
            Alert(
                "HighExternalServiceErrorRate",
                f"{q.rate('external_service_errors_total', faults, by=called)} > 0.1",
                5,
                "warning",
                "Calls of an external service fail",
                '{{ $value | printf "%.2f" }} calls of {{ $labels.target }} a second fail ({{ $labels.operation }}).',
            ),
            Alert(
                "HighExternalServiceLatency",
                f"{q.p95('external_service_duration_seconds', by=called)} > 10",
                5,
                "warning",
                "An external service takes longer than 10 s",
                "The 95th percentile of {{ $labels.target }} ({{ $labels.operation }}) is "
                "{{ $value | humanizeDuration }}.",
            ),
        ),
    )


def session(q: Queries, options: Options) -> Group:
    return Group(
        "openclaw-session",
        "Every process reads the number of active sessions from the same store: the highest is taken, never the sum.",
        (
            Alert(
                "HighActiveSessionCount",
                f"sum by (job) ({q.most('sessions_active', by=('job', 'tier'))}) > {options.active_sessions}",
                10,
                "warning",
                f"More than {options.active_sessions:,} sessions are active",
                "{{ $value }} sessions are active.",
            ),
            Alert(
                "SessionCreationSpike",
                f"{q.rate('sessions_total', by=('job',))} > 10",
                5,
                "warning",
                "Sessions are created unusually fast",
                '{{ $value | printf "%.1f" }} sessions a second are created.',
            ),
        ),
    )
