"""Writes the few shapes of YAML that the files here have, in an order and a form that people can read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*|\d+[smhd]").fullmatch
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def written(value: Any) -> str:
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _entry(f"{_scalar(key)}:", item)
    else:
        for item in value:
            first, *rest = _lines(item) if _nests(item) else [_scalar(item)]
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)


def _entry(head: str, item: Any) -> Iterator[str]:
    if _nests(item):
        yield head
        yield from (f"  {line}" for line in _lines(item))
    elif isinstance(item, str) and ("\n" in item or '"' in item):
        yield f"{head} |-"
        yield from (f"  {line}" for line in item.split("\n"))
    else:
        yield f"{head} {_scalar(item)}"


def _nests(item: Any) -> bool:
    return bool(item) and not isinstance(item, str) and isinstance(item, (Mapping, Sequence))


def _scalar(item: Any) -> str:
    if isinstance(item, str) and _PLAIN(item) and item.lower() not in _WORDS:
        return item
    return json.dumps(item, ensure_ascii=False)
