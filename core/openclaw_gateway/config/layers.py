"""Reads `openclaw.toml` and the environment into one plain tree, and remembers where each value came from.

dynaconf does the layering and nothing else: it is given parsed data, loads no file, runs no hook, and what it
makes of an environment variable counts only where the schema wants no text.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openclaw_gateway.config.positions import Positions, positions
from openclaw_gateway.config.problems import Problem
from openclaw_gateway.config.units import Size
from openclaw_gateway.structs import nearest

PREFIX = "OPENCLAW_"
#: bytes of a file, a hundred times what is ever written: a log or a device in its place is not read to the end
_LARGEST = 4_000_000
_SYNTAX = re.compile(r"^(?P<message>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_TOKEN = re.compile(r"^@[a-z_]+\b")
#: in a key: dynaconf would take `dynaconf_merge` or `_dynaconf_del` for an order to itself, unseen by the schema
_ORDER = "dynaconf_"


class FromEnvironment:
    """A value that an environment variable set: its text, and what TOML would make of it."""

    __slots__ = ("name", "parsed", "raw", "shadows")

    def __init__(self, name: str, raw: str, parsed: Any, shadows: Any) -> None:
        self.name = name
        self.raw = raw
        self.parsed = parsed
        self.shadows = shadows


class TomlFile:
    """One file as read: its data, and where in it each key stands."""

    def __init__(self, path: Path, shown: str) -> None:
        self.path = path
        self.shown = shown
        self.data: dict[str, Any] = {}
        self.positions: Positions = {}
        self.problems: list[Problem] = []
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            if len(content) > _LARGEST:
                self.problems.append(Problem(origin=shown, path="", message=f"larger than {Size(_LARGEST)}"))
                return
            text = content.decode("utf-8-sig")  # some editors of Windows begin a file with a mark
        except OSError as error:
            self.problems.append(
                Problem(origin=shown, path="", message=f"cannot be read: {(error.strerror or str(error)).lower()}")
            )
            return
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            self.problems.append(Problem(origin=f"{shown}:{line}:1", path="", message="not valid UTF-8"))
            return
        try:
            self.data = tomllib.loads(text)
        except RecursionError:
            self.problems.append(
                Problem(origin=shown, path="", message="not valid TOML: lists or tables nest too deep")
            )
            return
        except tomllib.TOMLDecodeError as error:
            match = _SYNTAX.match(str(error))
            lines = text.splitlines()
            at = (int(match["line"]), int(match["column"])) if match and match["line"] else (len(lines) or 1, 1)
            source = lines[at[0] - 1].strip() if lines else ""
            message = (match["message"] if match else str(error)).rstrip(".")
            self.problems.append(
                Problem(
                    origin=f"{shown}:{at[0]}:{at[1]}",
                    path="",
                    message=f"not valid TOML: {message[0].lower()}{message[1:]}",
                    found=f"`{source}`",
                )
            )
            return
        self.positions = positions(text)

    def origin(self, keys: tuple[str | int, ...]) -> str:
        """`file:line:column` of a key, or of the nearest table around it that is written."""
        while keys and keys not in self.positions:
            keys = keys[:-1]
        line, column = self.positions.get(keys, (1, 1))
        return f"{self.shown}:{line}:{column}"


class Layers:
    """The merged tree. Leaves set by the environment are `FromEnvironment`."""

    def __init__(self, file: TomlFile, environ: Mapping[str, str] | None = None) -> None:
        self.file = file
        #: None for the process's own, as it is then
        self.environ = environ
        self.problems = list(file.problems)
        self.warnings: list[str] = []
        self.variables: dict[tuple[str | int, ...], FromEnvironment] = {}
        self._refuse_tokens(file.data, ())
        self.tree = self._merge(os.environ if environ is None else environ)

    def origin(self, keys: tuple[str | int, ...]) -> str:
        """Say where the value at `keys` comes from."""
        variable = self.variables.get(keys)
        return variable.name if variable is not None else self.file.origin(keys)

    def _refuse_tokens(self, value: Any, keys: tuple[str | int, ...]) -> None:
        # dynaconf evaluates `@format`, `@read_file` and the like in any text: configuration must not run.
        if isinstance(value, str) and _TOKEN.match(value):
            self.problems.append(
                Problem(
                    origin=self.file.origin(keys),
                    path=".".join(map(str, keys)),
                    message='text that begins with "@" and a word is not taken',
                    expected='a plain value; for secrets "env:NAME" or "file:PATH"',
                )
            )
        elif isinstance(value, dict):
            for key, item in value.items():
                if _ORDER in key:
                    path = ".".join(map(str, (*keys, key)))
                    origin = self.file.origin((*keys, key))
                    self.problems.append(Problem(origin=origin, path=path, message="unknown key"))
                self._refuse_tokens(item, (*keys, key))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                self._refuse_tokens(item, (*keys, i))

    def _merge(self, environ: Mapping[str, str]) -> dict[str, Any]:
        from openclaw_gateway.config.document import Document

        tree = dict(self.file.data)
        if self.problems:
            return tree
        sections = set(Document.__struct_fields__)
        overrides: list[tuple[str, tuple[str, ...]]] = []
        for name in sorted(environ):
            if not name.startswith(PREFIX):
                continue
            parts = name[len(PREFIX) :].lower().split("__")
            if len(parts) > 1 and all(parts):
                if parts[0] in sections:
                    overrides.append((name, tuple(parts)))
                else:
                    meant = nearest(parts[0], sections)
                    hint = f"; did you mean {PREFIX}{meant.upper()}__...?" if meant else ""
                    self.warnings.append(f"{name}: no such section, ignored{hint}")
            elif (word := parts[0].split("_")[0]) in sections and "_" in parts[0]:
                rest = parts[0][len(word) + 1 :].upper()
                self.warnings.append(f"{name}: ignored; did you mean {PREFIX}{word.upper()}__{rest}?")
        if not overrides:
            return tree
        for name, path in overrides:
            keys = _spelling(tree, path)
            if any("." in key for key in keys):
                self.warnings.append(f"{name}: ignored; a key with a dot in it is set in the file only")
                continue
            if any(_ORDER in key for key in keys):
                self.problems.append(Problem(origin=name, path=".".join(keys), message="unknown key"))
                continue
            shadows = _dig(tree, keys)
            if isinstance(shadows, (dict, list)):
                what = "table" if isinstance(shadows, dict) else "list"
                self.problems.append(
                    Problem(
                        origin=name,
                        path=".".join(keys),
                        message=f"a {what} cannot be set by the environment",
                        expected="the name of a single value",
                    )
                )
                continue
            self.variables[keys] = FromEnvironment(name, environ[name], None, shadows)
        self._refuse_within()
        return self._layered(tree)

    def _refuse_within(self) -> None:
        """Refuse a variable for a key within what another variable makes a single value."""
        for keys, variable in list(self.variables.items()):
            above = next((a for i in range(1, len(keys)) if (a := self.variables.get(keys[:i])) is not None), None)
            if above is not None:
                del self.variables[keys]
                path = ".".join(map(str, keys))
                message = f"this is a key within a table, and {above.name} makes that table a single value"
                self.problems.append(Problem(origin=variable.name, path=path, message=message))

    def _layered(self, tree: dict[str, Any]) -> dict[str, Any]:
        from dynaconf import Dynaconf

        reader = Dynaconf(
            core_loaders=[],
            loaders=[],
            settings_files=[],
            preload=[],
            includes=[],
            load_dotenv=False,
            envvar_prefix=None,
        )
        reader.update(tree, tomlfy=False)
        for keys, variable in self.variables.items():
            raw = "" if variable.raw.startswith("@") else variable.raw
            reader.set(".".join(map(str, keys)), raw, tomlfy=True)
        merged: dict[str, Any] = {}
        for section in tree.keys() | {str(keys[0]) for keys in self.variables}:
            merged[section] = _plain(reader.get(section))
        for keys, variable in self.variables.items():
            table = merged
            for key in keys[:-1]:
                table = table[_same(table, str(key))]
            last = _same(table, str(keys[-1]))
            variable.parsed = table.pop(last)
            table[str(keys[-1])] = variable
        return merged


def _spelling(tree: Mapping[str, Any], path: tuple[str, ...]) -> tuple[str, ...]:
    """Give the parts of a variable's name the spelling that the file has for them."""
    keys: list[str] = []
    table: Any = tree
    for part in path:
        key = part
        if isinstance(table, Mapping):
            key = next((k for k in table if re.sub(r"[^a-z0-9]", "_", k.lower()) == part), part)
            table = table.get(key)
        keys.append(key)
    return tuple(keys)


def _plain(value: Any) -> Any:
    """Turn dynaconf's boxes back into the builtin types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _dig(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _same(table: Mapping[str, Any], key: str) -> str:
    return key if key in table else next(k for k in table if k.lower() == key.lower())
