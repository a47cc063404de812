"""The commands `keys` and `token`: credentials for operators, each shown once; imports lightly."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from openclaw_gateway.cli.context import WRONG_USE, config_option, json_option, opened, print_json, seconds, table

if TYPE_CHECKING:
    from openclaw_gateway.contracts.api_keys import By, IssuedKey, KeyRecord

T = TypeVar("T")

_NOT_DONE = 1


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command()
@click.option("--org", required=True, help="Organisation (tenant) that the key speaks for.")
@click.option("--user", required=True, help="User that the key speaks for.")
@click.option("--tier", required=True, help="Tier, by the name of its file.")
@click.option("--scope", "scopes", multiple=True, help="Scope to grant; may be given several times.")
@click.option(
    "--expires", callback=seconds, metavar="D", help='How long the key is good, "90d" say; by default for ever.'
)
@click.option("--name", help="A note by which to know the key again.")
@config_option
@json_option
def create(
    org: str,
    user: str,
    tier: str,
    scopes: tuple[str, ...],
    expires: float | None,
    name: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Make a key and show it, this once."""

    async def run() -> IssuedKey:
        from openclaw_plugins.auth.api_key import ApiKeys

        async with opened(config, ApiKeys) as plugin:
            return await plugin.create(
                organization=org, user=user, tier=tier, scopes=scopes, name=name, expires_in=expires, by=_operator()
            )

    _show_issued(_done(run()), as_json)


@keys.command(name="list")
@click.option("--org", help="Only the keys of this organisation.")
@config_option
@json_option
def list_(org: str | None, config: Path | None, as_json: bool) -> None:
    """Show what is known of the keys, newest first; the keys themselves are not known."""

    async def run() -> list[KeyRecord]:
        from openclaw_plugins.auth.api_key import ApiKeys

        async with opened(config, ApiKeys) as plugin:
            return list(await plugin.list(org))

    rows = [_described(record) for record in _done(run())]
    if as_json:
        print_json(rows)
        return
    columns = (
        "id",
        "org",
        "user",
        "tier",
        "scopes",
        "name",
        "state",
        "createdAt",
        "expiresAt",
        "lastUsedAt",
        "replacedBy",
    )
    table([[_cell(row[column]) for column in columns] for row in rows], columns)


@keys.command()
@click.argument("id")
@click.option(
    "--overlap",
    callback=seconds,
    default="24h",
    show_default=True,
    metavar="D",
    help="How long the old key stays good.",
)
@config_option
@json_option
def rotate(id: str, overlap: float, config: Path | None, as_json: bool) -> None:
    """Make a key that may do what ID may, and let ID end after the overlap."""

    async def run() -> IssuedKey:
        from openclaw_plugins.auth.api_key import ApiKeys

        async with opened(config, ApiKeys) as plugin:
            return await plugin.rotate(id, overlap=overlap, by=_operator())

    _show_issued(_done(run()), as_json)


@keys.command()
@click.argument("id")
@config_option
@json_option
def revoke(id: str, config: Path | None, as_json: bool) -> None:
    """End the key ID; every replica refuses it in less than a second."""

    async def run() -> None:
        from openclaw_plugins.auth.api_key import ApiKeys

        async with opened(config, ApiKeys) as plugin:
            await plugin.revoke(id, by=_operator())

    _done(run())
    if as_json:
        print_json({"id": id, "state": "revoked"})
    else:
        click.echo(f"revoked {id}")


@click.command()
@click.option("--org", required=True, help="Organisation (tenant) that the token speaks for.")
@click.option("--user", required=True, help="User that the token speaks for.")
@click.option("--tier", required=True, help="Tier, by the name of its file.")
@click.option("--scope", "scopes", multiple=True, help="Scope to grant; may be given several times.")
@click.option(
    "--ttl", callback=seconds, default="1h", show_default=True, metavar="D", help="How long the token is good."
)
@config_option
@json_option
def token(
    org: str, user: str, tier: str, scopes: tuple[str, ...], ttl: float, config: Path | None, as_json: bool
) -> None:
    """Sign a JWT for development with the configured secret."""

    async def run() -> str:
        from openclaw_plugins.auth.jwt import JsonWebTokens

        async with opened(config, JsonWebTokens) as plugin:
            return plugin.mint(organization=org, user=user, tier=tier, scopes=scopes, ttl=ttl)

    minted = _done(run())
    if as_json:
        print_json(
            {"token": minted, "org": org, "user": user, "tier": tier, "scopes": list(scopes), "expiresIn": int(ttl)}
        )
    else:
        click.echo(minted)


def _operator() -> By:
    """Say for the audit which user of this machine asks."""
    import getpass
    import os

    from openclaw_gateway.contracts.api_keys import By

    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())  # a container whose user has no name
    return By(f"cli:{user}")


def _done(work: Awaitable[T]) -> T:
    """Run a command's work; what was wrongly asked for ends with status 2, what failed with 1, each in one line."""
    import asyncio

    from openclaw_gateway.contracts.api_keys import NotGrantable, UnknownKey
    from openclaw_gateway.errors import StoreUnavailable
    from openclaw_plugins.auth.jwt import NoSecret

    async def wait() -> T:
        return await work

    try:
        return asyncio.run(wait())
    except (NotGrantable, NoSecret) as error:
        _end(str(error), WRONG_USE)
    except (UnknownKey, StoreUnavailable) as error:
        _end(str(error), _NOT_DONE)


def _end(message: str, status: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(status)


def _show_issued(issued: IssuedKey, as_json: bool) -> None:
    record = issued.record
    if as_json:
        print_json(
            {
                "id": record.key_id,
                "key": issued.key,
                "org": record.organization_id,
                "user": record.user_id,
                "tier": record.tier,
                "scopes": list(record.scopes),
                "name": record.name,
                "expiresAt": _time(record.expires_at),
            }
        )
        return
    click.echo(issued.key)
    click.echo(f"id {record.key_id}; the key is not stored and cannot be shown again", err=True)


def _described(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.key_id,
        "org": record.organization_id,
        "user": record.user_id,
        "tier": record.tier,
        "scopes": list(record.scopes),
        "name": record.name,
        "state": record.state(datetime.now().astimezone()),
        "createdAt": _time(record.created_at),
        "expiresAt": _time(record.expires_at),
        "lastUsedAt": _time(record.last_used_at),
        "revokedAt": _time(record.revoked_at),
        "replacedBy": record.replaced_by,
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="seconds").replace("+00:00", "Z")


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    return " ".join(value) if isinstance(value, list) else str(value)
