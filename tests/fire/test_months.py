"""The end of a month, many times: what was reserved in one is charged to it, committed in the next one or not."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contracts.conftest import Stores
from sqlalchemy import text

from openclaw_gateway.api import Limit, Take
from openclaw_plugins.accounts import ledger

from .watch import SEED, Recorder, counts, say

LIMIT = Limit(name="quota.messages", meter="messages", kind="quota", limit=10**9)


def moments(rng: random.Random) -> tuple[datetime, datetime, datetime]:
    """A month's end, a moment near it, and one at which the work that began then is done, in the time of its hold."""
    end = datetime(rng.randrange(2024, 2037), rng.randrange(1, 13), 1, tzinfo=UTC)
    near = end + timedelta(microseconds=rng.choice((-1, 0, 1, -1_000, 1_000, rng.randrange(-(10**9), 10**9))))
    return end, near, near + timedelta(seconds=rng.choice((0, 0.001, 1, 30, 590)))


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("ends", counts(60, 10_000))
async def test_a_charge_belongs_to_the_month_in_which_it_was_reserved(
    ends: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Recorder
) -> None:
    rng = random.Random(f"{SEED}/months")
    now = datetime(2024, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(ledger, "aware", lambda _: now)
    expected: dict[str, int] = {}
    crossed = refused = 0
    async with Stores(tmp_path, {}, {}).opened() as stores:
        for _ in range(ends):
            _, begun, done = moments(rng)
            now = begun
            balances, holds = await stores.accounts.reserve("acme", [Take(LIMIT, "-")])
            refused += any(balance.refused for balance in balances)
            month = f"{begun:%Y-%m}"
            assert [hold.period for hold in holds] == [month]
            now = done
            crossed += f"{done:%Y-%m}" != month
            if rng.random() < 0.2:
                await stores.accounts.void(holds)
            else:
                await stores.accounts.commit(holds)
                expected[month] = expected.get(month, 0) + 1
        async with stores.database.transaction(None, operation="select", table="openclaw_usage") as connection:
            rows = await connection.execute(text("SELECT period, used, held FROM openclaw_usage"))
            found = {row.period: row.used for row in rows if row.used or row.held}
    misfiled = sum(abs(found.get(month, 0) - expected.get(month, 0)) for month in found.keys() | expected.keys())
    say(f"seed {SEED}: {ends} ends of months, {crossed} crossed")
    record_property("ends of months", ends)
    record_property("committed in a later month than reserved", crossed)
    record_property("counted in the wrong month", misfiled)
    record_property("refused", refused)
    assert (misfiled, refused) == (0, 0)
    assert crossed > ends / 20
