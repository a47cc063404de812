"""`db`: the schema of the database; the only door to a change of it outside the embedded default."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, load, print_json

if TYPE_CHECKING:
    from openclaw_plugins.database.pool import SqlDatabase
    from openclaw_plugins.database.schema import SchemaState


@click.group()
def db() -> None:
    """Look at the schema of the database, and upgrade it."""


@db.command()
@config_option
@json_option
def upgrade(config: Path | None, as_json: bool) -> None:
    """Bring the schema to the revision that this gateway needs: all of it or nothing."""

    async def run(database: SqlDatabase) -> SchemaState:
        await database.upgrade()
        return await database.schema_state()

    state = _run(config, run)
    _say(state, as_json, f"the schema is at {_listed(state.current)}")


@db.command()
@config_option
@json_option
def current(config: Path | None, as_json: bool) -> None:
    """Print the revision that the schema has."""
    state = _run(config, lambda database: database.schema_state())
    _say(state, as_json, _listed(state.current))


@db.command()
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Compare the schema with what this gateway needs; exit 1 where they differ."""
    state = _run(config, lambda database: database.schema_state())
    if state.matches:
        _say(state, as_json, f"good: the schema is at {_listed(state.current)}")
        return
    _say(state, as_json, state.complaint())
    sys.exit(PROBLEM_FOUND)


@db.command()
@config_option
@json_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("revision")
def downgrade(config: Path | None, as_json: bool, yes: bool, revision: str) -> None:
    """Undo what came after REVISION, for the older gateway that needs it: all of it or nothing.

    What only the later revisions keep is lost. Stop every gateway of the database first, and back it up.
    """

    async def run(database: SqlDatabase) -> SchemaState:
        from openclaw_plugins.database import schema

        before = await database.schema_state()
        if not before.behind:
            click.echo(before.complaint(), err=True)
            sys.exit(PROBLEM_FOUND)
        for name, does in schema.undone(database.migration_folders(), before.current, revision):
            click.echo(f"undoes {name}: {does}", err=True)
        if not yes:
            click.confirm("What only these keep is lost. Go on?", abort=True, err=True)
        await database.downgrade(revision)
        return await database.schema_state()

    state = _run(config, run)
    _say(state, as_json, f"the schema is at {_listed(state.current)}")


def _run(config: Path | None, work: Callable[[SqlDatabase], Awaitable[SchemaState]]) -> SchemaState:
    from openclaw_gateway.errors import GatewayError
    from openclaw_plugins.database.pool import SqlDatabase

    gateway = load(config)
    database = gateway.satisfying(SqlDatabase)
    if database is None:
        click.echo("the configuration has no database plugin of this kind", err=True)
        sys.exit(PROBLEM_FOUND)

    async def run() -> SchemaState:
        return await work(database)

    try:
        return asyncio.run(run())
    except (GatewayError, ValueError) as error:
        click.echo(str(error), err=True)
        sys.exit(PROBLEM_FOUND)


def _say(state: SchemaState, as_json: bool, text: str) -> None:
    if as_json:
        found: dict[str, Any] = {
            "database": state.database,
            "current": sorted(state.current),
            "needed": sorted(state.needed),
            "matches": state.matches,
        }
        print_json(found)
    else:
        click.echo(text)


def _listed(revisions: frozenset[str]) -> str:
    return ", ".join(sorted(revisions)) if revisions else "no revision"
