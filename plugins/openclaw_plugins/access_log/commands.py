"""The command `log`: what is written for whom, changed while the gateway serves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from openclaw_gateway.cli.context import (
    PROBLEM_FOUND,
    WRONG_USE,
    config_option,
    json_option,
    load,
    print_json,
    seconds,
    table,
)


@click.group()
def log() -> None:
    """See and change what is logged while the gateway serves."""


@log.command()
@config_option
@json_option
@click.argument("level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--route", metavar="TEMPLATE", help="Only for this route, /api/v1/sessions/{id} say.")
@click.option("--org", metavar="ID", help="Only for this organisation.")
@click.option(
    "--for", "lasts", default="10m", show_default=True, metavar="D", callback=seconds, help="How long; at most 24h."
)
def level(config: Path | None, as_json: bool, level: str, route: str | None, org: str | None, lasts: float) -> None:
    """Write from LEVEL on, for a while; every process of this gateway on this machine follows within a second."""
    from openclaw_plugins.access_log.levels import LONGEST, MOST, Override

    if lasts > LONGEST:
        click.echo("--for: at most 24h; for longer set plugins.access_log.level and reload", err=True)
        sys.exit(WRONG_USE)
    gateway, file, overrides = _standing(config)
    known = {proof.route.path for proof in gateway.proofs}
    if route is not None and route not in known:
        from openclaw_gateway.structs import nearest

        meant = nearest(route, known)
        click.echo(f"no route {route}{f'; did you mean {meant}?' if meant else ''}", err=True)
        sys.exit(WRONG_USE)
    others = [one for one in overrides if (one.route, one.organization_id) != (route, org)]
    if len(others) >= MOST:
        click.echo(f"{MOST} overrides are in force already; `log reset` ends them", err=True)
        sys.exit(PROBLEM_FOUND)
    mine = Override(level=level, until=time.time() + lasts, route=route, organization_id=org)
    _put(file, [*others, mine])
    if as_json:
        print_json(mine)
    else:
        click.echo(f"from {level} on, for {_whom(mine)}, until {_when(mine.until)}")


@log.command()
@config_option
@json_option
def show(config: Path | None, as_json: bool) -> None:
    """Print the overrides that are in force."""
    _, _, overrides = _standing(config)
    if as_json:
        print_json({"overrides": overrides})
    elif overrides:
        table([[one.level, _whom(one), _when(one.until)] for one in overrides], ["level", "for", "until"])
    else:
        click.echo("none: the configured level holds for all")


@log.command()
@config_option
def reset(config: Path | None) -> None:
    """End all overrides now."""
    _, file, overrides = _standing(config)
    _put(file, [])
    click.echo(f"ended {len(overrides)}")


def _standing(config: Path | None) -> tuple[Any, Path, list[Any]]:
    import msgspec

    from openclaw_plugins.access_log.levels import FILE, read

    gateway = load(config)
    file = gateway.config_dir / gateway.document.gateway.data_dir / FILE
    try:
        return gateway, file, read(file, time.time())
    except (OSError, msgspec.DecodeError) as error:
        click.echo(f"{file} cannot be read: {error}", err=True)
        sys.exit(PROBLEM_FOUND)


def _put(file: Path, overrides: list[Any]) -> None:
    from openclaw_plugins.access_log.levels import write

    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(file, overrides)
    except OSError as error:
        click.echo(f"{file} cannot be written: {error.strerror}", err=True)
        sys.exit(PROBLEM_FOUND)


def _whom(one: Any) -> str:
    route = f"route {one.route}" if one.route else ""
    organization = f"organisation {one.organization_id}" if one.organization_id else ""
    return ", ".join(filter(None, (route, organization))) or "everything"


def _when(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
