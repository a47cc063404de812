"""`check`: everything that a start would refuse, without starting."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, located, print_json


@click.command()
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Check the configuration, tier files and every route's needs; every problem at once."""
    from openclaw_gateway.config.layers import Layers, TomlFile
    from openclaw_gateway.errors import ConfigError
    from openclaw_gateway.gateway import Gateway

    path, _ = located(config)
    layers = Layers(TomlFile(path, str(path)))
    problems = []
    gateway = None
    try:
        gateway = Gateway(layers)
    except ConfigError as error:
        problems = list(error.problems)
    if as_json:
        print_json(
            {
                "ok": not problems,
                "file": str(path),
                "problems": [p.as_dict() for p in problems],
                "warnings": layers.warnings,
            }
        )
    else:
        for warning in layers.warnings:
            click.echo(f"warning: {warning}", err=True)
        for problem in problems:
            click.echo(str(problem))
        if gateway is not None:
            routes, plugins, tiers = len(gateway.routes), len(gateway.instances), len(gateway.tiers)
            click.echo(f"{path}: good; {plugins} plugins, {tiers} tiers, {routes} routes proved")
            for tier, plan in gateway.admission.whole.items():
                for limit in plan.limits:
                    if limit.bound() != limit.limit:
                        click.echo(
                            f"note: {tier}: {limit.name} ({limit.algorithm}) admits at most {limit.bound()} "
                            f"in any {limit.window:g}s"
                        )
        else:
            click.echo(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}")
    sys.exit(PROBLEM_FOUND if problems else 0)
