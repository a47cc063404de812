"""The event bus of one process: one order, each event once, and a window that is honest about its edge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Event, EventBus, Host
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.events.memory import MemoryEvents


def bus(clock: ManualClock | None = None, **config: Any) -> MemoryEvents:
    host = Host(
        "events",
        document=Document(gateway=GatewaySettings(pipeline=())),
        config_dir=Path(),
        tiers={},
        instances={},
        registry=CollectorRegistry(),
        clock=clock or ManualClock(),
    )
    return MemoryEvents(MemoryEvents.Config(**config), host)


async def publish(events: MemoryEvents, *texts: str, session: str = "s", organization: str = "acme") -> list[int]:
    return [await events.publish(organization, session, {"type": "message", "content": text}) for text in texts]


def contents(events: Any) -> list[str]:
    return [json.loads(event.body)["content"] for event in events]


async def test_it_is_an_event_bus() -> None:
    assert isinstance(bus(), EventBus)


async def test_everyone_who_listens_gets_every_event_once_and_in_order() -> None:
    events = bus()
    one: list[Event] = []
    two: list[Event] = []
    await events.subscribe("acme", "s", one.append)
    await events.subscribe("acme", "s", two.append)
    numbers = await publish(events, "a", "b", "c")
    assert one == two
    assert [event.seq for event in one] == numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert [json.loads(event.body)["seq"] for event in one] == numbers
    assert contents(one) == ["a", "b", "c"]


async def test_a_session_of_another_organization_is_another_session() -> None:
    events = bus()
    heard: list[Event] = []
    await events.subscribe("acme", "s", heard.append)
    await publish(events, "theirs", organization="other")
    await publish(events, "elsewhere", session="t")
    assert heard == []


async def test_nothing_arrives_after_the_end() -> None:
    events = bus()
    heard: list[Event] = []
    subscription = await events.subscribe("acme", "s", heard.append)
    subscription.close()
    subscription.close()
    await publish(events, "late")
    assert heard == []


async def test_a_listener_that_fails_harms_no_other() -> None:
    events = bus()
    heard: list[Event] = []

    def fails(event: Event) -> None:
        raise RuntimeError("broken")

    await events.subscribe("acme", "s", fails)
    await events.subscribe("acme", "s", heard.append)
    await publish(events, "a")
    assert contents(heard) == ["a"]


async def test_a_listener_may_leave_while_it_is_told() -> None:
    events = bus()
    heard: list[Event] = []
    subscription = await events.subscribe("acme", "s", lambda event: (heard.append(event), subscription.close())[0])
    await publish(events, "a", "b")
    assert contents(heard) == ["a"]


async def test_replay_is_what_came_after_and_before_the_subscription() -> None:
    events = bus()
    first, *_ = await publish(events, "a", "b", "c")
    heard: list[Event] = []
    subscription = await events.subscribe("acme", "s", heard.append)
    await publish(events, "live")
    missed = await subscription.replay(first)
    assert missed is not None
    assert contents([*missed, *heard]) == ["b", "c", "live"]
    assert await subscription.replay(subscription.head) == []


async def test_replay_is_none_where_the_window_has_moved_on() -> None:
    events = bus(keep=3)
    numbers = await publish(events, *"abcdef")
    subscription = await events.subscribe("acme", "s", lambda event: None)
    assert await subscription.replay(numbers[1]) is None
    kept = await subscription.replay(numbers[2])
    assert kept is not None
    assert contents(kept) == ["d", "e", "f"]
    assert await subscription.replay(0) is None
    assert await subscription.replay(numbers[-1] + 1) is None


async def test_the_window_is_bounded_in_bytes() -> None:
    events = bus(keep_bytes=1000)
    await publish(events, *["x" * 100] * 50)
    log = events._kept.logs["acme", "s"]
    assert log.bytes == sum(len(event.body) for event in log.events) <= 1000
    assert len(log.events) >= 5


async def test_old_sessions_are_forgotten_and_their_numbers_never_come_again() -> None:
    clock = ManualClock()
    events = bus(clock, keep_for=60)
    old = (await publish(events, *["x"] * 5000))[-1]
    clock.advance(0.001)  # far less than a millisecond an event: the clock alone would repeat numbers
    await publish(events, "y", session="t")
    clock._monotonic += 61
    await publish(events, "z", session="u")
    assert len(events) == 1
    subscription = await events.subscribe("acme", "s", lambda event: None)
    assert (await publish(events, "again"))[0] > old
    assert await subscription.replay(old - 1) is None


async def test_a_session_that_is_listened_to_is_not_forgotten() -> None:
    clock = ManualClock()
    events = bus(clock, keep_for=60, max_sessions=1)
    heard: list[Event] = []
    await events.subscribe("acme", "s", heard.append)
    for i in range(10):
        clock.advance(61)
        await publish(events, "x", session=f"t{i}")
    await publish(events, "still heard")
    assert contents(heard) == ["still heard"]
    assert len(events) <= 3


async def test_how_many_sessions_are_kept_is_bounded() -> None:
    events = bus(max_sessions=10)
    for i in range(200):
        await publish(events, "x", session=f"s{i}")
    assert len(events) <= 11


async def test_what_all_sessions_keep_is_bounded_and_the_latest_keeps_most() -> None:
    events = bus(keep_bytes=10_000, keep_bytes_in_all=20_000)
    for i in range(50):
        await publish(events, *["x" * 1000] * 20, session=f"s{i}")
        assert sum(log.bytes for log in events._kept.logs.values()) == events._kept.bytes <= 20_000
    assert events._kept.logs["acme", "s49"].bytes > 8000
    subscription = await events.subscribe("acme", "s0", lambda event: None)
    assert await subscription.replay(subscription.head - 1) is None
