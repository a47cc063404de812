"""What operators collect of runs; skills are named by configuration, so the series are bounded."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from openclaw_gateway.api import ExecutionStatus, Host

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Numbers:
    """The series of all skills of a gateway."""

    def __init__(self, host: Host) -> None:
        self._runs = host.metric(Counter, "skill_executions", "Runs of skills that ended.", ("skill_name", "status"))
        self._seconds = host.metric(
            Histogram,
            "skill_execution_duration_seconds",
            "How long runs of skills take.",
            ("skill_name",),
            buckets=_BUCKETS,
        )
        self._errors = host.metric(
            Counter, "skill_execution_errors", "Runs of skills that did not complete.", ("skill_name", "error_type")
        )

    def ended(self, skill: str, status: ExecutionStatus, seconds: float, error_type: str | None) -> None:
        self._runs.labels(skill, status).inc()
        self._seconds.labels(skill).observe(seconds)
        if error_type is not None:
            self._errors.labels(skill, error_type).inc()

    def lost(self, skill: str) -> None:
        self._runs.labels(skill, "lost").inc()
        self._errors.labels(skill, "lost").inc()
