"""The example by itself: its arithmetic under a clock that the test moves, and the gateway with it in the pipeline."""

from pathlib import Path

import pytest
from openclaw_leaky_bucket import Buckets

from openclaw_gateway.api import Counters, Limit, Take
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import ManualClock, build, configuration
from openclaw_gateway.testing.contracts import CountersContract

LIMIT = Limit(name="r.requests", meter="requests", kind="rate", limit=60, window=60.0, algorithm="gcra", burst=3)
OTHER = Limit(name="r.more", meter="requests", kind="rate", limit=60, window=60.0, algorithm="gcra", burst=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def buckets(clock: ManualClock) -> Buckets:
    return Buckets(clock.monotonic)


async def calls(buckets: Buckets, times: int, organization: str = "acme") -> list[bool]:
    return [(await buckets.admit(organization, [Take(LIMIT, "-")]))[0].refused for _ in range(times)]


async def test_a_bucket_holds_its_capacity_and_then_leaks(buckets: Buckets, clock: ManualClock) -> None:
    assert await calls(buckets, 4) == [False, False, False, True]
    (refused,) = await buckets.admit("acme", [Take(LIMIT, "-")])
    assert refused.retry_after == pytest.approx(1.0)
    clock.advance(1.0)
    assert await calls(buckets, 2) == [False, True]
    assert await calls(buckets, 1, "another") == [False]


async def test_no_window_admits_more_than_its_bound(buckets: Buckets, clock: ManualClock) -> None:
    admitted = []
    for _ in range(1200):
        clock.advance(0.1)
        admitted += [clock.monotonic()] * (await calls(buckets, 2)).count(False)
    most = max(sum(start <= at < start + 60 for at in admitted) for start in admitted)
    assert most == LIMIT.bound() == 63


async def test_one_bucket_that_overflows_charges_none(buckets: Buckets) -> None:
    both = [Take(LIMIT, "-"), Take(OTHER, "-")]
    assert [b.refused for b in await buckets.admit("acme", both)] == [False, False]
    assert [b.refused for b in await buckets.admit("acme", both)] == [False, True]
    assert [b.remaining for b in await buckets.peek("acme", both)] == [2, 0]


async def test_a_bucket_that_has_run_dry_is_forgotten(buckets: Buckets, clock: ManualClock) -> None:
    await calls(buckets, 1, "once")
    clock.advance(86_401)
    await calls(buckets, 1, "later")
    assert [organization for organization, _, _ in buckets._levels] == ["later"]


class TestContract(CountersContract):
    """What every plugin that counts must do."""

    algorithm = "gcra"

    @pytest.fixture
    def counters(self) -> Counters:
        return Buckets(ManualClock().monotonic)


def test_it_satisfies_the_protocol_of_an_account(buckets: Buckets) -> None:
    assert isinstance(buckets, Counters)


def test_one_line_of_configuration_swaps_it_in(tmp_path: Path) -> None:
    gateway = build(configuration(tmp_path, edit={"plugins.ratelimit.use": "leaky_bucket"}))
    limits = {limit.name: limit.bound() for limit in gateway.admission.whole["teams"].limits}
    assert limits["ratelimit.requests"] == 550


def test_its_own_keys_are_checked_like_any_others(tmp_path: Path) -> None:
    edit = {"plugins.ratelimit.use": "leaky_bucket", "plugins.ratelimit.capacty": 0.5, "gateway.workers": 2}
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, edit=edit))
    assert 'plugins.ratelimit.capacty: unknown key; expected one of: capacity; did you mean "capacity"?' in str(
        caught.value
    )


def test_more_workers_than_one_are_refused(tmp_path: Path) -> None:
    edit = {"plugins.ratelimit.use": "leaky_bucket", "gateway.workers": 2}
    with pytest.raises(ConfigError, match=r"plugin 'ratelimit' \(leaky_bucket\) lives in one process"):
        build(configuration(tmp_path, edit=edit))
