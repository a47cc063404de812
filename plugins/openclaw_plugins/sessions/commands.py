"""`sessions`: work on the store of sessions that need not wait for the gateway."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, load, print_json


@click.group()
def sessions() -> None:
    """Look after stored sessions."""


@sessions.command()
@config_option
@json_option
def expire(config: Path | None, as_json: bool) -> None:
    """Mark the sessions whose time has come, now. They are gone for clients either way."""
    from openclaw_gateway.errors import GatewayError
    from openclaw_plugins.sessions.sql import SqlSessions

    gateway = load(config)
    ids = [id for id, plugin in gateway.instances.items() if isinstance(plugin, SqlSessions)]

    async def run() -> int:
        marked = 0
        for id in ids:
            async with gateway.opened(id) as store:
                marked += await store.expire()
        return marked

    try:
        marked = asyncio.run(run())
    except GatewayError as error:
        click.echo(str(error), err=True)
        sys.exit(PROBLEM_FOUND)
    if as_json:
        print_json({"expired": marked})
    else:
        click.echo(f"{marked} session{'s' if marked != 1 else ''} marked as expired")
