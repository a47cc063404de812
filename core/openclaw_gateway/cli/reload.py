"""`reload`: tell the gateway that serves this configuration to read it again, and say what became of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, WRONG_USE, config_option, fail, json_option, located, print_json


@click.command()
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Have the gateway say what a reload would change; nothing is swapped.")
@click.option("--wait", "wait", default=30.0, show_default=True, help="Seconds to wait for the outcome.")
def reload(config: Path | None, as_json: bool, dry_run: bool, wait: float) -> None:
    """Reload the configuration of the gateway that serves it; a bad file changes nothing."""
    import json
    import os
    import signal
    import time

    from openclaw_gateway.serving.presence import OUTCOME_FILE, PID_FILE, REHEARSAL_FILE, serving

    folder = _folder(config)
    try:
        pid, alive = int((folder / PID_FILE).read_text()), serving(folder)
        if pid not in alive:  # killed, and its number may be another program's by now
            pid = alive[0]
        outcome = folder / (REHEARSAL_FILE if dry_run else OUTCOME_FILE)
        outcome.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR1 if dry_run else signal.SIGHUP)
    except (OSError, ValueError, IndexError):
        click.echo(f"no gateway serves this configuration (no process by {folder / PID_FILE})", err=True)
        sys.exit(WRONG_USE)
    deadline = time.monotonic() + wait
    while not outcome.exists():
        if time.monotonic() > deadline:
            click.echo("the gateway did not say in time what became of the reload; see its log", err=True)
            sys.exit(PROBLEM_FOUND)
        time.sleep(0.05)
    report = json.loads(outcome.read_text())
    if as_json:
        print_json(report)
    else:
        _tell(report, dry_run=dry_run)
    sys.exit(0 if report["ok"] else PROBLEM_FOUND)


def _folder(config: Path | None) -> Path:
    """Find where the gateway leaves word; whether the rest holds is for the gateway, which has its own environment."""
    from openclaw_gateway.config.document import GatewaySettings
    from openclaw_gateway.config.layers import FromEnvironment, Layers, TomlFile

    path, _ = located(config)
    layers = Layers(TomlFile(path, path.name))
    if layers.problems:
        fail(layers.problems)
    table = layers.tree.get("gateway")
    written = table.get("data_dir") if isinstance(table, dict) else None
    text = written.raw if isinstance(written, FromEnvironment) else written
    return path.parent / (text if isinstance(text, str) else GatewaySettings(pipeline=()).data_dir)


def _tell(report: dict[str, Any], *, dry_run: bool) -> None:
    for problem in report["problems"]:
        click.echo(problem, err=True)
    if not report["ok"]:
        return
    for change in report.get("changes", ()):
        click.echo(f"{change['key']}: {change['served'] or '-'} -> {change['file'] or '-'}")
    if dry_run:
        click.echo("a reload would be accepted; nothing was swapped" if report["changes"] else "nothing would change")
    else:
        click.echo(f"reloaded: generation {report['generation']}")
    for key in report.get("needRestart", ()):
        click.echo(f"note: {key} has changed and takes effect at a restart")
