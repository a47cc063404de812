"""`init`: a commented configuration and the tier files, to be edited."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from openclaw_gateway.cli.context import PROBLEM_FOUND


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def init(directory: Path, force: bool) -> None:
    """Write openclaw.toml, its schema and the tier files into DIRECTORY."""
    from openclaw_gateway.assets import asset
    from openclaw_gateway.cli.schema import document_schema, tier_schema, written

    target = directory / "openclaw.toml"
    folder = directory / "tiers"
    taken = [str(p) for p in (target, folder) if p.exists()]
    if taken and not force:
        click.echo(f"{' and '.join(taken)} exist already; nothing was written (--force overwrites)", err=True)
        sys.exit(PROBLEM_FOUND)
    folder.mkdir(parents=True, exist_ok=True)
    # Editors complete and check by the schema that the first line names; Tombi would otherwise warn of every key that
    # a plugin's branch of the schema allows.
    directives = "#:schema ./openclaw.schema.json\n#:tombi schema.strict = false\n"
    target.write_text(directives + asset("openclaw.toml").read_text())
    (directory / "openclaw.schema.json").write_text(written(document_schema()))
    (folder / "tier.schema.json").write_text(written(tier_schema()))
    for source in sorted(asset("tiers").glob("*.toml")):
        shutil.copyfile(source, folder / source.name)
        text = (folder / source.name).read_text()
        (folder / source.name).write_text("#:schema ./tier.schema.json\n" + text)
    click.echo(
        f"wrote {target}, its schema and {folder}/*.toml; next: openclaw-gateway check && openclaw-gateway serve"
    )
