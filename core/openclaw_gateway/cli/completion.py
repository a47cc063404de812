"""`completion`: what makes a shell complete this command; the shell asks it anew at each press of the key."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion of SHELL.

    \b
    bash   eval "$(openclaw-gateway completion bash)"      in ~/.bashrc
    zsh    eval "$(openclaw-gateway completion zsh)"       in ~/.zshrc
    fish   openclaw-gateway completion fish | source       in ~/.config/fish/config.fish
    """
    from openclaw_gateway.cli import main

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "openclaw-gateway", "_OPENCLAW_GATEWAY_COMPLETE").source())
