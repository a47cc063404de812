"""One problem in the operator's files, in the words and with the place that mend it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from openclaw_gateway.structs import Finding, Path


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """`origin` is `file:line:column` or the name of an environment variable; `path` the dotted key."""

    origin: str
    path: str
    message: str
    found: str | None = None
    expected: str | None = None
    nearest: str | None = None

    @classmethod
    def of(cls, finding: Finding, origin: Callable[[Path], str]) -> Problem:
        """Give a finding its place: `origin` says where a key path was set."""
        return cls(
            origin=origin(finding.keys),
            path=finding.path,
            message=finding.message,
            found=finding.found,
            expected=finding.expected,
            nearest=finding.nearest,
        )

    def __str__(self) -> str:
        text = f"{self.origin}: {self.path}: {self.message}" if self.path else f"{self.origin}: {self.message}"
        if self.found is not None:
            text += f"; found {self.found}"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.nearest is not None:
            text += f'; did you mean "{self.nearest}"?'
        return text

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields
