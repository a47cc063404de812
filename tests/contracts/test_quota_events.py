"""A passed threshold is told once: in the account, over replicas and edits, and to those who listen."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from socket_kit import place
from sqlalchemy import select, update

from openclaw_gateway.api import Limit, QuotaEvent, StoreUnavailable, Take
from openclaw_plugins.accounts.outbox import Outbox
from openclaw_plugins.accounts.tables import quota_events

from .conftest import Stores

QUOTA = Limit(name="quota.messages", meter="messages", kind="quota", limit=10, tier="teams")


class Listener:
    """A plugin that hears of quota events, and fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: list[QuotaEvent] = []
        self.failures = failures

    async def _hear(self, event: QuotaEvent) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not now")
        self.heard.append(event)

    def on_quota_event(self, event: QuotaEvent) -> Any:
        return self._hear(event)

    def keys(self) -> list[tuple[str, str]]:
        return [(event.threshold, event.period) for event in self.heard]


def listening(folder: Path, config: dict[str, Any], listener: Listener, **accounts: Any) -> Stores:
    stores = Stores(folder, config, {"deliver_every": 0.1, "deliver_within": 0.3, **accounts})
    stores.instances["listener"] = listener
    return stores


async def charge(stores: Stores, amount: int = 1, limit: Limit = QUOTA, organization: str = "acme") -> None:
    _, holds = await stores.accounts.reserve(organization, [Take(limit, "-", amount)])
    assert holds
    await stores.accounts.commit(holds)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_each_threshold_is_told_once(config: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener).opened() as stores:
        for _ in range(7):
            await charge(stores)
        _, held = await stores.accounts.reserve("acme", [Take(QUOTA, "-", 3)])
        await stores.accounts.void(held)  # what was only held has passed nothing
        await asyncio.sleep(0.3)
        assert listener.heard == []
        await charge(stores)
        await until(lambda: listener.heard)
        (event,) = listener.heard
        assert (event.threshold, event.used, event.allowed, event.subject) == ("warning", 8, 10, "-")
        assert event.key == f"acme/-/quota.messages/{event.period}/warning"
        assert event.report()["remaining"] == 2 and event.report()["resetsAt"].endswith("-01T00:00:00Z")
        await charge(stores, 2)
        await until(lambda: len(listener.heard) == 2)
        # a limit that is raised, lowered and passed again is no news in the same period
        for height in (20, 14):
            await charge(stores, 1, replace(QUOTA, limit=height))
        await asyncio.sleep(0.3)
        assert [event.threshold for event in listener.heard] == ["warning", "exhausted"]


async def test_an_event_of_a_transaction_that_is_open_yet_is_told_as_soon(
    config: dict[str, Any], tmp_path: Path
) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener, deliver_every=60).opened() as stores:
        await asyncio.sleep(0.1)  # its first look is over
        _, holds = await stores.accounts.reserve("acme", [Take(QUOTA, "-", 8)])
        async with stores.database.transaction("acme", operation="update", table="openclaw_usage") as connection:
            await stores.accounts.commit(holds, transaction=connection)
            await asyncio.sleep(0.02)
        await until(lambda: listener.heard)


async def test_one_charge_may_pass_both(config: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener).opened() as stores:
        await charge(stores, 10)
        await charge(stores, 4, replace(QUOTA, name="quota.whole", limit=4, warn_at=1.0))
        await charge(stores, 4, replace(QUOTA, name="quota.seen", limit=4, mode="shadow"))
        await until(lambda: len(listener.heard) == 3)
        await asyncio.sleep(0.3)
        told = [(event.limit, event.threshold) for event in listener.heard]
        assert told == [
            ("quota.messages", "warning"),
            ("quota.messages", "exhausted"),
            ("quota.whole", "exhausted"),
        ]


async def test_a_lowered_limit_tells_with_the_next_charge(config: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener).opened() as stores:
        await charge(stores, 5)
        await charge(stores, 1, replace(QUOTA, limit=7))
        await until(lambda: listener.heard)
        assert [event.threshold for event in listener.heard] == ["warning"]


