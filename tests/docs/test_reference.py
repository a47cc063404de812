"""The reference says what the code says: generated pages are up to date, and each fact of the code has its line."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest

from openclaw_gateway import hooks
from openclaw_gateway.config.document import Document, GatewaySettings, StepSettings

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generate() -> dict[str, Any]:
    return runpy.run_path(str(REFERENCE / "generate.py"))


def test_the_generated_pages_are_up_to_date(generate: dict[str, Any]) -> None:
    stale = [path.name for path, text in generate["pages"]().items() if not path.exists() or path.read_text() != text]
    assert not stale, f"python docs/reference/generate.py writes {', '.join(stale)}"


def test_every_hook_has_its_heading_its_signature_and_its_text() -> None:
    page = (REFERENCE / "hooks.md").read_text()
    named = [name for name, value in vars(hooks).items() if hasattr(value, "openclaw_spec")]
    assert re.findall(r"^### `(\w+)`$", page, re.M) == sorted(named, key=lambda n: (n.startswith("on_"), _line(n)))
    for name in named:
        hook = getattr(hooks, name)
        section = page.split(f"### `{name}`\n")[1].split("\n### ")[0]
        assert f"def {name}{str(inspect.signature(hook)).replace(chr(39), '')}\n" in section
        assert inspect.getdoc(hook) in section


def test_every_key_has_a_line_with_type_default_and_description(generate: dict[str, Any]) -> None:
    page = (REFERENCE / "configuration.md").read_text()
    structs: list[tuple[str, Any]] = [("[gateway]", GatewaySettings), ("[steps.", StepSettings)]
    for field in msgspec.structs.fields(Document):
        of = next((a for a in _arguments(field.type) if isinstance(a, type) and issubclass(a, msgspec.Struct)), None)
        if of is not None and field.encode_name not in ("gateway", "steps"):
            structs.append((f"[{field.encode_name}.", of))
    for point, cls in generate["bundled"]():
        structs += [(f"{point.name}`", getattr(cls, which)) for which in ("Config", "Limits") if hasattr(cls, which)]
    assert len(structs) > 20
    for where, struct in structs:
        section = next(part for part in re.split(r"^##+ `", page, flags=re.M) if part.startswith(where))
        for field in msgspec.structs.fields(struct):
            inner = generate["nested"](field.type)
            if inner is not None:
                of = f"{field.encode_name}.<name>" if field.default_factory is dict else field.encode_name
                assert all(f"| `{of}.{name}` |" in section for name in inner.__struct_encode_fields__)
                continue
            row = re.search(rf"^\| `{field.encode_name}` \| (.+) \| (.+) \| (.*) \|$", section, re.M)
            assert row is not None, f"{where}: {field.encode_name} has no line"
            assert row[3], f"{where}: {field.encode_name} has no description"
            assert (row[2] == "required") is field.required


def test_every_code_of_a_refusal_has_its_line() -> None:
    page = (REFERENCE / "errors.md").read_text()
    listed = set(re.findall(r"^\| (\d{3}|-) \| `([A-Z_]+)` \|", page, re.M))
    found = {code for tree in _trees("core", "plugins") for code in _codes(tree)}
    assert len(found) > 12
    assert not found - {code for _, code in listed}
    for tree in _trees("core"):
        for status, code in _refusals(tree):
            assert (str(status), code) in listed or code == "RATE_LIMIT_EXCEEDED"


def test_every_command_and_option_has_its_line(generate: dict[str, Any]) -> None:
    import click

    from openclaw_gateway.cli import main

    page = (REFERENCE / "cli.md").read_text()

    def walk(command: click.Command, path: str) -> None:
        section = page.split(f"# `{path}`\n")[1].split("\n## ")[0]
        if isinstance(command, click.Group):
            for name in command.commands:
                walk(command.commands[name], f"{path} {name}")
            return
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert all(f"`{name}" in section for name in option.opts), f"{path} {option.opts}"
            assert option.help, f"{path} {option.opts}"

    context = click.Context(main)
    names = main.list_commands(context)
    assert {"serve", "check", "init", "pipeline", "plugins", "routes", "keys", "token", "db", "schema"} <= set(names)
    for name in names:
        command = main.get_command(context, name)
        assert command is not None
        walk(command, name)


def _arguments(type: Any) -> list[Any]:
    found = list(get_args(type))
    return found + [inner for one in found for inner in _arguments(one)]


def _line(name: str) -> int:
    return inspect.getsourcelines(getattr(hooks, name))[1]


def _trees(*folders: str) -> list[ast.Module]:
    return [ast.parse(path.read_text()) for folder in folders for path in (ROOT / folder).rglob("*.py")]


def _codes(tree: ast.Module) -> set[str]:
    constants = {
        keyword.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
    }
    return {code for code in constants if re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)}


def _refusals(tree: ast.Module) -> set[tuple[int, str]]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if "status" in given and "code" in given:
                found.add((given["status"], given["code"]))
    return found
