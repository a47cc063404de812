"""`schema`: JSON Schema of openclaw.toml and of tier files, the installed plugins' own keys included."""

from __future__ import annotations

import inspect
import operator
import types
from functools import cache, reduce
from typing import Annotated, Any, Union, get_args, get_origin

import click
import msgspec


@click.command()
@click.option("--tier", is_flag=True, help="The schema of a tier file instead.")
def schema(tier: bool) -> None:
    """Print the JSON Schema of openclaw.toml (or of tier files)."""
    click.echo(written(tier_schema() if tier else document_schema()), nl=False)


def document_schema() -> dict[str, Any]:
    """Describe openclaw.toml; every plugin table is described by the plugin that its `use` names."""
    from openclaw_gateway.config.document import Document

    schema, defs = _of(Document)
    tables = []
    for name, cls in _plugins():
        config = getattr(cls, "Config", None)
        table: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
        if config is not None:
            table, inner = _of(config)
            defs.update(inner)
        table["properties"] = {"use": {"const": name, "description": "The plugin's name."}, **table["properties"]}
        table["title"] = name
        if cls.__doc__:
            table["description"] = cls.__doc__.strip().splitlines()[0]
        tables.append((name, table))
    by_use = [
        {"if": {"properties": {"use": {"const": name}}, "required": ["use"]}, "then": table} for name, table in tables
    ]
    named = {
        name: {"if": {"not": {"required": ["use"]}}, "then": table, "else": {"allOf": by_use}}
        for name, table in tables
        if "." not in name
    }
    schema["properties"]["plugins"] = {
        "type": "object",
        "description": "Plugin instances by id; `use` names the plugin, by default the id.",
        "properties": named,
        "additionalProperties": {
            "type": "object",
            "required": ["use"],
            "properties": {"use": {"enum": [name for name, _ in tables]}},
            "allOf": by_use,
        },
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "definitions": defs}


def tier_schema() -> dict[str, Any]:
    """Describe a tier file: one table a plugin that has limits, one sub-table a limit."""
    properties: dict[str, Any] = {
        "title": {"type": "string", "description": "The tier's name as people read it."},
        **{
            key: {"type": "array", "items": {"type": "string"}, "description": f"The {key} that the tier opens."}
            for key in ("models", "skills", "scopes")
        },
    }
    defs: dict[str, Any] = {}
    for name, cls in _plugins():
        limits = getattr(cls, "Limits", None)
        if limits is not None:
            table, inner = _of(limits)
            defs.update(inner)
            properties[name] = {"type": "object", "additionalProperties": table}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "additionalProperties": {"type": "object"},
        "definitions": defs,
    }


def written(schema: dict[str, Any]) -> str:
    """Write a schema as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


def _of(struct: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (root,), defs = msgspec.json.schema_components([_as_written(struct)], ref_template="#/definitions/{name}")
    name = root["$ref"].rsplit("/", 1)[1]
    return defs.pop(name), defs


@cache
def _as_written(type: Any) -> Any:
    """Return the type that an operator writes: durations, sizes and secrets are texts with a pattern."""
    from openclaw_gateway.config.units import Duration, Secret, Size

    if type in (Duration, Size, Secret):
        return Annotated[str, msgspec.Meta(pattern=type.__pattern__)]
    if inspect.isclass(type) and issubclass(type, msgspec.Struct):
        fields: list[Any] = []
        for field in msgspec.structs.fields(type):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if isinstance(default, msgspec.Struct):
                default = {}
            elif isinstance(default, (Duration, Size)):
                default = str(default)
            written = _as_written(field.type)
            if default is msgspec.NODEFAULT:
                fields.append((field.encode_name, written))
            else:
                fields.append((field.encode_name, written | None if default is None else written, default))
        return msgspec.defstruct(type.__name__, fields, kw_only=True, forbid_unknown_fields=True)
    origin, args = get_origin(type), get_args(type)
    if origin is Annotated:
        bare, *metas = args
        annotated: Any = Annotated  # built from parts that are only known at run time
        return annotated[(_as_written(bare), *metas)]
    if origin is dict:
        return types.GenericAlias(dict, (args[0], _as_written(args[1])))
    if origin in (tuple, list):
        return types.GenericAlias(list, (_as_written(args[0]),))
    if origin in (Union, types.UnionType):
        return reduce(operator.or_, (_as_written(a) for a in args))
    return type


def _plugins() -> list[tuple[str, Any]]:
    from openclaw_gateway.loader import installed

    return [(name, points[0].load()) for name, points in sorted(installed().items())]
