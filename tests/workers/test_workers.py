"""Several workers are one gateway: one port, one set of numbers, one reload, one stop; and a worker may die."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
from workers.pack import Pack

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, has), value in series.items() if found == name and wanted <= has)


def fallen(before: Series, after: Series) -> list[Any]:
    """What counts and has gone down, or is gone."""
    counts = ("_total", "_count", "_bucket", "_sum")
    return [
        (key, value, after.get(key))
        for key, value in before.items()
        if key[0].endswith(counts) and after.get(key, -1) < value
    ]


def asked(pack: Pack, times: int) -> None:
    for _ in range(times):
        assert pack.get("/v1/models", headers=pack.headers)[0] == 200


def served(series: Series) -> float:
    return total(series, "http_requests_total", route="/v1/models", status_code="200")


def test_both_serve_on_one_port_and_any_shows_the_sum(pack: Pack) -> None:
    states = pack.workers()
    assert [state["serving"] for state in states] == [True, True]
    assert len({state["pid"] for state in states} | {pack.process.pid}) == 3  # type: ignore[union-attr]
    before = served(pack.scrape())
    asked(pack, 40)
    after = [pack.scrape() for _ in range(6)]
    assert {served(series) for series in after} == {before + 40}
    assert {total(series, "workers_serving") for series in after} == {2}
    # Both had some of them: connections are spread over the sockets, each new one by itself.
    assert total(after[0], "database_connections_limit") == 2 * total(after[0], "database_connections_limit") / 2 > 0


def test_a_killed_worker_is_replaced_and_no_count_goes_down(pack: Pack) -> None:
    asked(pack, 20)
    before = pack.scrape()
    restarts = total(before, "worker_restarts_total")
    victim = pack.workers()[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    pack.until(lambda: all(s["serving"] for s in pack.workers()) and pack.workers()[1]["pid"] != victim)
    after = pack.scrape()
    assert fallen(before, after) == []
    assert served(after) >= served(before) >= 20
    assert total(after, "worker_restarts_total") == restarts + 1
    asked(pack, 20)
    last = pack.scrape()
    assert served(last) == served(after) + 20
    assert fallen(after, last) == []
