#!/usr/bin/env python3
"""Writes the reference pages from the code that they describe, so that neither can say what the other does not.

python docs/reference/generate.py           writes hooks, configuration, plugins and cli
python docs/reference/generate.py --check   writes nothing, and fails where a page is out of date
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import msgspec

from openclaw_gateway import api, hooks
from openclaw_gateway.cli import main as command
from openclaw_gateway.cli.manual import spelled
from openclaw_gateway.config import document
from openclaw_gateway.config.units import Duration, Secret, Size
from openclaw_gateway.loader import installed
from openclaw_gateway.structs import describe

FOLDER = Path(__file__).parent
MADE = "<!-- Written by docs/reference/generate.py from the code; edit the text there. -->\n"
DISTRIBUTION = "openclaw-gateway"

HOOKS = f"""# Hooks

{MADE}
(hooks)

A plugin implements a hook as a method of the same name, marked `@hookimpl`. It may leave arguments out:
`def on_response(self, head)` is given the second one alone. A marked method without a hook of its name, or with an
argument that the hook does not have, stops the start.
"""

PLUGINS = f"""# Plugins

{MADE}
The bundled plugins, by the name that `use` takes. They come in by the same door as a third party's: an entry point of
the group `openclaw.plugins`. Their settings are in [configuration](configuration.md).
"""

COMMAND_LINE = f"""# Command line

{MADE}
`openclaw-gateway COMMAND`. Without `--config FILE` a command takes `openclaw.toml` of the working directory, and
without one the embedded defaults, whose state is kept in `.openclaw`.

Exit codes: 0 done, 1 a problem was found, 2 wrong use or a configuration that cannot be served. `--json` prints JSON on
standard output and nothing else there.

A plugin adds a command by an entry point of the group `openclaw.commands` that names a click command.
"""

CONFIGURATION = f"""# Configuration

{MADE}
`openclaw.toml` holds the sections below; tier files hold the limits of each plugin. Unknown keys are refused, and so
is a value of another type: `port = "9090"` is text and no number. Durations and sizes are texts with a unit.
`openclaw-gateway schema` prints the JSON Schema of both kinds of file.

A single value is overridden by an environment variable `OPENCLAW_<SECTION>__<KEY>`, `OPENCLAW_GATEWAY__PORT=9191`
say. The variable is read by the type of the key, so text stays text. Tables and lists cannot be set this way.
`openclaw-gateway config explain KEY` says where a value comes from.

A secret is `"env:NAME"`, `"file:PATH"` (relative to the configuration file) or the text itself, and is never shown.
Text that begins with `@` and a word is refused everywhere: no value is ever evaluated.

## `[gateway]`

(GatewaySettings)

## `[plugins.<id>]`

