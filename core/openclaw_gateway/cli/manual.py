"""`man`: the manual page of this command, the commands of installed plugins included."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.metadata import version

import click

_NAME = "openclaw-gateway"
_ENDS = """\
.SH "EXIT STATUS"
.TP
.B 0
Done.
.TP
.B 1
A problem was found.
.TP
.B 2
Wrong use, or a configuration that cannot be served.
.SH FILES
.TP
.I openclaw.toml
The configuration: by default that of the working directory, without one the embedded defaults.
.TP
.I tiers/*.toml
The limits of each tier.
.TP
.I .openclaw
What the embedded default keeps.
.SH ENVIRONMENT
.TP
.B OPENCLAW_<SECTION>__<KEY>
Stands in the place of one value of the configuration, as OPENCLAW_GATEWAY__PORT.
"""


@click.command("man")
def manual() -> None:
    """Print the manual page.

    \b
    openclaw-gateway man | man -l -
    openclaw-gateway man > ~/.local/share/man/man1/openclaw-gateway.1
    """
    from openclaw_gateway.cli import main

    click.echo(page(main), nl=False)


def page(root: click.Group) -> str:
    """Return the page in the language of man(7)."""
    title, *rest = _blocks(root)
    lines = [
        f'.TH {_NAME.upper()} 1 "" "{_NAME} {version(_NAME)}" "User Commands"',
        ".SH NAME",
        f"{_text(_NAME)} \\- {_text(title[0].removeprefix('A ').rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_text(_NAME)}",
        "COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_paragraphs([title, *rest]),
        ".SH COMMANDS",
        *_commands(root, ()),
    ]
    return "\n".join(lines) + "\n" + _ENDS


def _commands(found: click.Group, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(found, info_name=" ".join((_NAME, *path)))
    for name in found.list_commands(context):
        inner = found.get_command(context, name)
        if isinstance(inner, click.Group):
            yield from _commands(inner, (*path, name))
        elif inner is not None:
            usage = " ".join([*path, name, *inner.collect_usage_pieces(click.Context(inner, info_name=name))])
            yield f'.SS "{_text(usage)}"'
            yield from _paragraphs(_blocks(inner))
            for option in inner.params:
                if isinstance(option, click.Option):
                    yield ".TP"
                    yield f".B {_text(', '.join(spelled(option)))}"
                    yield _text(" ".join((option.help or "").split()))


def spelled(option: click.Option) -> list[str]:
    """Return each way in which an option is written, with what it takes."""
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    return [name + value for name in (*option.opts, *option.secondary_opts)]


def _blocks(command: click.Command) -> list[list[str]]:
    """Return the paragraphs of a help text; click's mark of one whose lines stay as they are comes first in it."""
    return [block.splitlines() for block in inspect.cleandoc(command.help or "").split("\n\n")]


def _paragraphs(blocks: list[list[str]]) -> Iterator[str]:
    for lines in blocks:
        yield ".PP"
        if lines[0] == "\b":
            yield from (".nf", *map(_text, lines[1:]), ".fi")
        else:
            yield from map(_text, lines)


def _text(line: str) -> str:
    """Write a line so that nothing in it is taken for a request or an escape."""
    line = line.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{line}" if line.startswith((".", "'")) else line
