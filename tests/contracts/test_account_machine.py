"""The durable account against a model of it: any sequence of what clients, operators and time can do to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace
from sqlalchemy import text

from openclaw_gateway.api import Hold, Limit, Take
from openclaw_plugins.accounts import at_once, ledger, reading
from openclaw_plugins.accounts.lane import Works
from openclaw_plugins.accounts.sql import SqlAccounts

from .conftest import Stores

TTL = 600.0
LIMITS = (
    Limit(name="quota.messages", meter="messages", kind="quota", limit=30, period="month"),
    Limit(name="quota.sessions", meter="sessions", kind="quota", limit=20, period="day"),
)
_numbers = iter(range(10**9))


class Clock:
    """The database's clock, as the account reads it, and the gateway's own; a test moves both."""

    def __init__(self, statement: str) -> None:
        self.now = datetime(2026, 1, 31, 23, 0, tzinfo=UTC)
        #: batches that were done in one statement, and that were not
        self.usual = self.unusual = 0
        self._statement = statement

    def read(self, _: Any) -> datetime:
        return self.now

    def statement(self) -> str:
        return self._statement.replace("now()", f"'{self.now.isoformat()}'::timestamptz")

    def judged(self, usual: bool) -> None:
        if usual:
            self.usual += 1
        else:
            self.unusual += 1


class Kept:
    """One hold in the model."""

    def __init__(self, holds: list[Hold], amounts: list[int], expires: datetime) -> None:
        self.holds, self.amounts, self.expires = holds, amounts, expires
        self.states = ["held"] * len(holds)

    def counted(self) -> list[tuple[str, str]]:
        return [(hold.take.limit.name, hold.period) for hold in self.holds]


def machine(stores: Stores, loop: asyncio.AbstractEventLoop, clock: Clock) -> type[RuleBasedStateMachine]:
    class Account(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.organization = f"org{next(_numbers)}"
            self.limits = list(LIMITS)
            self.used: dict[tuple[str, str], int] = {}
            self.kept: list[Kept] = []
            self.told: set[tuple[str, str, str]] = set()

        # --- what may happen --------------------------------------------------------------------

        @rule(which=st.sampled_from([(0,), (1,), (0, 1)]), amount=st.integers(1, 4))
        def reserve(self, which: tuple[int, ...], amount: int) -> None:
            limits = [self.limits[i] for i in which]
            keys = [(limit.name, self.period(limit)) for limit in limits]
            for limit, key in zip(limits, keys, strict=True):
                if self.taken(key) + amount > limit.limit:
                    self.expire(key)
            fits = [self.taken(key) + amount <= limit.limit for limit, key in zip(limits, keys, strict=True)]
            takes = [Take(limit, "-", amount) for limit in limits]
            balances, holds = loop.run_until_complete(stores.accounts.reserve(self.organization, takes))
            assert [not balance.refused for balance in balances] == fits
            assert bool(holds) == all(fits)
            if holds:
                assert [hold.period for hold in holds] == [key[1] for key in keys]
                self.kept.append(Kept(list(holds), [amount] * len(holds), clock.now + timedelta(seconds=TTL)))
            assert [balance.used for balance in balances] == [self.taken(key) for key in keys]

        @precondition(lambda self: self.kept)
        @rule(which=st.integers(0, 99), times=st.integers(1, 3), actual=st.one_of(st.none(), st.integers(0, 6)))
        def commit(self, which: int, times: int, actual: int | None) -> None:
            """Charge what was held, or what an estimate turned out to be: more, less or nothing."""
            kept = self.kept[which % len(self.kept)]
            for _ in range(times):
                settled = [replace(hold, charge=actual) for hold in kept.holds]
                loop.run_until_complete(stores.accounts.commit(settled))
            for i, key in enumerate(kept.counted()):
                if kept.states[i] in ("held", "expired"):
                    kept.states[i] = "committed"
                    self.used[key] = self.used.get(key, 0) + (kept.amounts[i] if actual is None else actual)
                    self.tell(kept.holds[i].take.limit, key)

        @precondition(lambda self: self.kept)
        @rule(which=st.integers(0, 99))
        def void(self, which: int) -> None:
            kept = self.kept[which % len(self.kept)]
            loop.run_until_complete(stores.accounts.void(kept.holds))
            kept.states = ["voided" if state == "held" else state for state in kept.states]

        @rule(which=st.integers(0, 1), height=st.integers(0, 36))
        def edit_the_limit(self, which: int, height: int) -> None:
            self.limits[which] = replace(self.limits[which], limit=height)

        @rule(seconds=st.sampled_from([1, 60, 599, 601, 3600, 86_400, 31 * 86_400]))
        def pass_time(self, seconds: int) -> None:
            clock.now += timedelta(seconds=seconds)

        @rule()
        def reap(self) -> None:
            loop.run_until_complete(stores.accounts.reap())
            for key in {key for kept in self.kept for key in kept.counted()}:
                self.expire(key)

        # --- what always holds ------------------------------------------------------------------

        @invariant()
        def it_stands_where_the_model_does(self) -> None:
            takes = [Take(limit, "-") for limit in self.limits]
            balances = loop.run_until_complete(stores.accounts.peek(self.organization, takes))
            for limit, balance in zip(self.limits, balances, strict=True):
                assert balance.used == self.taken((limit.name, self.period(limit)))

        @invariant()
        def its_books_agree_with_its_holds(self) -> None:
            rows, told = loop.run_until_complete(books(stores, self.organization))
            for (name, period, used, held), open_holds in rows:
                assert (used, held) == (self.used.get((name, period), 0), open_holds)
            assert told == self.told

        # --- the model --------------------------------------------------------------------------

        def period(self, limit: Limit) -> str:
            return clock.now.strftime("%Y-%m" if limit.period == "month" else "%Y-%m-%d")

        def taken(self, key: tuple[str, str]) -> int:
            held = sum(
                kept.amounts[i]
                for kept in self.kept
                for i, each in enumerate(kept.counted())
                if each == key and kept.states[i] == "held"
            )
            return self.used.get(key, 0) + held

        def expire(self, key: tuple[str, str]) -> None:
            for kept in self.kept:
                if kept.expires <= clock.now:
                    for i, each in enumerate(kept.counted()):
                        if each == key and kept.states[i] == "held":
                            kept.states[i] = "expired"

        def tell(self, limit: Limit, key: tuple[str, str]) -> None:
            used = self.used[key]
            if used >= 0.8 * limit.limit:
                self.told.add((*key, "warning"))
            if used >= limit.limit:
                self.told.add((*key, "exhausted"))

    return Account


async def books(stores: Stores, organization: str) -> tuple[list[Any], set[tuple[str, str, str]]]:
    """Read the usage rows, each with the sum of its open holds, and which thresholds are in the outbox."""
    async with stores.database.transaction(None, operation="select", table="openclaw_usage") as connection:
        usage = await connection.execute(
            text("SELECT limit_name, period, used, held FROM openclaw_usage WHERE organization_id = :o"),
            {"o": organization},
        )
        sums = await connection.execute(
            text(
                "SELECT limit_name, period, sum(amount) FROM openclaw_holds "
                "WHERE organization_id = :o AND state = 'held' GROUP BY limit_name, period"
            ),
            {"o": organization},
        )
        held = {(row[0], row[1]): int(row[2]) for row in sums}
        events = await connection.execute(
            text("SELECT limit_name, period, threshold FROM openclaw_quota_events WHERE organization_id = :o"),
            {"o": organization},
        )
        told = [tuple(row) for row in events]
    assert len(told) == len(set(told))
    return [(row, held.get((row[0], row[1]), 0)) for row in usage], set(told)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock(at_once.STATEMENT)
    decide = SqlAccounts._is_usual

    async def decided(accounts: SqlAccounts, batch: Works) -> bool:
        monkeypatch.setattr(at_once, "STATEMENT", clock.statement())
        usual = await decide(accounts, batch)
        clock.judged(usual)
        return usual

    monkeypatch.setattr(SqlAccounts, "_is_usual", decided)
    monkeypatch.setattr(SqlAccounts, "_guess", lambda accounts: clock.now)
    monkeypatch.setattr(ledger, "aware", clock.read)
    monkeypatch.setattr(reading, "aware", clock.read)
    return clock


def test_any_history_agrees_with_the_model(config: dict[str, Any], tmp_path: Path, clock: Clock) -> None:
    loop = asyncio.new_event_loop()
    stores = Stores(tmp_path, config, {"hold_ttl": TTL, "reap_every": 3600, "keep_resolved": 10**9})
    opened = stores.opened()
    loop.run_until_complete(opened.__aenter__())
    try:
        run_state_machine_as_test(
            machine(stores, loop, clock),
            settings=settings(
                max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        loop.run_until_complete(opened.__aexit__(None, None, None))
        loop.close()
    # both ways of the store that has two were gone: how often is chance
    assert not stores.database.shared or (min(clock.usual, clock.unusual) > 0)
