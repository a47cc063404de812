"""`doctor`: what is wrong or risky with this installation, each with evidence and a fix; changes nothing unasked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, located, print_json
from openclaw_gateway.cli.diagnoses import Diagnosis, Severity, diagnose, secret_files

if TYPE_CHECKING:
    from openclaw_gateway.gateway import Gateway


@click.command()
@config_option
@json_option
@click.option("--fix", is_flag=True, help="Mend what can be mended without a choice of yours.")
@click.option("--deep", is_flag=True, help="Also open every plugin and ask its health checks.")
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a zip file for a report of a problem, without any secret.",
)
def doctor(config: Path | None, as_json: bool, fix: bool, deep: bool, bundle: Path | None) -> None:
    """Look for what is wrong or risky; exit 1 where an error is found."""
    from openclaw_gateway.config.layers import Layers, TomlFile
    from openclaw_gateway.errors import ConfigError
    from openclaw_gateway.gateway import Gateway

    path, _ = located(config)
    gateway = None
    try:
        gateway = Gateway(Layers(TomlFile(path, str(path))))
    except ConfigError as error:
        found = [
            Diagnosis(id="O001", group="operation", severity="error", evidence=str(p), fix="mend the file; see check")
            for p in error.problems
        ]
    else:
        found = list(diagnose(gateway))
        if deep:
            found += _deep(gateway)
        if fix:
            found = [d for d in found if not (d.fixable and _mend(gateway, d))]
    if bundle is not None:
        _bundle(bundle, gateway, found)
    if as_json:
        print_json({"findings": found})
    else:
        for d in found:
            click.echo(f"{d.id} {d.severity}: {d.evidence}\n     fix: {d.fix}{' (--fix does it)' if d.fixable else ''}")
        click.echo(f"{len(found)} finding{'s' if len(found) != 1 else ''}")
    sys.exit(PROBLEM_FOUND if any(d.severity == "error" for d in found) else 0)


def _bundle(file: Path, gateway: Gateway | None, found: list[Diagnosis]) -> None:
    from openclaw_gateway.cli.bundle import write_bundle

    try:
        write_bundle(file, gateway, found)
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--bundle") from None


def _deep(gateway: Gateway) -> list[Diagnosis]:
    import asyncio

    from openclaw_gateway.errors import StartFailed

    async def ask() -> list[Diagnosis]:
        found = []
        async with gateway.running():
            for check in gateway.health_checks:
                try:
                    async with asyncio.timeout(5):
                        await check.probe()
                except Exception as error:  # noqa: BLE001 - whatever a probe raises is the finding
                    severity: Severity = "error" if check.gate == "ready" else "warning"
                    evidence = f"{check.name}: {type(error).__name__}: {error}"
                    found.append(
                        Diagnosis(
                            id="O006", group="operation", severity=severity, evidence=evidence, fix="see the part named"
                        )
                    )
        return found

    try:
        return asyncio.run(ask())
    except StartFailed as error:
        fix = "do what the message names, then run doctor again"
        return [Diagnosis(id="O007", group="operation", severity="error", evidence=str(error), fix=fix)]


def _mend(gateway: Gateway, diagnosis: Diagnosis) -> bool:
    if diagnosis.id == "S003":
        for path in secret_files(gateway):
            path.chmod(0o600)
        return True
    if diagnosis.id == "S006":
        for path in (gateway.layers.file.path, gateway.tier_files.folder):
            path.chmod(path.stat().st_mode & ~0o002)
        return True
    return False
