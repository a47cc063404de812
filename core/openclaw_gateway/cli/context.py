"""What the commands share: which configuration is meant, how problems are printed, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from openclaw_gateway.config.problems import Problem
    from openclaw_gateway.gateway import Gateway

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT = "openclaw.toml"
PROBLEM_FOUND = 1
WRONG_USE = 2


def config_option(function: F) -> F:
    """Add `--config FILE`."""
    option = click.option(
        "--config",
        "config",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=f"Configuration file; by default ./{DEFAULT}, else the embedded defaults.",
    )
    return option(function)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read an option that is a length of time, "10m" say; for `callback`."""
    from openclaw_gateway.config.units import Duration

    if value is None:
        return None
    try:
        found = float(Duration.parse(value))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if not found:
        raise click.BadParameter("expected more than no time at all", ctx, param)
    return found


def located(config: Path | None) -> tuple[Path, bool]:
    """Return the configuration file, and whether it is the embedded default for want of one."""
    if config is not None:
        return config, False
    here = Path(DEFAULT)
    if os.path.lexists(here):  # a link that leads nowhere is told by who reads it, not taken for no file at all
        return here, False
    try:
        return embedded(), True
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        click.echo(f"no {DEFAULT} here, and the embedded defaults cannot be written to .openclaw: {reason}", err=True)
        sys.exit(WRONG_USE)


def embedded() -> Path:
    """Write the embedded defaults beside their state, in ./.openclaw, and return the file."""
    import shutil

    from openclaw_gateway.assets import asset

    folder = Path(".openclaw")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / DEFAULT
    # Always the shipped text: an operator who edits starts from `init`, which writes to another place.
    text = asset(DEFAULT).read_text().replace('data_dir = ".openclaw"', 'data_dir = "."', 1)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    tiers = folder / "tiers"
    shutil.copytree(asset("tiers"), tiers, dirs_exist_ok=True)
    return path


def load(config: Path | None) -> Gateway:
    """Build the gateway, or print every problem and exit."""
    from openclaw_gateway.errors import ConfigError
    from openclaw_gateway.gateway import Gateway

    path, _ = located(config)
    try:
        return Gateway.from_file(path)
    except ConfigError as error:
        fail(error.problems)


def fail(problems: Sequence[Problem], code: int = WRONG_USE) -> NoReturn:
    """Print problems, one a line, and exit."""
    for problem in problems:
        click.echo(str(problem), err=True)
    count = len(problems)
    click.echo(f"{count} problem{'s' if count != 1 else ''}; nothing was started", err=True)
    sys.exit(code)


@asynccontextmanager
async def opened(config: Path | None, kind: type[T]) -> AsyncIterator[T]:
    """Open the one plugin that is of `kind` (a class or a Protocol), with what it needs, without serving.

    Exits with the problems of the configuration, or with a sentence where no such plugin is configured.
    """
    from openclaw_gateway.errors import StartFailed

    gateway = load(config)
    found = [id for id, plugin in gateway.instances.items() if isinstance(plugin, kind)]
    if not found:
        click.echo(f"the configuration has no plugin that is a {kind.__name__}", err=True)
        sys.exit(WRONG_USE)
    try:
        async with gateway.opened(found[0]) as instance:
            yield instance
    except StartFailed as error:
        click.echo(str(error), err=True)
        sys.exit(PROBLEM_FOUND)


def print_json(value: Any) -> None:
    """Print any plain value or Struct as indented JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print columns, wide enough for their longest entry."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        click.echo("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
