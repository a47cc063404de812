"""The few shapes of PromQL from which every rule and every panel is put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Queries(NamedTuple):
    """Writes queries about one set of targets; `window` is the range of its rates."""

    target: str
    window: str

    def series(self, metric: str, *matchers: str) -> str:
        return f"{metric}{{{', '.join([self.target, *matchers])}}}"

    def rate(self, metric: str, *matchers: str, by: Sequence[str]) -> str:
        """Events a second, added up; a rate of a sum would take a restart for a loss."""
        return f"sum by ({', '.join(by)}) (rate({self.series(metric, *matchers)}[{self.window}]))"

    def p95(self, histogram: str, *matchers: str, by: Sequence[str]) -> str:
        """One quantile of all that is added up: buckets are summed by `le` first, quantiles cannot be."""
        return f"histogram_quantile(0.95, {self.rate(f'{histogram}_bucket', *matchers, by=[*by, 'le'])})"

    def most(self, metric: str, *matchers: str, by: Sequence[str]) -> str:
        """For what every process tells of the same store: added up it would be counted once a process."""
        return f"max by ({', '.join(by)}) ({self.series(metric, *matchers)})"

    def failed_share(self, *matchers: str) -> str:
        """The share of requests that failed by our fault."""
        failed = self.rate("http_requests_total", *matchers, 'status_code=~"5.."', by=("job",))
        return f"{failed}\n/ {self.rate('http_requests_total', *matchers, by=('job',))}"

    def skill_success(self) -> str:
        """From what failed: a skill that never once succeeded has no series of successes to divide by.

        What a client cancelled is neither a success nor a failure.
        """
        by = ("job", "skill_name")
        failed = self.rate("skill_executions_total", 'status!~"completed|cancelled"', by=by)
        ended = self.rate("skill_executions_total", 'status!="cancelled"', by=by)
        return f"1 - {failed}\n/ {ended}"


def but(routes: Sequence[str]) -> str:
    """A matcher that leaves these routes out."""
    return f'route!~"{"|".join(routes)}"'
