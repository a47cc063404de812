"""The command `openclaw-gateway`: one lazy module a subcommand, so that `--help` imports next to nothing."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

import click

GROUP = "openclaw.commands"

#: our own subcommands; a plugin's come by the entry-point group `openclaw.commands`
_OWN = {
    "check": "openclaw_gateway.cli.check:check",
    "completion": "openclaw_gateway.cli.completion:completion",
    "config": "openclaw_gateway.cli.config:config",
    "doctor": "openclaw_gateway.cli.doctor:doctor",
    "info": "openclaw_gateway.cli.inspect:info",
    "init": "openclaw_gateway.cli.init:init",
    "man": "openclaw_gateway.cli.manual:manual",
    "pipeline": "openclaw_gateway.cli.inspect:pipeline",
    "plugin": "openclaw_gateway.cli.plugin:plugin",
    "plugins": "openclaw_gateway.cli.plugin:plugins",
    "reload": "openclaw_gateway.cli.reload:reload",
    "routes": "openclaw_gateway.cli.inspect:routes",
    "schema": "openclaw_gateway.cli.schema:schema",
    "serve": "openclaw_gateway.cli.serve:serve",
    "tiers": "openclaw_gateway.cli.tiers:tiers",
}


class LazyGroup(click.Group):
    """Finds subcommands by name and imports one only when it is used or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _OWN:
            module, name = _OWN[cmd_name].split(":")
            command: click.Command = getattr(import_module(module), name)
            return command
        for point in entry_points(group=GROUP, name=cmd_name):
            loaded: click.Command = point.load()
            return loaded
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from openclaw_gateway.structs import nearest

            meant = nearest(args[0], self.list_commands(ctx))
            if meant:
                raise click.UsageError(f'{error.message} Did you mean "{meant}"?', ctx) from None
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openclaw-gateway", prog_name="openclaw-gateway")
def main() -> None:
    """A declarative gateway in front of AI agents and models.

    \b
    openclaw-gateway serve                       serve on ./openclaw.toml, or on the embedded defaults
    openclaw-gateway check                       every problem of the configuration at once
    openclaw-gateway routes --proof              what each route needs, and which step meets it
    openclaw-gateway keys create --org acme --user ada --tier teams
    """
