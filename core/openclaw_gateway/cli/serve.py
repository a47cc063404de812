"""`serve`: open everything, listen, say what a newcomer needs to know, drain on a stop signal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, fail, located


@click.command()
@config_option
@click.option("--host", help="Address to listen on; overrides gateway.host.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; overrides gateway.port.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that serve; overrides gateway.workers.")
def serve(config: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve until a stop signal: the first drains, the second ends at once."""
    import os

    from openclaw_gateway.config.layers import Layers, TomlFile
    from openclaw_gateway.errors import ConfigError, StartFailed
    from openclaw_gateway.gateway import Gateway
    from openclaw_gateway.serving.server import run

    path, assumed = located(config)
    given = {"HOST": host, "PORT": port, "WORKERS": workers}
    options = {f"OPENCLAW_GATEWAY__{name}": str(value) for name, value in given.items() if value is not None}
    environ = {**os.environ, **options}
    layers = Layers(TomlFile(path, str(path)), environ)
    for warning in layers.warnings:
        click.echo(f"warning: {warning}", err=True)
    try:
        gateway = Gateway(layers)
    except ConfigError as error:
        fail(error.problems)

    what = "the embedded defaults (no openclaw.toml here)" if assumed else str(path)

    def ready(url: str, operations: str | None, notices: Sequence[str]) -> None:
        by = f" with {settings.workers} workers" if settings.workers > 1 else ""
        click.echo(f"openclaw-gateway {gateway.version} serves {what}{by}")
        click.echo(f"  {url}  (API reference: {url}/api/docs)")
        if operations is not None:
            click.echo(f"  {operations}  (health and metrics)")
        for line in notices:
            click.echo(line)
        sys.stdout.flush()

    settings = gateway.document.gateway
    try:
        if settings.workers > 1:
            from openclaw_gateway.serving import supervisor

            supervised = supervisor.Supervisor(path, str(path), settings, environ=environ, ready=ready)
            sys.exit(supervisor.run(supervised))
        sys.exit(run(gateway, ready=lambda: ready(gateway.url, gateway.operations_url, gateway.notices())))
    except StartFailed as error:
        click.echo(f"not started: {error}", err=True)
        sys.exit(PROBLEM_FOUND)
