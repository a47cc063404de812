"""`schema`: JSON Schema of openclaw.toml and of tier files, the installed plugins' own keys included."""

from __future__ import annotations

from typing import Any

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
    from openclaw_gateway.config.units import schema_of

    (root,), defs = msgspec.json.schema_components([struct], ref_template="#/definitions/{name}", schema_hook=schema_of)
    name = root["$ref"].rsplit("/", 1)[1]
    return defs.pop(name), defs


def _plugins() -> list[tuple[str, Any]]:
    from openclaw_gateway.loader import installed

    return [(name, points[0].load()) for name, points in sorted(installed().items())]