async def test_a_charge_that_is_rolled_back_tells_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener).opened() as stores:
        _, holds = await stores.accounts.reserve("acme", [Take(QUOTA, "-", 9)])
        with pytest.raises(RuntimeError):
            async with stores.database.transaction("acme", operation="update", table="t") as connection:
                await stores.accounts.commit(holds, transaction=connection)
                raise RuntimeError
        await asyncio.sleep(0.3)
        assert listener.heard == []
        async with stores.database.transaction("acme", operation="update", table="t") as connection:
            await stores.accounts.commit(holds, transaction=connection)
        await until(lambda: listener.heard)


async def test_replicas_tell_each_event_once_together(config: dict[str, Any], tmp_path: Path) -> None:
    listener = Listener()
    async with (
        listening(tmp_path, config, listener).opened() as one,
        listening(tmp_path, config, listener).opened() as two,
    ):
        await asyncio.gather(
            *(charge(stores, 1, QUOTA, f"org{i}") for i in range(20) for stores in (one, two) for _ in range(5))
        )
        await until(lambda: len(listener.heard) == 40)
        await asyncio.sleep(0.3)
        assert len({event.key for event in listener.heard}) == len(listener.heard) == 40


async def test_a_listener_that_fails_is_told_again(
    config: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener(failures=2)
    async with listening(tmp_path, config, listener).opened() as stores:
        await charge(stores, 8)
        await until(lambda: listener.heard)
    assert sum(record.message == "a quota event was not taken by the plugin listener" for record in caplog.records) == 2


async def test_a_listener_that_answers_with_what_is_no_answer_is_named_and_not_told_again(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Lazy(Listener):
        def on_quota_event(self, event: QuotaEvent) -> Any:
            self.heard.append(event)
            yield  # a generator: what stands before it has not run, nor will it

    class Talkative(Listener):
        def on_quota_event(self, event: QuotaEvent) -> Any:
            self.heard.append(event)
            return {"taken": True}

    lazy, talkative = Lazy(), Talkative()
    stores = listening(tmp_path, config, talkative)
    stores.instances["lazy"] = lazy
    async with stores.opened():
        await charge(stores, 8)
        await until(lambda: talkative.heard)
        await asyncio.sleep(0.5)  # longer than a claim stands
    assert (len(talkative.heard), lazy.heard) == (1, [])
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    said = "its hook 'on_quota_event' returned what it must not; found {}; expected None or an awaitable"
    assert [record.getMessage() for record in records] == [
        f"plugins.listener: {said.format('dict')}",
        f"plugins.lazy: {said.format('generator')}",
    ]
    assert not any(record.exc_info for record in records)


async def test_an_event_of_a_dead_replica_is_told_by_the_next(config: dict[str, Any], tmp_path: Path) -> None:
    async with Stores(tmp_path, config, {}).opened() as dead:
        await charge(dead, 8)
        claimed = await dead.accounts._outbox.deliver()  # it has taken the event, and no listener marks it
        assert claimed == 1
        async with dead.database.transaction(None, operation="update", table="t") as connection:
            await connection.exec_driver_sql("UPDATE openclaw_quota_events SET delivered_at = NULL")
    listener = Listener()
    async with listening(tmp_path, config, listener).opened():
        await asyncio.sleep(0.3)
        assert listener.heard == []  # the claim still stands
    async with (
        Stores(tmp_path, config, {}).opened() as later,
        later.database.transaction(None, operation="update", table="t") as connection,
    ):
        await connection.exec_driver_sql("UPDATE openclaw_quota_events SET claimed_until = created_at")
    async with listening(tmp_path, config, listener).opened():
        await until(lambda: listener.heard)


async def test_an_event_is_told_at_once_and_then_nothing_is_looked_for(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, looks = Listener(), []
    deliver = Outbox.deliver

    async def counted(outbox: Outbox) -> int:
        looks.append(await deliver(outbox))
        return looks[-1]

    monkeypatch.setattr(Outbox, "deliver", counted)
    async with listening(tmp_path, config, listener, deliver_every=600).opened() as stores:
        await until(lambda: looks)
        await charge(stores, 8)
        await until(lambda: listener.heard)
        await asyncio.sleep(0.5)
    assert sum(looks) == 1 and len(looks) <= 3


async def test_a_store_that_fails_for_a_moment_is_asked_again_and_told_of(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listener, failures = Listener(), [StoreUnavailable("sql", "gone")]
    deliver = Outbox.deliver

    async def failing(outbox: Outbox) -> int:
        if failures:
            raise failures.pop()
        return await deliver(outbox)

    monkeypatch.setattr(Outbox, "deliver", failing)
    async with listening(tmp_path, config, listener).opened() as stores:
        await charge(stores, 8)
        await until(lambda: listener.heard)
    assert sum(record.message == "quota events could not be delivered" for record in caplog.records) == 1


async def test_whoever_is_being_told_when_it_closes_has_stopped_when_it_is_closed(
    config: dict[str, Any], tmp_path: Path
) -> None:
    steps: list[str] = []

    class Slow(Listener):
        async def _hear(self, event: QuotaEvent) -> None:
            steps.append("told")
            try:
                await asyncio.sleep(600)
            finally:
                await asyncio.sleep(0.05)
                steps.append("stopped")

    stores = listening(tmp_path, config, Slow(), deliver_within=600)
    async with stores.database.lifespan():
        async with stores.accounts.lifespan():
            await charge(stores, 8)
            await until(lambda: steps)
        assert steps == ["told", "stopped"]


async def test_what_was_told_is_forgotten_after_forty_days_and_what_was_not_never(
    config: dict[str, Any], tmp_path: Path
) -> None:
    listener = Listener()
    async with listening(tmp_path, config, listener).opened() as stores:
        for organization in ("young", "old"):
            await charge(stores, 8, organization=organization)
        await until(lambda: len(listener.heard) == 2)
    async with Stores(tmp_path, config, {}).opened() as stores:
        await charge(stores, 8, organization="untold")
        for organization, hours in (("young", -1), ("old", 1), ("untold", 1)):
            moment = datetime.now(UTC) - timedelta(days=40, hours=hours)
            told = {"created_at": moment} if organization == "untold" else {"delivered_at": moment}
            async with stores.database.transaction(None, operation="update", table="t") as connection:
                await connection.execute(
                    update(quota_events).where(quota_events.c.organization_id == organization).values(**told)
                )
        await stores.accounts.reap()
        async with stores.database.transaction(None, operation="select", table="t") as connection:
            kept = await connection.execute(select(quota_events.c.organization_id))
            assert {row[0] for row in kept} == {"young", "untold"}


async def test_it_reaches_the_log_the_numbers_and_every_open_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = """
[ratelimit.requests]
limit = 1000
per = "minute"
[ratelimit.ws_messages]
limit = 100
per = "minute"
[quota.sessions]
limit = 100
per = "month"
[quota.messages]
limit = 5
per = "month"
[concurrency.sessions]
limit = 100
[concurrency.ws_connections]
limit = 5
"""
    caplog.set_level(logging.WARNING, "openclaw.quota")
    async with place(tmp_path, tiers={"open_source": tier}) as here:
        one, two = await here.session(), await here.session()
        async with here.connect(one) as first, here.connect(two) as second:
            for n in range(4):
                status, _ = await here.ask(
                    "POST",
                    "/v1/chat/completions",
                    {"model": "echo", "messages": [{"role": "user", "content": str(n)}]},
                    **{"X-API-Key": here.key},
                )
                assert status == 200
            async with asyncio.timeout(10):
                frames = [json.loads(await socket.recv()) for socket in (first, second)]
        for frame in frames:
            assert frame["type"] == "quota_warning"
            assert {k: frame["limit"][k] for k in ("name", "kind", "used", "limit", "remaining")} == {
                "name": "quota.messages",
                "kind": "quota",
                "used": 4,
                "limit": 5,
                "remaining": 1,
            }
        assert here.metric("quota_thresholds_total", quota="quota.messages", threshold="warning") == 1
    (record,) = [r for r in caplog.records if r.name == "openclaw.quota"]
    assert record.message == "quota.messages is nearly used up"
