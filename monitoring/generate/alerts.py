"""The 27 alert rules in their 11 groups, in the order in which they are written."""

from __future__ import annotations

from . import platform, traffic
from .catalogue import Catalogue
from .groups import Group
from .options import Options
from .queries import Queries


def groups(catalogue: Catalogue, options: Options) -> list[Group]:
    """Return every group, each expression checked against what is written."""
    q = Queries(f'job="{options.job}"', options.minutes(5))
    made = [
        traffic.http(q, options, catalogue),
        traffic.skill(q),
        platform.database(q),
        platform.redis(q),
        platform.resource(q),
        platform.pod(q, options),
        traffic.quota(q),
        traffic.ratelimit(q),
        traffic.websocket(q),
        traffic.external(q),
        traffic.session(q, options),
    ]
    for group in made:
        for alert in group.alerts:
            catalogue.check(alert.expr)
    return made
