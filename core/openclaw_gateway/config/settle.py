"""Gives each environment variable its value: its text where the schema wants text, else what TOML makes of it."""

from __future__ import annotations

import inspect
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from openclaw_gateway.config.layers import FromEnvironment
from openclaw_gateway.config.units import Duration, Secret, Size
from openclaw_gateway.structs import bare


def settled(value: Any, type: Any) -> Any:
    """Return the tree with every variable replaced by its value, by the types of the schema."""
    base = bare(type)
    if isinstance(value, FromEnvironment):
        return value.raw if _textual(base) else value.parsed
    if isinstance(value, dict):
        if inspect.isclass(base) and issubclass(base, msgspec.Struct):
            fields = {f.encode_name: f.type for f in msgspec.structs.fields(base)}
            return {k: settled(v, fields.get(k, Any)) for k, v in value.items()}
        if get_origin(base) is dict:
            inner = get_args(base)[1]
            # A plugin's own table is typed by the plugin, later: leave its variables alone until then.
            if get_origin(bare(inner)) is dict:
                return {k: v.parsed if isinstance(v, FromEnvironment) else v for k, v in value.items()}
            return {k: settled(v, inner) for k, v in value.items()}
    return value


def _textual(base: Any) -> bool:
    if base in (str, Duration, Size, Secret):
        return True
    origin = get_origin(base)
    if origin is Literal:
        return all(isinstance(a, str) for a in get_args(base))
    if origin in (Union, types.UnionType):
        return any(_textual(bare(a)) for a in get_args(base))
    return False
