"""The recording rules: what long ranges are drawn from."""

from __future__ import annotations

from typing import NamedTuple

from .catalogue import Catalogue
from .options import Options
from .queries import Queries, but


class Recording(NamedTuple):
    name: str
    expr: str
    labels: frozenset[str]


def recordings(catalogue: Catalogue, options: Options) -> list[Recording]:
    """What long ranges are drawn from: a month of buckets is too much to read at each refresh."""
    q = Queries(f'job="{options.job}"', options.minutes(5))
    served = but(catalogue.operations)
    made = [
        Recording(
            "job_route_status:http_requests:rate5m",
            q.rate("http_requests_total", by=("job", "route", "status_code")),
            frozenset({"job", "route", "status_code"}),
        ),
        Recording("job:http_requests:failed_share5m", q.failed_share(served), frozenset({"job"})),
        Recording(
            "job_route:http_request_duration_seconds:p95_5m",
            q.p95("http_request_duration_seconds", by=("job", "route")),
            frozenset({"job", "route"}),
        ),
        Recording(
            "job_tier_direction:messages:rate5m",
            q.rate("messages_total", by=("job", "tier", "direction")),
            frozenset({"job", "tier", "direction"}),
        ),
        Recording(
            "job_tier:sessions_active:max", q.most("sessions_active", by=("job", "tier")), frozenset({"job", "tier"})
        ),
        Recording(
            "job_tier_quota:quota_usage:max",
            q.most("quota_usage", by=("job", "tier", "quota")),
            frozenset({"job", "tier", "quota"}),
        ),
    ]
    for recording in made:
        catalogue.check(recording.expr)
    return made
