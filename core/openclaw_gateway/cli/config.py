"""`config`: the effective values, and where each comes from; secrets stay references."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from openclaw_gateway.cli.context import config_option, json_option, load, print_json


@click.group()
def config() -> None:
    """Show the effective configuration."""


@config.command()
@config_option
@json_option
def show(config: Path | None, as_json: bool) -> None:
    """Print every effective value with its origin."""
    found = values(load(config))
    if as_json:
        print_json(found)
        return
    for key, entry in found.items():
        click.echo(f"{key} = {entry['value']}  # {entry['origin']}")


@config.command()
@config_option
@json_option
@click.argument("key")
def explain(config: Path | None, as_json: bool, key: str) -> None:
    """Say what KEY is, where it was set, and what it shadows."""
    from openclaw_gateway.structs import nearest

    found = values(load(config))
    entry = found.get(key)
    if entry is None:
        meant = nearest(key, found)
        click.echo(f"no such key: {key}{f'; did you mean {meant}?' if meant else ''}", err=True)
        sys.exit(2)
    if as_json:
        print_json({"key": key, **entry})
        return
    for name, value in {"key": key, **entry}.items():
        if value is not None:
            click.echo(f"{name}: {value}")


def values(gateway: Any) -> dict[str, dict[str, Any]]:
    """Return every effective value by its dotted key, with its type and origin; never the text of a secret."""
    found: dict[str, dict[str, Any]] = {}

    def walk(struct: Any, keys: tuple[str, ...]) -> None:
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            path = (*keys, field.encode_name)
            if isinstance(value, msgspec.Struct):
                walk(value, path)
            elif isinstance(value, dict) and keys == () and field.name != "plugins":
                for name, item in value.items():
                    walk(item, (*path, name))
            elif field.name != "plugins" or keys:
                found[".".join(path)] = _entry(gateway, path, value, field)

    walk(gateway.document, ())
    for definition in gateway.definitions:
        if definition.config is not None:
            walk(definition.config, ("plugins", definition.id))
    return found


def _entry(gateway: Any, path: tuple[str, ...], value: Any, field: Any) -> dict[str, Any]:
    from openclaw_gateway.structs import describe

    layers = gateway.layers
    variable = layers.variables.get(path)
    written = path in layers.file.positions
    # Never the text of a variable or of a shadowed value: either may be a secret.
    return {
        "value": str(value),
        "type": describe(field.type),
        "origin": layers.origin(path) if written or variable is not None else "default",
        "shadows": layers.file.origin(path) if variable is not None and written else None,
        "description": _description(field.type),
    }


def _description(type: Any) -> str | None:
    from typing import get_args

    for meta in get_args(type)[1:]:
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    return None
