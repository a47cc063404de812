"""Attaches a log to the loggers of the process, which outlive any one gateway: two stand beside each other in a reload.

Each line is written once, by the gateway that was opened last, and the level of the loggers is that of who is there.
"""

from __future__ import annotations

import logging

from openclaw_plugins.access_log.levels import Levels

#: loggers that write here while the gateway runs, and from which level at least
_HEARD = {"openclaw": logging.DEBUG, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
_OWN = logging.getLogger("openclaw")


class Hearing:
    """One log's ear, from `begin` to `end`."""

    #: those of the process that have begun, and the level that the logger had before the first
    _begun: list[Hearing] = []  # noqa: RUF012 - of the process, like the loggers
    _before = logging.NOTSET

    def __init__(self, handler: logging.Handler, levels: Levels) -> None:
        self._levels = levels
        self._attached = {name: _Narrowed(handler, least) for name, least in _HEARD.items()}
        self._predecessor: Hearing | None = None

    def begin(self, predecessor: Hearing | None) -> None:
        """Hear from now on, in the place of a predecessor that is still there."""
        if not self._begun:
            Hearing._before = _OWN.level
        if predecessor in self._begun:
            self._predecessor = predecessor
            self._predecessor._detach()
        self._begun.append(self)
        self._attach()
        self.settle()

    def end(self) -> None:
        """Leave all as it was; a predecessor that is still there hears again: the reload was refused."""
        self._begun.remove(self)
        self._detach()
        for other in self._begun:
            if other._predecessor is self:
                other._predecessor = None
        if self._predecessor is not None:
            self._predecessor._attach()
            self._predecessor = None
        self.settle()

    def settle(self) -> None:
        """Set the level of our logger to the lowest that somebody wants."""
        replaced = [one._predecessor for one in self._begun]
        wanted = [one._levels.least for one in self._begun if one not in replaced]
        _OWN.setLevel(min(wanted, default=self._before))

    def _attach(self) -> None:
        for name, handler in self._attached.items():
            logging.getLogger(name).addHandler(handler)

    def _detach(self) -> None:
        for name, handler in self._attached.items():
            logging.getLogger(name).removeHandler(handler)


class _Narrowed(logging.Handler):
    """The same handler, for one logger, from a level of its own."""

    def __init__(self, inner: logging.Handler, level: int) -> None:
        super().__init__(level)
        self._inner = inner

    def emit(self, record: logging.LogRecord) -> None:
        self._inner.emit(record)
