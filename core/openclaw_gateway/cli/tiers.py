"""`tiers`: the limits of each tier as they are enforced, and what an edit of them would mean."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, fail, json_option, load, print_json, table

if TYPE_CHECKING:
    from openclaw_gateway.cli.plan import Affected, Change
    from openclaw_gateway.contracts.accounting import Standing
    from openclaw_gateway.gateway import Gateway
    from openclaw_gateway.tiers import Tier


@click.group()
def tiers() -> None:
    """Show the limits of each tier."""


@tiers.command()
@config_option
@json_option
@click.argument("tier", required=False)
def show(config: Path | None, as_json: bool, tier: str | None) -> None:
    """Print every limit of TIER, or of all tiers."""
    from openclaw_gateway.structs import nearest

    gateway = load(config)
    if tier is not None and tier not in gateway.tiers:
        meant = nearest(tier, gateway.tiers)
        click.echo(f"no tier {tier!r}{f'; did you mean {meant!r}?' if meant else ''}", err=True)
        sys.exit(2)
    shown: dict[str, list[dict[str, Any]]] = {}
    for name, plan in gateway.admission.whole.items():
        if tier in (None, name):
            shown[name] = [
                {
                    "name": limit.name,
                    "kind": limit.kind,
                    "limit": limit.limit,
                    "per": f"{limit.window:g}s"
                    if limit.kind == "rate"
                    else limit.period
                    if limit.kind == "quota"
                    else None,
                    "scope": limit.scope,
                    "mode": limit.mode,
                    "bound": limit.bound(),
                }
                for limit in plan.limits
            ]
    if as_json:
        print_json(shown)
        return
    for name, limits in shown.items():
        click.echo(f"{name} ({gateway.tiers[name].title})")
        table(
            [[x["name"], x["kind"], f"{x['limit']:,}", x["per"] or "at a time", x["scope"], x["mode"]] for x in limits],
            ["  limit", "kind", "limit", "per", "scope", "mode"],
        )


@tiers.command()
@config_option
@json_option
@click.option("--offline", is_flag=True, help="Compare the files alone; do not open the account.")
@click.argument("old", metavar="OLD_DIR", type=click.Path(path_type=Path))
@click.argument("new", metavar="NEW_DIR", type=click.Path(path_type=Path))
def plan(config: Path | None, as_json: bool, offline: bool, old: Path, new: Path) -> None:
    """Print who gains and loses what if the tier files of NEW_DIR took the place of those of OLD_DIR.

    With an account, also which organizations the new limits refuse, or admit again, at what they have used by now.
    """
    from openclaw_gateway.cli import plan as planning

    gateway = load(config)
    before, after = _read(gateway, old), _read(gateway, new)
    changes = planning.changes(before, after)
    standings = None if offline else asyncio.run(_standings(gateway))
    affected = planning.affected(standings, before, after) if standings is not None else None
    if as_json:
        print_json({"changes": changes, "organizations": affected})
        return
    _print_changes(changes)
    if affected is not None:
        _print_affected(affected)


def _read(gateway: Gateway, folder: Path) -> dict[str, Tier]:
    from openclaw_gateway.tiers import TierFiles

    owners = {d.id: d.cls.Limits for d in gateway.definitions if hasattr(d.cls, "Limits")}
    read, problems = TierFiles(folder, str(folder)).build(owners)
    if problems:
        fail(problems)
    return read


async def _standings(gateway: Gateway) -> Sequence[Standing] | None:
    """Ask the account; None where the configuration has none that can tell."""
    from openclaw_gateway.contracts.accounting import Standings
    from openclaw_gateway.errors import StartFailed, StoreUnavailable

    id = next((id for id, plugin in gateway.instances.items() if isinstance(plugin, Standings)), None)
    if id is None:
        return None
    try:
        async with gateway.opened(id) as accounts:
            found: Sequence[Standing] = await accounts.standings()
            return found
    except (StartFailed, StoreUnavailable) as error:
        click.echo(f"{error}; --offline compares the files alone", err=True)
        sys.exit(PROBLEM_FOUND)


def _print_changes(changes: Sequence[Change]) -> None:
    if not changes:
        click.echo("no tier changes")
        return
    rows = []
    for change in changes:
        what = f"{change.limit}.{change.field}" if change.field else change.limit or "(the tier)"
        rows.append([change.tier, what, _shown(change.old), _shown(change.new), change.verdict])
    table(rows, ["tier", "what", "old", "new", "its organizations"])


def _print_affected(affected: Sequence[Affected]) -> None:
    click.echo()
    if not affected:
        click.echo("no organization is refused or admitted again by it at what is used now")
        return
    rows = [
        [a.organization, a.subject, a.tier, a.limit, _shown(a.used), _shown(a.old), _shown(a.new), a.effect]
        for a in affected
    ]
    table(rows, ["organization", "subject", "tier", "limit", "used", "old", "new", "effect"])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
