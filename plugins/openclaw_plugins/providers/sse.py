"""Reads server-sent events out of bytes as they come; it never guesses at an event that is not whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec


class EventTooLong(Exception):
    """One event is longer than the reader may keep."""


class Event(msgspec.Struct, frozen=True):
    """One event: its name (empty for the default) and its data, lines joined by a line feed."""

    name: str
    data: bytes


class EventReader:
    """Turns pieces of a byte stream, cut anywhere, into events.

    It works on bytes: a character split between two pieces is whole again before anybody decodes it.
    """

    __slots__ = ("_after_return", "_data", "_limit", "_line", "_name", "_size", "_started")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = b""
        self._data: list[bytes] = []
        self._name = ""
        self._size = 0
        self._after_return = False
        self._started = False

    def feed(self, piece: bytes) -> Iterable[Event]:
        """Return the events that `piece` completes. Raises EventTooLong."""
        # Nearly every upstream sends whole events of one line each.
        if piece[:6] == b"data: " and piece[-2:] == b"\n\n" and not (self._line or self._data or self._name):
            data = piece[6:-2].split(b"\n\ndata: ")
            if piece.count(b"\n") == 2 * len(data) and len(piece) <= self._limit and piece.find(b"\r") < 0:
                self._started = True
                self._after_return = False
                return [Event("", each) for each in data]
        return self._feed(piece)

    def _feed(self, piece: bytes) -> Iterator[Event]:
        if not piece:
            return
        if self._after_return:
            # A CR ended the last line; a LF that opens this piece belongs to it.
            piece = piece.removeprefix(b"\n")
            self._after_return = False
        buffered = self._line + piece
        if not self._started:
            if len(buffered) < 3 and b"\xef\xbb\xbf".startswith(buffered):
                self._line = buffered
                return
            buffered = buffered.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        self._after_return = buffered.endswith(b"\r")
        if b"\r" in buffered:
            buffered = buffered.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._line = buffered.split(b"\n")
        for line in lines:
            event = self._take(line)
            if event is not None:
                yield event
        if self._size + len(self._line) > self._limit:
            raise EventTooLong

    def finish(self) -> Iterator[Event]:
        """Yield the event that only lacks its final line ends.

        The standard drops it; upstreams that forget the last blank line are too common for that, and a
        consumer that checks each event's JSON cannot take half an event for a whole one.
        """
        for line in (self._line, b""):
            event = self._take(line)
            if event is not None:
                yield event
        self._line = b""

    def _take(self, line: bytes) -> Event | None:
        if not line:
            if not self._data:
                self._name = ""
                return None
            event = Event(self._name, b"\n".join(self._data) if len(self._data) > 1 else self._data[0])
            self._data, self._name, self._size = [], "", 0
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > self._limit:
                raise EventTooLong
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        return None
