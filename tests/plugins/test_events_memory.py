"""The event bus of one process: what it keeps is bounded, numbers never come again, and a reload harms nobody."""

from __future__ import annotations

from events_kit import Heard, memory, publish

from openclaw_gateway.testing import ManualClock


async def test_the_window_is_bounded_in_bytes() -> None:
    events = memory(keep_bytes=1000)
    await publish(events, *["x" * 100] * 50)
    log = events._kept.logs["acme", "s"]
    assert log.bytes == sum(len(event.body) for event in log.events) <= 1000
    assert len(log.events) >= 5


async def test_old_sessions_are_forgotten_and_their_numbers_never_come_again() -> None:
    clock = ManualClock()
    events = memory(clock, keep_for=60)
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
    events = memory(clock, keep_for=60, max_sessions=1)
    heard = Heard()
    await events.subscribe("acme", "s", heard)
    for i in range(10):
        clock.advance(61)
        await publish(events, "x", session=f"t{i}")
    await publish(events, "still heard")
    assert heard.contents == ["still heard"]
    assert len(events) <= 3


async def test_how_many_sessions_are_kept_is_bounded() -> None:
    events = memory(max_sessions=10)
    for i in range(200):
        await publish(events, "x", session=f"s{i}")
    assert len(events) <= 11


async def test_what_all_sessions_keep_is_bounded_and_the_latest_keeps_most() -> None:
    events = memory(keep_bytes=10_000, keep_bytes_in_all=20_000)
    for i in range(50):
        await publish(events, *["x" * 1000] * 20, session=f"s{i}")
        assert sum(log.bytes for log in events._kept.logs.values()) == events._kept.bytes <= 20_000
    assert events._kept.logs["acme", "s49"].bytes > 8000
    subscription = await events.subscribe("acme", "s0", lambda event: None)
    assert await subscription.replay(subscription.head - 1) is None


async def test_a_reload_keeps_logs_and_listeners() -> None:
    clock = ManualClock()
    old, new = memory(clock), memory(clock)
    heard = Heard()
    await old.subscribe("acme", "s", heard)
    (first,) = await publish(old, "a")
    new.inherit(old)
    await publish(new, "b")
    await publish(old, "c")
    assert heard.contents == ["a", "b", "c"]
    subscription = await new.subscribe("acme", "s", Heard())
    assert [event.seq for event in await subscription.replay(first) or ()] == [first + 1, first + 2]