One table for each plugin. The table's name is the id by which other tables, the pipeline, tier files and metrics know
it. `use` names the plugin, by default the id. The plugin's own keys stand beside it: they are listed
[below](#plugins), and the plugins themselves in [plugins](plugins.md).

## `[steps.<id>]`

What the host does around a step of the pipeline, whichever plugin it is.

(StepSettings)

(sections)

## Tier files

One file a tier in the folder `gateway.tiers`; the file's name without `.toml` is the tier's name. Every plugin of the
configuration that has limits must have its table in every file.

| key | type | default | |
| --- | --- | --- | --- |
| `title` | text | the file's name | The tier's name as people read it. |
| `models` | a list of text | all | Models that the tier opens. |
| `skills` | a list of text | all | Skills that the tier opens. |
| `scopes` | a list of text | all | Scopes that the tier opens. |
| `[<plugin id>.<limit>]` | a table | | One limit; its keys are those of the plugin's limits, below. |

## Plugins
"""


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    made = {
        "hooks.md": hooks_page(),
        "configuration.md": configuration_page(),
        "plugins.md": plugins_page(),
        "cli.md": cli_page(),
    }
    return {FOLDER / name: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for name, text in made.items()}


# --- hooks --------------------------------------------------------------------------------------


def hooks_page() -> str:
    tree = ast.parse(inspect.getsource(hooks))
    users = {name: [] for name in hook_names()}  # type: dict[str, list[str]]
    for point, cls in bundled():
        for name in implemented(cls):
            users[name].append(point.name)
    out = [HOOKS.replace("(hooks)", inspect.getdoc(hooks) or "")]
    for title, wanted in (("Composition", False), ("Exchange", True)):
        out += [f"## {title} hooks", ""]
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name not in users:
                continue
            if node.name.startswith("on_") is not wanted:
                continue
            out += [f"### `{node.name}`", "", "```python", signature(node), "```", ""]
            out += [*paragraphs(inspect.cleandoc(ast.get_docstring(node) or "")), ""]
            out += ["Bundled plugins that use it: " + (code(users[node.name]) or "none yet") + ".", ""]
    out += ["## `HealthCheck`", "", "What `health()` returns, one for each part.", ""]
    out += [*paragraphs(inspect.getdoc(hooks.HealthCheck) or ""), ""]
    out += ["| field | type | default |", "| --- | --- | --- |"]
    annotations = inspect.get_annotations(hooks.HealthCheck)
    for field in msgspec.structs.fields(hooks.HealthCheck):
        default = "required" if field.required else code([str(field.default)])
        out.append(f"| `{field.name}` | {cell(f'`{annotations[field.name]}`')} | {default} |")
    return "\n".join(out)


def signature(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def hook_names() -> list[str]:
    return [name for name, value in vars(hooks).items() if hasattr(value, f"{hooks.PROJECT}_spec")]


def implemented(cls: Any) -> list[str]:
    return [name for name in hook_names() if hasattr(getattr(cls, name, None), f"{hooks.PROJECT}_impl")]


# --- configuration ------------------------------------------------------------------------------


def configuration_page() -> str:
    filled = CONFIGURATION.replace("(sections)", "\n".join(sections()))
    for struct in (document.GatewaySettings, document.StepSettings):
        filled = filled.replace(f"({struct.__name__})", "\n".join(fields(struct)))
    out = [filled]
    for point, cls in bundled():
        config, limits = getattr(cls, "Config", None), getattr(cls, "Limits", None)
        out += [f"### `{point.name}`", "", first_sentence(cls), ""]
        if config is None or not msgspec.structs.fields(config):
            out += ["No settings.", ""]
        else:
            out += [*fields(config), ""]
        if limits is not None:
            out += [f"In tier files, `[{point.name}.<limit>]`:", "", *fields(limits), ""]
    return "\n".join(out)


def sections() -> Iterator[str]:
    """Yield the sections of the document that hold one table for each name, `[models.<alias>]` say."""
    for field in msgspec.structs.fields(document.Document):
        held = bare(field.type)
        if get_origin(held) is dict and field.encode_name not in ("plugins", "steps"):
            struct = get_args(held)[1]
            title, _, text = first_sentence(struct).partition(": ")
            yield from (f"## {title}", "", f"{text[:1].upper()}{text[1:]}", "", *fields(struct), "")


def fields(struct: Any) -> Iterator[str]:
    yield "| key | type | default | |"
    yield "| --- | --- | --- | --- |"
    yield from rows(struct, "")


def rows(struct: Any, prefix: str) -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        inner = nested(field.type)
        if inner is not None:
            named = "<name>." if get_origin(bare(field.type)) is dict else ""
            yield from rows(inner, f"{prefix}{field.encode_name}.{named}")
            continue
        needed = capability(field.type)
        kind = f"id of a `{needed}`" if needed else describe(field.type).split(" (units:")[0]
        if needed and get_origin(bare(field.type)) in (tuple, list):
            kind = f"a list of ids, each of a `{needed}`"
        described = cell(description(field.type))
        yield f"| `{prefix}{field.encode_name}` | {cell(kind)} | {cell(default_of(field))} | {described} |"


def nested(type: Any) -> Any:
    """Return the Struct that a field holds, also where it may be left out."""
    base = bare(type)
    # of a table of tables, what each of them holds
    candidates = [base] if get_origin(base) in (None, list, tuple) else get_args(base)
    return next((one for one in candidates if inspect.isclass(one) and issubclass(one, msgspec.Struct)), None)


def default_of(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return "unset" if value is None else f"`{toml(value)}`"


def toml(value: Any) -> str:
    """Write a default as an operator would."""
    if isinstance(value, (Duration, Size, Secret)):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple, frozenset)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def metas(type: Any) -> Iterator[msgspec.Meta]:
    if get_origin(type) is Annotated:
        yield from (meta for meta in get_args(type)[1:] if isinstance(meta, msgspec.Meta))
    for argument in get_args(type):
        if not isinstance(argument, msgspec.Meta) and argument is not Ellipsis:
            yield from metas(argument)


def bare(type: Any) -> Any:
    return get_args(type)[0] if get_origin(type) is Annotated else type


def description(type: Any) -> str:
    return next((meta.description for meta in metas(type) if meta.description), "")


def capability(type: Any) -> str | None:
    needed = next((meta.extra["needs"] for meta in metas(type) if meta.extra and "needs" in meta.extra), None)
    return None if needed is None else needed.__name__


# --- plugins ------------------------------------------------------------------------------------


def plugins_page() -> str:
    out = [PLUGINS]
    kinds = {n: p for n, p in vars(api).items() if getattr(p, "_is_protocol", False) and n != "Protocol"}
    for point, cls in bundled():
        out += [f"## `{point.name}`", "", *paragraphs(inspect.getdoc(cls) or ""), ""]
        rows = [
            ("class", f"`{point.value}`"),
            ("hooks", code(implemented(cls))),
            ("states", code(fact.name for fact in getattr(cls, "provides", ()))),
            ("requires", code(fact.name for fact in getattr(cls, "requires", ()))),
            ("satisfies", code(n for n, p in kinds.items() if satisfies(cls, p))),
            ("limits in tier files", "yes" if hasattr(cls, "Limits") else ""),
        ]
        out += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows if value), ""]
    return "\n".join(out)


def satisfies(cls: Any, protocol: Any) -> bool:
    # Annotated attributes of an instance (`shared: bool`) count as well as members of the class.
    own = {name for base in cls.__mro__ for name in (*vars(base), *inspect.get_annotations(base))}
    members = [name for name in vars(protocol) if not name.startswith("_")]
    return bool(members) and all(name in own for name in members)


# --- command line -------------------------------------------------------------------------------


def cli_page() -> str:
    out = [COMMAND_LINE]
    context = click.Context(command, info_name="openclaw-gateway")
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found is not None:
            out += commands(found, ("openclaw-gateway", name))
    return "\n".join(out)


def commands(found: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(found, info_name=" ".join(path))
    yield f"{'#' * len(path)} `{' '.join(path[1:])}`"
    yield ""
    yield from paragraphs(inspect.cleandoc(found.help or "").replace("\b\n", ""))
    yield ""
    if isinstance(found, click.Group):
        for name in found.list_commands(context):
            inner = found.get_command(context, name)
            if inner is not None:
                yield from commands(inner, (*path, name))
        return
    usage = " ".join([*path, *found.collect_usage_pieces(context)])
    yield from ("```text", usage, "```", "")
    options = [p for p in found.params if isinstance(p, click.Option)]
    if options:
        yield from ("| option | default | |", "| --- | --- | --- |")
        for option in options:
            yield f"| {cell(code(spelled(option)))} | {cell(option_default(option))} | {cell(option.help or '')} |"
        yield ""


def option_default(option: click.Option) -> str:
    if option.required:
        return "required"
    if option.multiple:
        return "may be repeated"
    return f"`{option.default}`" if isinstance(option.default, (str, int)) and not option.is_flag else ""


# --- text ---------------------------------------------------------------------------------------


def bundled() -> list[tuple[EntryPoint, Any]]:
    points = [p for found in installed().values() for p in found if p.dist is None or p.dist.name == DISTRIBUTION]
    return [(point, point.load()) for point in sorted(points, key=lambda p: p.name)]


def first_sentence(cls: Any) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def paragraphs(text: str) -> Iterator[str]:
    for block in text.strip().split("\n\n"):
        yield from (block, "")


def code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def run() -> int:
    out_of_date = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in out_of_date.items():
        if "--check" in sys.argv:
            print(f"out of date: {path.name}; python docs/reference/generate.py writes it")
        else:
            path.write_text(text)
            print(f"wrote {path.name}")
    return int(bool(out_of_date) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(run())
