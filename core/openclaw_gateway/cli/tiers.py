"""`tiers`: the limits of each tier as they are enforced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from openclaw_gateway.cli.context import config_option, json_option, load, print_json, table


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
