"""How a plugin's config names other plugins: which Protocol each named id must satisfy, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import msgspec


def capabilities_of(type: Any) -> Iterator[Any]:
    """Yield the Protocols that a field's type needs, also inside tuples and unions."""
    if get_origin(type) is Annotated:
        for meta in get_args(type)[1:]:
            if isinstance(meta, msgspec.Meta) and meta.extra and "needs" in meta.extra:
                yield meta.extra["needs"]
    for argument in get_args(type):
        if argument is not Ellipsis and not isinstance(argument, msgspec.Meta):
            yield from capabilities_of(argument)


def located(config: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str, Any], tuple[str | int, ...]]]:
    """Yield ((id, capability), path) for every reference that a config holds."""
    for field in msgspec.structs.fields(config):
        for capability in capabilities_of(field.type):
            value = getattr(config, field.name)
            if isinstance(value, str):
                yield (value, capability), (*path, field.encode_name)
            elif isinstance(value, (tuple, list)):
                for i, name in enumerate(value):
                    yield (name, capability), (*path, field.encode_name, i)


def lacking(cls: Any, capability: type) -> list[str]:
    """Names of the Protocol that a class does not have."""
    wanted: set[str] = set()
    for base in capability.__mro__:
        if getattr(base, "_is_protocol", False):
            wanted |= {n for n in (*vars(base), *getattr(base, "__annotations__", {})) if not n.startswith("_")}
    return sorted(name for name in wanted if not hasattr(cls, name))
