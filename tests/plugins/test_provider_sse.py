"""The event reader: whatever the cut of the bytes, the same events; and never half of one."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_plugins.providers.sse import Event, EventReader, EventTooLong


def read(*pieces: bytes, limit: int = 10_000) -> list[Event]:
    reader = EventReader(limit)
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *reader.finish()]


STREAM = (
    '\ufeff: hello\n\ndata: {"a": "ü✓"}\n\nevent: note\r\ndata: one\r\ndata:two\r\n\r\nid: 7\rdata: three\r\r'
    "retry: 5\n\ndata\n\ndata: [DONE]"
).encode()
EVENTS = [
    Event("", '{"a": "ü✓"}'.encode()),
    Event("note", b"one\ntwo"),
    Event("", b"three"),
    Event("", b""),
    Event("", b"[DONE]"),
]


def test_reads_every_line_end_comments_names_and_a_missing_final_line() -> None:
    assert read(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_the_cut_of_the_bytes_changes_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[a:b] for a, b in pairwise(edges))) == EVENTS


def test_byte_by_byte() -> None:
    assert read(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


def test_a_carriage_return_and_its_line_feed_in_two_pieces_are_one_line_end() -> None:
    assert read(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [Event("", b"a\nb")]


@pytest.mark.parametrize("pieces", [[b"data: " + b"x" * 200], [b"data: x" * 30], [b"data: xxxxxxxxxx\n"] * 20])
def test_an_event_over_the_limit_is_refused_before_it_is_whole(pieces: list[bytes]) -> None:
    with pytest.raises(EventTooLong):
        read(*pieces, limit=100)


@given(st.lists(st.text("ab:\\ é", max_size=6), max_size=6), st.integers(0, 60))
def test_whole_events_of_one_line_read_the_same_at_once_and_in_two_parts(texts: list[str], cut: int) -> None:
    stream = b"".join(f"data: {text}\n\n".encode() for text in texts)
    assert read(stream) == read(stream[:cut], stream[cut:]) == [Event("", text.encode()) for text in texts]
