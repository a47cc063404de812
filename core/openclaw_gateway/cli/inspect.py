"""`pipeline`, `routes`, `info`: what is configured, and what boot has proved of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from openclaw_gateway.cli.context import config_option, json_option, load, print_json, table


@click.command()
@config_option
@json_option
@click.option("--explain", nargs=2, metavar="METHOD PATH", help="The pipeline of the route that answers this request.")
@click.option("--tier", help="With --explain: also the limits that apply to this tier.")
def pipeline(config: Path | None, as_json: bool, explain: tuple[str, str] | None, tier: str | None) -> None:
    """Print the effective order of steps with their parameters."""
    gateway = load(config)
    if explain is not None:
        _explain(gateway, explain[0].upper(), explain[1], tier, as_json)
        return
    steps = [_step(step) for step in gateway.steps]
    if as_json:
        print_json({"pipeline": steps})
        return
    rows = [
        [str(i + 1), s["id"], s["use"], ", ".join(s["hooks"]), s["on_error"], "yes" if s["enforce"] else "shadow"]
        for i, s in enumerate(steps)
    ]
    table(rows, ["", "step", "plugin", "hooks", "on error", "enforced"])
    for s in steps:
        for key, value in s["parameters"].items():
            click.echo(f"  {s['id']}.{key} = {value}")


@click.command()
@config_option
@json_option
@click.option("--proof", is_flag=True, help="What each route needs, and which step meets it.")
def routes(config: Path | None, as_json: bool, proof: bool) -> None:
    """List the routes, or prove that every route's needs are met."""
    gateway = load(config)
    proofs = [_proof(p) for p in gateway.proofs]
    if as_json:
        print_json({"routes": proofs})
        return
    if not proof:
        shown = [[",".join(p["methods"]), p["path"], p["access"], p["listener"], p["summary"]] for p in proofs]
        table(shown, ["", "", "access", "listener", ""])
        return
    rows = []
    for p in proofs:
        metered = "; ".join(f"{meter}: {', '.join(names) or '(unmetered)'}" for meter, names in p["metered_by"].items())
        scopes = ",".join(p["scopes"]) or "-"
        rows.append(
            [
                ",".join(p["methods"]),
                p["path"],
                p["listener"],
                p["access"],
                p["authenticated_by"] or "-",
                scopes,
                metered or "-",
            ]
        )
    table(
        rows, ["method", "route", "listener", "access", "proved by", "scopes", "meters and the limits that count them"]
    )
    click.echo(f"{len(rows)} routes, every need met")


@click.command()
@config_option
@json_option
def info(config: Path | None, as_json: bool) -> None:
    """Say what this gateway is: versions, files, sizes."""
    import platform

    gateway = load(config)
    settings = gateway.document.gateway
    facts = {
        "version": gateway.version,
        "python": platform.python_version(),
        "config": str(gateway.layers.file.path),
        "tiers": sorted(gateway.tiers),
        "models": sorted(gateway.document.models),
        "plugins": len(gateway.instances),
        "routes": len(gateway.routes),
        "workers": settings.workers,
        "listeners": [f"{at.host}:{at.port}" for at in (settings, settings.operations) if at is not None],
    }
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        click.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _step(step: Any) -> dict[str, Any]:
    from openclaw_gateway.config.units import Duration, Secret, Size

    gateway_config = getattr(step.plugin, "config", None)
    hooks = [n for n in step.implementations if n.startswith("on_") or n == "charges"]
    parameters: dict[str, Any] = {}
    definition = step.plugin
    for name in getattr(gateway_config, "__struct_fields__", ()):
        value = getattr(gateway_config, name)
        parameters[name] = str(value) if isinstance(value, (Secret, Duration, Size)) else value
    return {
        "id": step.id,
        "use": type(definition).__name__,
        "hooks": hooks,
        "on_error": step.settings.on_error,
        "timeout": float(step.settings.timeout),
        "enforce": step.settings.enforce,
        "parameters": parameters,
    }


def _proof(proof: Any) -> dict[str, Any]:
    route = proof.route
    return {
        "methods": list(route.methods),
        "path": route.path,
        "summary": route.summary,
        "access": route.access,
        "listener": route.listener,
        "scopes": list(route.scopes),
        "authenticated_by": proof.authenticated_by,
        "metered_by": {k: list(v) for k, v in proof.metered_by.items()},
        "steps": list(proof.steps),
    }


def _explain(gateway: Any, method: str, path: str, tier: str | None, as_json: bool) -> None:
    import sys

    from openclaw_gateway.structs import nearest

    if tier is not None and tier not in gateway.tiers:
        meant = nearest(tier, gateway.tiers)
        click.echo(f"no tier {tier!r}{f'; did you mean {meant!r}?' if meant else ''}", err=True)
        sys.exit(2)
    compiled, refusal = gateway.runner.match(path, method)
    if refusal is not None and gateway.operations is not gateway.runner:
        apart, refused = gateway.operations.match(path, method)
        compiled, refusal = (compiled, refusal) if refused is not None else (apart, None)
    plans = [compiled.plans[tier]] if tier in compiled.plans else []
    limits = [limit for plan in plans for limit in plan.limits]
    answer = {
        "route": compiled.route.path,
        "refusal": refusal.status if refusal is not None else None,
        "steps": [_step(step) for step in compiled.steps],
        "limits": [
            {"name": x.name, "kind": x.kind, "limit": x.limit, "scope": x.scope, "bound": x.bound()} for x in limits
        ],
    }
    if as_json:
        print_json(answer)
        return
    click.echo(f"{method} {path} -> {compiled.route.path}" + (f" ({refusal.status})" if refusal is not None else ""))
    for i, step in enumerate(compiled.steps):
        click.echo(f"  {i + 1}. {step.id}: {', '.join(n for n in step.implementations if n.startswith('on_')) or '-'}")
    if limits:
        click.echo(f"  admission for {tier}: " + ", ".join(f"{x.name} {x.limit}" for x in limits))
