"""What is written for whom: the configured level, and overrides of it that an operator makes while it serves.

Overrides stand in one file of data_dir, which every process of the gateway on this machine reads when it changes. Each
ends by itself: a level that is forgotten would fill a disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from openclaw_gateway.api import PRINCIPAL, Exchange

FILE = "log-levels.json"
#: overrides at once
MOST = 100
#: seconds that one may last: whoever needs more sets `level`
LONGEST = 86_400.0
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}


class Override(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One override: for a route (by its template), an organisation, both, or everything; until a Unix time."""

    level: str
    until: float
    route: str | None = None
    organization_id: str | None = None

    def fits(self, route: str | None, organization: str | None) -> bool:
        return self.route in (None, route) and self.organization_id in (None, organization)


_read = msgspec.json.Decoder(list[Override]).decode


def read(file: Path, now: float) -> list[Override]:
    """Return the overrides that still hold. Raises OSError, msgspec.DecodeError."""
    if not file.exists():
        return []
    found = [one for one in _read(file.read_bytes()) if one.until > now and one.level in LEVELS][:MOST]
    # A file may have been written by hand, or under a wrong clock.
    return [structs.replace(one, until=min(one.until, now + LONGEST)) for one in found]


def write(file: Path, overrides: Sequence[Override]) -> None:
    """Put the whole list in place at once, for its owner alone to read. Raises OSError."""
    fresh = file.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(overrides), indent=2))
    fresh.replace(file)


class Levels:
    """The levels in force. `least` is the lowest of them: what is below is written for nobody."""

    __slots__ = ("_file", "_mark", "_now", "_overrides", "base", "least")

    def __init__(self, base: int, file: Path, now: Callable[[], float]) -> None:
        self.base = base
        self.least = base
        self._file = file
        self._now = now
        self._mark: tuple[int, int] | None = None
        self._overrides: list[Override] = []

    def of(self, x: Exchange | None) -> int:
        """The level for an exchange, or for what belongs to none; the most talkative override that fits."""
        if not self._overrides:
            return self.base
        route = x.route.route.path if x is not None else None
        principal = x.get(PRINCIPAL) if x is not None else None
        organization = principal.organization if principal is not None else None
        fitting = [LEVELS[one.level] for one in self._overrides if one.fits(route, organization)]
        return min(fitting) if fitting else self.base

    def refresh(self) -> bool:
        """Look at the file, and at the time; say whether anything has changed. Raises OSError, msgspec.DecodeError."""
        before = self._overrides
        try:
            found = self._file.stat()
            mark = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            mark = None
        if mark != self._mark:
            self._mark = mark
            self._overrides = read(self._file, self._now())
        else:
            now = self._now()
            self._overrides = [one for one in before if one.until > now]
        self.least = min([self.base, *(LEVELS[one.level] for one in self._overrides)])
        return self._overrides != before
