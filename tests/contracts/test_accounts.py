"""What every durable account must hold, on every backend."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import select, text, update

from openclaw_gateway.api import Accounts, Limit, StoreUnavailable, Take
from openclaw_plugins.accounts import ledger, sql
from openclaw_plugins.accounts.periods import period_of, seconds_left
from openclaw_plugins.accounts.sql import SqlAccounts
from openclaw_plugins.accounts.tables import holds as holds_table

from .conftest import Stores

QUOTA = Limit(name="quota.messages", meter="messages", kind="quota", limit=10)
LEASE = Limit(name="concurrency.sessions", meter="sessions", kind="lease", limit=2)


def quota(limit: int, name: str = "quota.messages", **fields: Any) -> Limit:
    return Limit(name=name, meter=name.split(".")[1], kind="quota", limit=limit, **fields)


def take(limit: Limit, amount: int = 1, subject: str = "-") -> Take:
    return Take(limit, subject, amount, "holder" if limit.kind == "lease" else None)


async def used(stores: Stores, limit: Limit, organization: str = "acme", subject: str = "-") -> int:
    (balance,) = await stores.accounts.peek(organization, [take(limit, subject=subject)])
    return balance.used


async def columns(stores: Stores) -> Sequence[tuple[int, int]]:
    async with stores.database.transaction(None, operation="select", table="openclaw_usage") as connection:
        rows = await connection.execute(text("SELECT used, held FROM openclaw_usage ORDER BY limit_name, period"))
        return [(row[0], row[1]) for row in rows]


async def test_it_is_an_account(stores: Stores) -> None:
    assert isinstance(stores.accounts, Accounts)


async def test_admits_exactly_the_limit_under_concurrency(stores: Stores) -> None:
    answers = await asyncio.gather(*(stores.accounts.reserve("acme", [take(quota(10))]) for _ in range(50)))
    granted = [holds for _, holds in answers if holds]
    assert len(granted) == 10
    assert all(balances[0].refused == (not holds) for balances, holds in answers)
    assert max(balances[0].used for balances, _ in answers) == 10
    await asyncio.gather(*(stores.accounts.commit(holds) for holds in granted))
    assert await columns(stores) == [(10, 0)]


async def test_what_is_held_leaves_no_room_for_others(stores: Stores) -> None:
    await stores.accounts.reserve("acme", [take(QUOTA, 1)])
    await stores.accounts.reserve("acme", [take(QUOTA, 8)])
    answers = await asyncio.gather(*(stores.accounts.reserve("acme", [take(QUOTA)]) for _ in range(3)))
    assert [bool(holds) for _, holds in answers] == [True, False, False]
    assert await columns(stores) == [(0, 10)]


async def test_a_reservation_beside_settlements_is_told_what_is_left_after_all_of_them(stores: Stores) -> None:
    accounts, limit = stores.accounts, quota(100)
    _, committed = await accounts.reserve("acme", [take(limit, 5)])
    _, voided = await accounts.reserve("acme", [take(limit, 3)])
    _, _, *made = await asyncio.gather(
        accounts.commit(committed),
        accounts.void(voided),
        *(accounts.reserve("acme", [take(limit, amount)]) for amount in (2, 4)),
    )
    assert [balance.used for balances, _ in made for balance in balances] == [7, 11]


async def test_two_heights_of_one_limit_are_both_kept(stores: Stores) -> None:
    """As while a tier is edited, or where callers of two tiers share a subject."""
    await stores.accounts.reserve("acme", [take(quota(100), 5)])
    heights = [5, 100, 5, 100]
    answers = await asyncio.gather(*(stores.accounts.reserve("acme", [take(quota(height))]) for height in heights))
    assert [bool(holds) for _, holds in answers] == [False, True, False, True]
    assert await columns(stores) == [(0, 7)]


async def test_the_day_is_that_of_the_store_where_a_replica_is_a_day_behind(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    daily = quota(10, period="day")
    _, holds = await stores.accounts.reserve("acme", [take(daily)])
    today = datetime.fromisoformat(holds[0].period).replace(tzinfo=UTC)
    yesterday = today - timedelta(days=1)
    async with stores.database.transaction(None, operation="insert", table="openclaw_usage") as connection:
        rest = "used, held, tier, announced, updated_at FROM openclaw_usage"
        names = "organization_id, subject, limit_name, period, used, held, tier, announced, updated_at"
        copied = f"SELECT organization_id, subject, limit_name, '{yesterday:%Y-%m-%d}', {rest}"
        await connection.execute(text(f"INSERT INTO openclaw_usage ({names}) {copied}"))
    monkeypatch.setattr(stores.accounts, "_guess", lambda: yesterday + timedelta(hours=12))
    _, holds = await stores.accounts.reserve("acme", [take(daily)])
    assert [hold.period for hold in holds] == [f"{today:%Y-%m-%d}"]
    assert await columns(stores) == [(0, 1), (0, 2)]


async def test_who_waited_for_a_row_sees_what_was_used_meanwhile(stores: Stores) -> None:
    await stores.accounts.reserve("acme", [take(QUOTA)])
    async with stores.database.transaction(None, operation="update", table="openclaw_usage") as connection:
        await connection.execute(text("UPDATE openclaw_usage SET used = 8"))
        waiting = asyncio.create_task(stores.accounts.reserve("acme", [take(QUOTA, 2)]))
        await asyncio.sleep(0.2)
        assert not waiting.done()
    balances, holds = await waiting
    assert (balances[0].refused, list(holds)) == (True, [])
    assert await columns(stores) == [(8, 1)]


async def test_two_gateways_on_one_store_admit_the_limit_together(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {}).opened() as one, Stores(tmp_path, config, {}).opened() as two:
        answers = await asyncio.gather(
            *(stores.accounts.reserve("acme", [take(quota(15))]) for _ in range(20) for stores in (one, two))
        )
        assert sum(bool(holds) for _, holds in answers) == 15


async def test_two_processes_admit_exactly_the_limit(stores: Stores, config: dict[str, Any], tmp_path: Path) -> None:
    arguments = [str(tmp_path), config.get("url", "-"), "acme", "2500", "2000"]
    script = Path(__file__).with_name("account_process.py")
    pipe = asyncio.subprocess.PIPE
    both = [
        await asyncio.create_subprocess_exec(sys.executable, script, *arguments, stdin=pipe, stdout=pipe)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in both))
    told = [answer.split() for answer, _ in answers]
    granted = [int(counts[0]) for counts in told]
    assert sum(granted) == 2500 and all(granted), granted
    assert sum(int(counts[1]) for counts in told) == 1500
    assert await columns(stores) == [(2500, 0)]


async def test_two_gateways_that_reserve_and_settle_on_the_same_rows_keep_their_books(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """Each row is waited for all the time, so that what a statement saw when it began is old when it has the lock."""
    limits = [quota(10**6, f"quota.{name}") for name in ("one", "two", "three")]
    charged = [0, 0, 0]

    async def client(stores: Stores, number: int) -> None:
        for turn in range(12):
            chosen = [(number + turn) % 3, (number + turn * 2 + 1) % 3]
            _, holds = await stores.accounts.reserve("acme", [take(limits[i], 2) for i in sorted(set(chosen))])
            if (number + turn) % 5 == 0:
                await stores.accounts.void(holds)
                continue
            await stores.accounts.commit([replace(hold, charge=1 + turn % 3) for hold in holds])
            for i in set(chosen):
                charged[i] += 1 + turn % 3

    async with Stores(tmp_path, config, {}).opened() as one, Stores(tmp_path, config, {}).opened() as two:
        await asyncio.gather(*(client(stores, number) for number in range(12) for stores in (one, two)))
        assert [await used(one, limit) for limit in limits] == charged
        assert sum(held for _, held in await columns(one)) == 0
        for stores in (one, two):
            assert stores.registry.get_sample_value("accounts_resolved_twice_total") == 0


async def test_what_is_voided_costs_nothing_and_what_is_committed_stays(stores: Stores) -> None:
    _, first = await stores.accounts.reserve("acme", [take(QUOTA, 4)])
    _, second = await stores.accounts.reserve("acme", [take(QUOTA, 5)])
    await stores.accounts.void(first)
    await stores.accounts.commit(second)
    assert await columns(stores) == [(5, 0)]


async def test_a_hold_is_resolved_once(stores: Stores) -> None:
    _, holds = await stores.accounts.reserve("acme", [take(QUOTA, 3)])
    await asyncio.gather(*(stores.accounts.commit(holds) for _ in range(8)), stores.accounts.commit([*holds, *holds]))
    await stores.accounts.void(holds)
    assert await columns(stores) == [(3, 0)]
    assert stores.registry.get_sample_value("accounts_resolved_twice_total") == 9

    _, other = await stores.accounts.reserve("acme", [take(QUOTA, 3)])
    await stores.accounts.void(other)
    await stores.accounts.void(other)
    await stores.accounts.commit(other)
    assert await columns(stores) == [(3, 0)]


@pytest.mark.parametrize("actual", [0, 3, 8, 25])
async def test_a_commit_charges_what_an_estimate_turned_out_to_be(stores: Stores, actual: int) -> None:
    tokens = quota(20, "quota.tokens")
    _, holds = await stores.accounts.reserve("acme", [take(tokens, 8)])
    assert await used(stores, tokens) == 8
    settled = [replace(hold, charge=actual) for hold in holds]
    await stores.accounts.commit(settled)
    await stores.accounts.commit(settled)
    await stores.accounts.void(settled)
    assert await columns(stores) == [(actual, 0)]
    balances, more = await stores.accounts.reserve("acme", [take(tokens, 1)])
    assert (balances[0].refused, bool(more)) == (actual >= 20, actual < 20)


async def test_a_commit_of_an_estimate_that_expired_charges_what_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    tokens = quota(20, "quota.tokens")
    async with Stores(tmp_path, config, {"hold_ttl": 0.2}).opened() as stores:
        _, holds = await stores.accounts.reserve("acme", [take(tokens, 8)])
        await asyncio.sleep(0.3)
        await stores.accounts.reap()
        assert await columns(stores) == [(0, 0)]
        await stores.accounts.commit([replace(hold, charge=5) for hold in holds])
        assert await columns(stores) == [(5, 0)]


async def test_all_or_nothing_over_several_takes(stores: Stores) -> None:
    full, roomy = quota(1, "quota.sessions"), quota(5, "quota.messages")
    await stores.accounts.reserve("acme", [take(full)])
    balances, holds = await stores.accounts.reserve("acme", [take(roomy), take(full)])
    assert not holds
    assert [balance.refused for balance in balances] == [False, True]
    assert await used(stores, roomy) == 0
    # an amount over the whole limit is refused before a row says so
    balances, holds = await stores.accounts.reserve("new", [take(roomy, 6)])
    assert balances[0].refused and not holds


async def test_organizations_and_subjects_do_not_touch(stores: Stores) -> None:
    one = quota(1)
    assert (await stores.accounts.reserve("acme", [take(one)]))[1]
    assert (await stores.accounts.reserve("other", [take(one)]))[1]
    assert (await stores.accounts.reserve("acme", [take(one, subject="ada")]))[1]
    assert not (await stores.accounts.reserve("acme", [take(one)]))[1]


async def test_a_lowered_limit_refuses_and_keeps_usage(stores: Stores) -> None:
    _, holds = await stores.accounts.reserve("acme", [take(quota(10), 8)])
    await stores.accounts.commit(holds)
    balances, holds = await stores.accounts.reserve("acme", [take(quota(5))])
    assert balances[0].refused and not holds and balances[0].used == 8 and balances[0].remaining == 0
    balances, holds = await stores.accounts.reserve("acme", [take(quota(9))])
    assert holds and balances[0].used == 9


async def test_a_shadow_limit_counts_and_never_refuses(stores: Stores) -> None:
    shadow = quota(2, mode="shadow")
    for _ in range(5):
        balances, holds = await stores.accounts.reserve("acme", [take(shadow)])
        await stores.accounts.commit(holds)
        assert not balances[0].refused
    assert await used(stores, shadow) == 5


async def test_expired_holds_come_back_and_a_late_commit_is_charged(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {"hold_ttl": 0.2}).opened() as stores:
        _, late = await stores.accounts.reserve("acme", [take(quota(2), 2)])
        assert not (await stores.accounts.reserve("acme", [take(quota(2))]))[1]
        await asyncio.sleep(0.3)
        _, again = await stores.accounts.reserve("acme", [take(quota(2))])
        assert again, "the key's own expired holds are given back before it refuses"
        assert await columns(stores) == [(0, 1)]
        await stores.accounts.commit(late)
        assert await columns(stores) == [(2, 1)]
        await stores.accounts.void(late)
        assert await columns(stores) == [(2, 1)]


async def test_the_reaper_gives_orphans_back(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {"hold_ttl": 0.1, "reap_every": 0.1}).opened() as stores:
        await stores.accounts.reserve("acme", [take(QUOTA, 7)])
        async with asyncio.timeout(5):
            while await used(stores, QUOTA):
                await asyncio.sleep(0.05)
        assert await columns(stores) == [(0, 0)]


async def test_the_reaper_goes_on_at_once_while_there_is_more_and_then_waits(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, times = [sql._SWEEP, sql._SWEEP, 0], []

    async def reap(self: SqlAccounts) -> int:
        times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        return found[len(times) - 1] if len(times) <= len(found) else 0

    monkeypatch.setattr(SqlAccounts, "reap", reap)
    async with Stores(tmp_path, config, {"reap_every": 1}).opened(), asyncio.timeout(10):
        while len(times) < 3:
            await asyncio.sleep(0.01)
        assert times[2] - times[0] < 1
        await asyncio.sleep(0.1)
        assert len(times) == 3


async def test_the_reaper_tells_of_a_store_that_fails_and_goes_on(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times: list[float] = []

    async def reap(self: SqlAccounts) -> int:
        times.append(0.0)
        raise StoreUnavailable("database", "not now")

    monkeypatch.setattr(SqlAccounts, "reap", reap)
    async with Stores(tmp_path, config, {"reap_every": 0.01}).opened(), asyncio.timeout(10):
        while len(times) < 3:
            await asyncio.sleep(0.01)
    assert "reservations could not be reaped" in caplog.messages


async def test_the_reaper_has_ended_when_the_account_is_closed(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    async def reap(self: SqlAccounts) -> int:
        told.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            told.append("ended")
        return 0

    monkeypatch.setattr(SqlAccounts, "reap", reap)
    stores = Stores(tmp_path, config, {"reap_every": 0.01})
    async with stores.database.lifespan():
        async with stores.accounts.lifespan(), asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.01)
        assert told == ["begun", "ended"]


async def test_what_was_reserved_under_a_reference_is_disowned_unless_it_was_charged(
    config: dict[str, Any], tmp_path: Path
) -> None:
    async with Stores(tmp_path, config, {"hold_ttl": 0.5, "reap_every": 600}).opened() as stores:
        accounts = stores.accounts
        _, expired = await accounts.reserve("acme", [Take(QUOTA, "-", 1, "expired")])
        await asyncio.sleep(0.6)
        assert await accounts.reap() == 1
        _, held = await accounts.reserve("acme", [Take(QUOTA, "-", 2, "held")])
        _, charged = await accounts.reserve("acme", [Take(QUOTA, "-", 4, "charged")])
        await accounts.commit(charged)
        assert await accounts.disown("acme", "charged")
        for organization, reference in (("acme", "held"), ("acme", "expired"), ("acme", "nobody"), ("b", "charged")):
            assert not await accounts.disown(organization, reference)
        assert await columns(stores) == [(4, 0)]
        for late in (held, expired):  # whoever wanted them was told that they had no effect
            await accounts.commit(late)
        assert await columns(stores) == [(4, 0)]
        assert stores.registry.get_sample_value("accounts_holds_expired_total") == 1
        assert stores.registry.get_sample_value("accounts_resolved_twice_total") == 2


async def test_standings_are_what_is_used_and_held_in_the_periods_that_run(stores: Stores) -> None:
    now = datetime.now(UTC)
    limits = {
        "month": replace(QUOTA, tier="teams"),
        "day": quota(10, "quota.skills", period="day"),
        "session": quota(10, "quota.turns", period="session"),
        "lease": LEASE,
    }
    for organization in ("a", "b", "gone", "voided"):
        for limit in [limits["month"]] if organization == "gone" else limits.values():
            _, holds = await stores.accounts.reserve(organization, [take(limit)])
            if organization == "voided":
                await stores.accounts.void(holds)
            elif organization != "b":
                await stores.accounts.commit(holds, lives_until=now + timedelta(hours=1), holder="s")
    await stores.accounts.reserve("a", [take(limits["month"], 2)])
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        for change in ("DELETE FROM openclaw_holds", "UPDATE openclaw_usage SET period = '2020-01'"):
            await connection.execute(text(f"{change} WHERE organization_id = 'gone'"))
    found = {(row.organization, row.limit, row.tier): row.used for row in await stores.accounts.standings()}
    assert found == {
        (organization, limit.name, limit.tier): 3 if (organization, name) == ("a", "month") else 1
        for organization in ("a", "b")
        for name, limit in limits.items()
    }
    assert {row.period for row in await stores.accounts.standings()} == {period_of(x, now) for x in limits.values()}


@pytest.mark.parametrize("guess", [datetime(2020, 1, 31, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)])
async def test_the_month_is_that_of_the_store_whatever_a_replica_takes_it_for(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, guess: datetime
) -> None:
    monkeypatch.setattr(stores.accounts, "_guess", lambda: guess)
    balances, holds = await stores.accounts.reserve("acme", [take(QUOTA, 3)])
    assert holds[0].period == period_of(QUOTA, datetime.now(UTC)) and balances[0].used == 3
    await stores.accounts.commit(holds)
    (balance,) = await stores.accounts.peek("acme", [take(QUOTA)])
    assert balance.used == 3
    assert balance.reset_after == pytest.approx(seconds_left(QUOTA, datetime.now(UTC)), abs=60)


async def test_what_was_resolved_is_kept_for_its_time_and_then_forgotten(stores: Stores) -> None:
    for organization, limit in (("old", QUOTA), ("young", QUOTA), ("open", LEASE)):
        _, holds = await stores.accounts.reserve(organization, [take(limit)])
        await stores.accounts.commit(holds, lives_until=datetime.now(UTC) + timedelta(hours=1), holder="s")
    await moved(stores, "old", 3_630)
    await moved(stores, "young", 3_570)
    await stores.accounts.reap()
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        found = await connection.execute(select(holds_table.c.organization_id))
        assert {row[0] for row in found} == {"young", "open"}


async def moved(stores: Stores, organization: str, age: float) -> None:
    """Let what an organisation has resolved be as old as that."""
    then = datetime.now(UTC) - timedelta(seconds=age)
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        of_organization = holds_table.c.organization_id == organization
        await connection.execute(update(holds_table).where(of_organization).values(expires_at=then))


async def test_leases_stand_until_released_or_out_of_time(stores: Stores) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    for holder in ("s1", "s2"):
        _, holds = await stores.accounts.reserve("acme", [take(LEASE)])
        await stores.accounts.commit(holds, lives_until=until, holder=holder)
    balances, holds = await stores.accounts.reserve("acme", [take(LEASE)])
    assert balances[0].refused and balances[0].used == 2 and balances[0].reset_after is None and not holds
    await stores.accounts.release("other", "sessions", "s1")
    assert await used(stores, LEASE) == 2
    await stores.accounts.release("acme", "sessions", "s1")
    await stores.accounts.release("acme", "sessions", "s1")
    assert await used(stores, LEASE) == 1
    _, holds = await stores.accounts.reserve("acme", [take(LEASE)])
    await stores.accounts.commit(holds, lives_until=datetime.now(UTC) + timedelta(milliseconds=50), holder="s3")
    await asyncio.sleep(0.1)
    assert (await stores.accounts.reserve("acme", [take(LEASE)]))[1]


async def test_leases_of_nothing_that_is_stored_live_as_long_as_a_reservation(
    config: dict[str, Any], tmp_path: Path
) -> None:
    async with Stores(tmp_path, config, {"hold_ttl": 0.5, "reap_every": 600}).opened() as stores:
        _, holds = await stores.accounts.reserve("acme", [take(LEASE)])
        await stores.accounts.commit(holds)
        await stores.accounts.reap()
        assert await used(stores, LEASE) == 1
        await asyncio.sleep(0.6)
        await stores.accounts.reap()
        assert await used(stores, LEASE) == 0


async def test_a_commit_in_a_transaction_that_fails_charges_nothing(stores: Stores) -> None:
    _, holds = await stores.accounts.reserve("acme", [take(QUOTA)])
    with pytest.raises(RuntimeError):
        async with stores.database.transaction("acme", operation="update", table="t") as connection:
            await stores.accounts.commit(holds, transaction=connection)
            raise RuntimeError
    assert await columns(stores) == [(0, 1)]
    async with stores.database.transaction("acme", operation="update", table="t") as connection:
        await stores.accounts.commit(holds, transaction=connection)
    assert await columns(stores) == [(1, 0)]


async def test_a_release_in_a_transaction_gives_the_place_back_if_and_only_if_it_commits(stores: Stores) -> None:
    _, holds = await stores.accounts.reserve("acme", [take(LEASE)])
    await stores.accounts.commit(holds, lives_until=datetime.now(UTC) + timedelta(hours=1), holder="s1")
    with pytest.raises(RuntimeError):
        async with stores.database.transaction("acme", operation="update", table="t") as connection:
            await stores.accounts.release("acme", "sessions", "s1", transaction=connection)
            raise RuntimeError
    assert await used(stores, LEASE) == 1
    async with stores.database.transaction("acme", operation="update", table="t") as connection:
        await stores.accounts.release("acme", "sessions", "s1", transaction=connection)
    assert await used(stores, LEASE) == 0


async def test_what_is_on_its_way_when_it_closes_is_done_first(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {}).opened() as stores:
        charges = []
        for amount in (4, 3):
            _, holds = await stores.accounts.reserve("acme", [take(QUOTA, amount)])
            charges.append(stores.accounts.commit(holds))
        tasks = []
        for charge in charges:  # the first is in its transaction when the second comes to wait behind it
            tasks.append(asyncio.create_task(charge))
            for _ in range(5):
                await asyncio.sleep(0)
    assert [task.done() and task.exception() for task in tasks] == [None, None]
    async with Stores(tmp_path, config, {}).opened() as later:
        assert await columns(later) == [(7, 0)]


async def test_the_first_work_of_a_connection_is_in_its_transaction_too(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {}).opened() as one, Stores(tmp_path, config, {}).opened() as fresh:
        _, holds = await one.accounts.reserve("acme", [take(QUOTA)])
        with pytest.raises(RuntimeError):
            async with fresh.database.transaction("acme", operation="update", table="t") as connection:
                await fresh.accounts.commit(holds, transaction=connection)
                raise RuntimeError
        assert await columns(one) == [(0, 1)]


async def test_what_a_cancelled_caller_reserved_is_given_back(stores: Stores) -> None:
    for delay in (n * 0.0005 for n in range(30)):
        caller = asyncio.create_task(stores.accounts.reserve("acme", [take(QUOTA)]))
        await asyncio.sleep(delay)
        caller.cancel()
        answer = (await asyncio.gather(caller, return_exceptions=True))[0]
        if not isinstance(answer, BaseException):
            await stores.accounts.void(answer[1])
    async with asyncio.timeout(5):
        while await used(stores, QUOTA):
            await asyncio.sleep(0.01)


async def test_reservations_of_one_moment_share_a_transaction(stores: Stores) -> None:
    await stores.accounts.reserve("acme", [take(QUOTA)])
    await asyncio.gather(*(stores.accounts.reserve(f"org{i}", [take(QUOTA)]) for i in range(100)))
    batches = stores.registry.get_sample_value("accounts_batch_size_count")
    assert batches is not None and batches <= 3


async def test_the_period_is_pinned_when_reserved(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)

    monkeypatch.setattr(ledger, "aware", lambda _: now)
    balances, holds = await stores.accounts.reserve("acme", [take(quota(1))])
    assert holds[0].period == "2026-12"
    assert balances[0].reset_after == pytest.approx(0.001)
    now = datetime(2027, 1, 1, tzinfo=UTC)
    _, next_month = await stores.accounts.reserve("acme", [take(quota(1))])
    assert next_month[0].period == "2027-01"
    await stores.accounts.commit(holds)
    assert await columns(stores) == [(1, 0), (0, 1)]


@given(st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)))
def test_periods_end_where_the_next_begins(now: datetime) -> None:
    for period in ("day", "month"):
        limit = quota(1, period=period)
        left = seconds_left(limit, now)
        assert left is not None and 0 < left <= 31 * 86_400
        end = now + timedelta(seconds=left)
        assert period_of(limit, end) != period_of(limit, now)
        assert period_of(limit, end - timedelta(microseconds=10)) == period_of(limit, max(now, end - timedelta(days=1)))


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["commit", "void"]), st.integers(0, 5)),
        st.tuples(st.just("limit"), st.integers(1, 12)),
    ),
    max_size=30,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_trace_agrees_with_a_model(stores: Stores, steps: list[Step]) -> None:
    organization = f"org{next(_numbers)}"
    limit, spent, open_holds = 10, 0, []
    for what, n in steps:
        if what == "limit":
            limit = n
        elif what == "reserve":
            held = sum(amount for _, amount in open_holds)
            balances, holds = await stores.accounts.reserve(organization, [take(quota(limit), n)])
            fits = spent + held + n <= limit
            assert bool(holds) == fits and balances[0].refused != fits
            assert balances[0].used == spent + held + (n if fits else 0)
            if holds:
                open_holds.append((holds, n))
        elif open_holds:
            holds, amount = open_holds.pop(n % len(open_holds))
            await (stores.accounts.commit(holds) if what == "commit" else stores.accounts.void(holds))
            spent += amount if what == "commit" else 0
    assert await used(stores, quota(1), organization) == spent + sum(amount for _, amount in open_holds)


_numbers = iter(range(10**9))
