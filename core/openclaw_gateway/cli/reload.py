"""`reload`: tell the gateway that serves this configuration to read it again, and say what became of it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, WRONG_USE, config_option, json_option, load, print_json


@click.command()
@config_option
@json_option
@click.option("--wait", "wait", default=30.0, show_default=True, help="Seconds to wait for the outcome.")
def reload(config: Path | None, as_json: bool, wait: float) -> None:
    """Reload the configuration of the gateway that serves it; a bad file changes nothing."""
    import json
    import os
    import signal
    import time

    from openclaw_gateway.serving.presence import OUTCOME_FILE, PID_FILE

    gateway = load(config)  # what is wrong is said here, before the running gateway is bothered
    folder = gateway.config_dir / gateway.document.gateway.data_dir
    try:
        pid = int((folder / PID_FILE).read_text())
        outcome = folder / OUTCOME_FILE
        outcome.unlink(missing_ok=True)
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
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
    elif report["ok"]:
        click.echo(f"reloaded: generation {report['generation']}")
        for key in report.get("needRestart", ()):
            click.echo(f"note: {key} has changed and takes effect at a restart")
    for problem in () if as_json else report["problems"]:
        click.echo(problem, err=True)
    sys.exit(0 if report["ok"] else PROBLEM_FOUND)
