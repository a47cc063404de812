"""Values with a unit, and secrets, as operators write them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

_NUMBER = re.compile(r"^(\d+(?:\.\d+)?)\s*([a-zA-Z]+)$")


class Duration(float):
    """A length of time; a float of seconds, written `"50ms"`, `"30s"`, `"10m"`, `"24h"` or `"7d"`."""

    __pattern__ = r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$"
    __expects__ = 'a duration such as "30s" (units: ms, s, m, h, d)'
    _UNITS: ClassVar[dict[str, float]] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}

    @classmethod
    def parse(cls, text: object) -> Duration:
        match = _NUMBER.match(text) if isinstance(text, str) else None
        if match is None or match[2] not in cls._UNITS:
            raise ValueError(f"expected {cls.__expects__}")
        return cls(float(match[1]) * cls._UNITS[match[2]])

    def __str__(self) -> str:
        return _written(float(self), self._UNITS)


class Size(int):
    """A number of bytes, written `"512KB"`, `"20MB"` or, in powers of two, `"1MiB"`."""

    __pattern__ = r"^\d+(\.\d+)?\s*(B|KB|MB|GB|KiB|MiB|GiB)$"
    __expects__ = 'a size such as "20MB" (units: B, KB, MB, GB, KiB, MiB, GiB)'
    _UNITS: ClassVar[dict[str, int]] = {
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
    }

    @classmethod
    def parse(cls, text: object) -> Size:
        match = _NUMBER.match(text) if isinstance(text, str) else None
        if match is None or match[2] not in cls._UNITS:
            raise ValueError(f"expected {cls.__expects__}")
        return cls(float(match[1]) * cls._UNITS[match[2]])

    def __str__(self) -> str:
        return _written(float(self), self._UNITS)


def _written(amount: float, units: Mapping[str, float]) -> str:
    """Write an amount in the largest unit that leaves no fraction."""
    for unit, size in sorted(units.items(), key=lambda u: -u[1]):
        if amount and round(amount / size, 9) == int(round(amount / size, 9)):
            return f"{round(amount / size)}{unit}"
    return "0s" if "s" in units else "0B"


class Secret:
    """A value that is never shown: a literal, or a reference `"env:NAME"` or `"file:PATH"`."""

    __slots__ = ("_value", "reference")
    __pattern__ = "."
    __expects__ = 'a secret: text, "env:NAME" or "file:PATH"'

    def __init__(self, value: str, reference: str = "(literal)") -> None:
        self._value = value
        self.reference = reference

    @classmethod
    def parse(cls, text: object, directory: Path) -> Secret:
        if not isinstance(text, str) or not text:
            raise ValueError(f"expected {cls.__expects__}")
        if text.startswith("env:"):
            value = os.environ.get(text[4:])
            if value is None:
                raise ValueError(f"the environment variable {text[4:]} is not set")
            return cls(value, text)
        if text.startswith("file:"):
            try:
                return cls((directory / text[5:]).read_text().strip(), text)
            except OSError as error:
                raise ValueError(f"the file {text[5:]} cannot be read: {error.strerror}") from None
        return cls(text)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.reference})"

    __str__ = __repr__


def decoder(directory: Path) -> Callable[[type, Any], Any]:
    """Return the hook by which msgspec reads these types; `directory` is where `file:` paths start."""

    def decode(type: type, value: Any) -> Any:
        if type is Duration or type is Size:
            return value if isinstance(value, type) else type.parse(value)
        if type is Secret:
            return value if isinstance(value, Secret) else Secret.parse(value, directory)
        raise NotImplementedError(f"no configuration type: {type}")

    return decode
