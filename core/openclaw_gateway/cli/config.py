"""`config`: the effective values, and where each comes from; secrets stay references."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, WRONG_USE, config_option, json_option, load, print_json
from openclaw_gateway.config.effective import differences, left, standing, values


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


@config.command()
@config_option
@json_option
def diff(config: Path | None, as_json: bool) -> None:
    """Compare the files with what is served from them now; exit 1 where they differ.

    A secret is compared by where it is read from, not by its text.
    """
    gateway = load(config)
    folder = gateway.config_dir / gateway.document.gateway.data_dir
    served = left(folder)
    if served is None:
        click.echo(f"no gateway serves this configuration (nothing of one is in {folder})", err=True)
        sys.exit(WRONG_USE)
    changes = differences(served, standing(gateway))
    if as_json:
        print_json({"changes": changes})
    elif changes:
        for change in changes:
            click.echo(f"{change['key']}: {change['served'] or '-'} -> {change['file'] or '-'}")
        click.echo(
            f"{len(changes)} difference{'s' if len(changes) != 1 else ''}; `openclaw-gateway reload` serves the files"
        )
    else:
        click.echo("the files are what is served")
    sys.exit(PROBLEM_FOUND if changes else 0)
