"""What every event bus must do: one order, each event once, and a window that is honest about its edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from events_kit import Heard, contents, memory, publish, redis
from servers import Valkey

from openclaw_gateway.api import Event, EventBus

Make = Callable[..., Any]


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Return what opens a bus of this kind."""
    async with AsyncExitStack() as stack:

        async def opened(**config: Any) -> EventBus:
            if request.param == "memory":
                return memory(**config)
            valkey: Valkey = request.getfixturevalue("valkey")
            bus: EventBus = await stack.enter_async_context(redis(valkey.url, **config))
            return bus

        yield opened


async def test_it_is_an_event_bus(make: Make) -> None:
    assert isinstance(await make(), EventBus)


async def test_everyone_who_listens_gets_every_event_once_and_in_order(make: Make) -> None:
    bus = await make()
    one, two = Heard(), Heard()
    await bus.subscribe("acme", "s", one)
    await bus.subscribe("acme", "s", two)
    numbers = await publish(bus, "a", "b", "c")
    await two.count(3)
    assert await one.count(3) == two.events
    assert [event.seq for event in one.events] == numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    assert [json.loads(event.body)["seq"] for event in one.events] == numbers
    assert [event.type for event in one.events] == ["message"] * 3
    assert one.contents == ["a", "b", "c"]


async def test_what_many_publish_at_once_has_one_order(make: Make) -> None:
    bus = await make()
    one, two = Heard(), Heard()
    await bus.subscribe("acme", "s", one)
    await bus.subscribe("acme", "s", two)
    numbers = await asyncio.gather(*(publish(bus, str(i)) for i in range(200)))
    await two.count(200)
    assert await one.count(200) == two.events
    assert [event.seq for event in one.events] == sorted(number for (number,) in numbers)
    assert sorted(one.contents) == sorted(str(i) for i in range(200))


async def test_numbers_are_whole_numbers_of_javascript(make: Make) -> None:
    bus = await make()
    assert (await publish(bus, "a"))[0] < 2**53


async def test_a_session_of_another_organization_is_another_session(make: Make) -> None:
    bus = await make()
    heard = Heard()
    await bus.subscribe("acme", "s", heard)
    await publish(bus, "theirs", organization="other")
    await publish(bus, "elsewhere", session="t")
    await publish(bus, "ours")
    await heard.count(1)
    assert heard.contents == ["ours"]


async def test_nothing_arrives_after_the_end(make: Make) -> None:
    bus = await make()
    heard, other = Heard(), Heard()
    subscription = await bus.subscribe("acme", "s", heard)
    await bus.subscribe("acme", "s", other)
    subscription.close()
    subscription.close()
    await publish(bus, "late")
    await other.count(1)
    assert heard.events == []


async def test_who_comes_back_after_everyone_left_hears_again(make: Make) -> None:
    bus = await make()
    (await bus.subscribe("acme", "s", Heard())).close()
    (first,) = await publish(bus, "while nobody listened")
    heard = Heard()
    subscription = await bus.subscribe("acme", "s", heard)
    assert subscription.head == first
    await publish(bus, "live")
    await heard.count(1)
    assert contents(await subscription.replay(first - 1)) == ["while nobody listened"]
    assert heard.contents == ["live"]


async def test_a_listener_that_fails_harms_no_other(make: Make) -> None:
    bus = await make()
    heard = Heard()

    def fails(event: Event) -> None:
        raise RuntimeError("broken")

    await bus.subscribe("acme", "s", fails)
    await bus.subscribe("acme", "s", heard)
    await publish(bus, "a")
    await heard.count(1)
    assert heard.contents == ["a"]


async def test_a_listener_may_leave_while_it_is_told(make: Make) -> None:
    bus = await make()
    heard, other = Heard(), Heard()
    subscription = await bus.subscribe("acme", "s", lambda event: (heard(event), subscription.close())[0])
    await bus.subscribe("acme", "s", other)
    await publish(bus, "a", "b")
    await other.count(2)
    assert heard.contents == ["a"]


async def test_replay_is_what_came_after_and_before_the_subscription(make: Make) -> None:
    bus = await make()
    first, *_ = await publish(bus, "a", "b", "c")
    heard = Heard()
    subscription = await bus.subscribe("acme", "s", heard)
    await publish(bus, "live")
    await heard.count(1)
    missed = await subscription.replay(first)
    assert missed is not None
    assert contents([*missed, *heard.events]) == ["b", "c", "live"]
    assert [json.loads(event.body)["seq"] for event in missed] == [event.seq for event in missed]
    assert await subscription.replay(subscription.head) == []


async def test_replay_is_none_where_the_window_has_moved_on(make: Make) -> None:
    bus = await make(keep=3)
    numbers = await publish(bus, *"abcdef")
    subscription = await bus.subscribe("acme", "s", Heard())
    assert await subscription.replay(numbers[1]) is None
    kept = await subscription.replay(numbers[2])
    assert kept is not None
    assert contents(kept) == ["d", "e", "f"]
    assert await subscription.replay(0) is None
    assert await subscription.replay(numbers[-1] + 1) is None


async def test_the_window_is_bounded_in_bytes(make: Make) -> None:
    bus = await make(keep_bytes=1000)
    numbers = await publish(bus, *["x" * 100] * 50)
    subscription = await bus.subscribe("acme", "s", Heard())
    kept = await subscription.replay(numbers[-6])
    assert kept is not None and len(kept) == 5
    assert await subscription.replay(numbers[-12]) is None


async def test_nothing_is_kept_where_nothing_shall_be(make: Make) -> None:
    bus = await make(keep=0)
    heard = Heard()
    subscription = await bus.subscribe("acme", "s", heard)
    (number,) = await publish(bus, "a")
    await heard.count(1)
    late = await bus.subscribe("acme", "s", Heard())
    assert await late.replay(number) == []
    assert await late.replay(number - 1) is None
    assert await subscription.replay(number - 1) == []
