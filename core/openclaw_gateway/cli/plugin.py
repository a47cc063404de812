"""`plugins` and `plugin new`: what is installed and why one is not to be had, and a package to begin another with."""

from __future__ import annotations

import sys
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, located, print_json, table

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: template → the file that it becomes
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "plugin.py.txt": "$module.py",
    "test_plugin.py.txt": "tests/test_$name.py",
}


@click.command()
@config_option
@json_option
def plugins(config: Path | None, as_json: bool) -> None:
    """List the installed plugins, where each comes from, and why one cannot be used."""
    from openclaw_gateway.loader import installed

    ids = _configured(config)
    rows = [
        {"name": name, "ids": ids.get(name, []), **_described(point), "conflict": len(points) > 1}
        for name, points in sorted(installed().items())
        for point in points
    ]
    if as_json:
        print_json({"plugins": rows})
        return
    columns = ("name", "ids", "version", "origin", "stability", "hooks")
    shown = [[", ".join(v) if isinstance(v := r[c], list) else str(v) for c in columns] for r in rows]
    table([[cell or "-" for cell in row] for row in shown], ("plugin", "configured as", *columns[2:]))
    for row in rows:
        if row["problem"]:
            click.echo(f"{row['name']} cannot be used: {row['problem']}")
        if row["conflict"]:
            click.echo(f"{row['name']} is offered by more than one distribution: {row['origin']} is one of them")


def _configured(config: Path | None) -> dict[str, list[str]]:
    """Return plugin name → ids, as written: a configuration with mistakes has plugins to list too."""
    from openclaw_gateway.config.layers import Layers, TomlFile

    path, _ = located(config)
    tree = Layers(TomlFile(path, str(path))).tree
    ids: dict[str, list[str]] = {}
    tables = tree.get("plugins")
    gateway = tree.get("gateway")
    tables = dict(tables) if isinstance(tables, dict) else {}
    for step in gateway.get("pipeline", []) if isinstance(gateway, dict) else []:
        tables.setdefault(step, {})
    for id, settings in tables.items():
        use = settings.get("use", id) if isinstance(settings, dict) else id
        ids.setdefault(str(use), []).append(id)
    return ids


def _described(point: EntryPoint) -> dict[str, Any]:
    origin, version = (point.dist.name, point.dist.version) if point.dist is not None else ("", "")
    told: dict[str, Any] = {"version": version, "origin": origin, "class": point.value}
    told.update(stability="", hooks=[], problem=None)
    try:
        cls = point.load()
    except Exception as error:  # noqa: BLE001 - whatever a foreign module raises is the operator's to see
        told["problem"] = f"{type(error).__name__}: {error}"
        return told
    told["stability"] = getattr(cls, "stability", "stable")
    told["hooks"] = [name for name in dir(cls) if hasattr(getattr(cls, name), "openclaw_impl")]
    return told


@click.group()
def plugin() -> None:
    """Help to write a plugin."""


@plugin.command()
@click.argument("name")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), required=False)
def new(name: str, directory: Path | None) -> None:
    """Write a package with a plugin NAME that works, and tests that pass, into DIRECTORY.

    NAME is what operators will write after `use =`: lower case words, joined by an underscore. DIRECTORY is by default
    ./openclaw-NAME.
    """
    import re

    from openclaw_gateway import __version__
    from openclaw_gateway.loader import installed

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise click.BadParameter("lower case words joined by an underscore, my_limits say", param_hint="NAME")
    if name in installed():
        taken = installed()[name][0].value
        raise click.BadParameter(f"an installed plugin has this name already ({taken})", param_hint="NAME")
    package = "openclaw-" + name.replace("_", "-")
    target = directory if directory is not None else Path(package)
    words = {
        "name": name,
        "package": package,
        "module": f"openclaw_{name}",
        "class_name": "".join(word.capitalize() for word in name.split("_")),
        "metric": name,
        "version": __version__,
    }
    made = {target / Template(path).substitute(words): _text(source, words) for source, path in _FILES.items()}
    there = [str(path) for path in made if path.exists()]
    if there:
        click.echo(f"{', '.join(there)} exist already; nothing was written", err=True)
        sys.exit(PROBLEM_FOUND)
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    click.echo(f"wrote {target}; next: cd {target} && pip install --editable . --group test && pytest")


def _text(source: str, words: dict[str, str]) -> str:
    return Template((Path(__file__).parent / "scaffold" / source).read_text()).substitute(words)
