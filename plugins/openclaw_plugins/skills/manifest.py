"""Reads SKILL.md as people really write it: front matter of nearly any shape, then instructions. It runs nothing.

What YAML refuses is read line by line, as `key: value`. Every scalar stays the text that was written.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

_FENCE = re.compile(r"^(?:---+|\+\+\+|```ya?ml)[ \t]*$")
_END = re.compile(r"^(?:---+|\.\.\.|\+\+\+|```)[ \t]*$")
_KEY = re.compile(r"^[ \t]{0,3}[\"']?([A-Za-z][\w-]*)[\"']?[ \t]*[:=][ \t]*(.*)$")
#: how far a front matter may reach
_MOST_LINES = 400
_MOST_DEPTH = 20
_LONGEST_DESCRIPTION = 1_024
#: names under which the family of OpenClaw keeps its block of `metadata`
_FAMILY = ("openclaw", "clawdbot", "moltbot", "clawdis")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


class Unreadable(ValueError):
    """A file that is no skill; the text says why."""


class Requirements(msgspec.Struct, frozen=True):
    """What a skill wants to find on the machine."""

    bins: tuple[str, ...] = ()
    any_bins: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    os: tuple[str, ...] = ()
    always: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A SKILL.md. `notes` say what of it was odd."""

    name: str
    version: str
    description: str
    instructions: str
    requirements: Requirements
    model_visible: bool = True
    user_invocable: bool = True
    notes: tuple[str, ...] = ()


def read_manifest(data: bytes, folder: str) -> Manifest:
    """Read a SKILL.md of the folder of this name. Raises Unreadable."""
    notes: list[str] = []
    text = _text(data, notes)
    front, body = _split(text, notes)
    fields = _fields(front, notes)
    description = " ".join(_words(fields.get("description")).split())
    if not description:
        raise Unreadable("it has no description")
    if len(description) > _LONGEST_DESCRIPTION:
        notes.append("the description was cut")
        description = description[: _LONGEST_DESCRIPTION - 1] + "…"
    metadata = _mapping(fields.get("metadata"), notes)
    name = _named(_words(fields.get("name")).strip(), folder, notes)
    version = _words(fields.get("version")) or _words(metadata.get("version"))
    return Manifest(
        name=name,
        version=version.strip()[:64] or "1",
        description=description,
        instructions=body.strip(),
        requirements=_requirements(metadata, fields),
        model_visible=not _truth(fields.get("disable-model-invocation"), default=False),
        user_invocable=_truth(fields.get("user-invocable"), default=True),
        notes=tuple(notes),
    )


def _text(data: bytes, notes: list[str]) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            notes.append("a byte order mark")
            text = data[len(mark) :].decode(encoding, "replace")
            break
    else:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            notes.append("not UTF-8")
            text = data.decode("cp1252", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\x00", "").lstrip("\ufeff")


def _split(text: str, notes: list[str]) -> tuple[list[str], str]:
    """Return the lines of the front matter and the rest. Raises Unreadable where there is none."""
    lines = text.split("\n")
    said = (i for i, line in enumerate(lines) if line.strip() and not line.strip().startswith("<!--"))
    first = next(said, len(lines))
    if first == len(lines):
        raise Unreadable("it is empty")
    if first:
        notes.append("lines before the front matter")
    fenced = _FENCE.match(lines[first].strip()) is not None
    start = first + 1 if fenced else first
    if not fenced and _KEY.match(lines[first]) is None:
        raise Unreadable("it has no front matter")
    for i in range(start, min(len(lines), start + _MOST_LINES)):
        if _END.match(lines[i]):
            if not fenced:
                notes.append("no fence before the front matter")
            return lines[start:i], "\n".join(lines[i + 1 :])
    if not fenced:
        raise Unreadable("it has no front matter")
    notes.append("no fence after the front matter")
    for i in range(start, min(len(lines), start + _MOST_LINES)):
        blank_before_body = not lines[i].strip() and i + 1 < len(lines) and _KEY.match(lines[i + 1]) is None
        if lines[i].startswith("# ") or blank_before_body:
            return lines[start:i], "\n".join(lines[i:])
    return lines[start:], ""


def _fields(front: list[str], notes: list[str]) -> Mapping[str, Any]:
    try:
        found = yaml.load("\n".join(front), Loader=_Plain)  # noqa: S506 - a loader that makes texts, lists and maps alone
    except (yaml.YAMLError, RecursionError, ValueError):
        notes.append("the front matter is no YAML; read line by line")
        return _line_by_line(front)
    if isinstance(found, dict):
        return {str(key).strip().lower(): value for key, value in found.items()}
    if isinstance(found, list):
        merged = {str(k).strip().lower(): v for item in found if isinstance(item, dict) for k, v in item.items()}
        if merged:
            notes.append("the front matter is a list")
            return merged
    notes.append("the front matter is no map; read line by line")
    return _line_by_line(front)


class _Plain(yaml.BaseLoader):  # type: ignore[misc] # the library has no types
    """Makes texts of all scalars, and refuses what could grow: aliases and deep nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError("nested too deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _line_by_line(front: list[str]) -> dict[str, Any]:
    """Take what is after the first colon of a line as it is; what is indented goes on with the line before."""
    fields: dict[str, Any] = {}
    last: str | None = None
    for line in front:
        match = _KEY.match(line) if not line.startswith(("    ", "\t\t")) else None
        if match is not None and (line[:1] not in " \t" or last is None or match[1].lower() in ("name", "description")):
            last = match[1].lower()
            value = match[2].strip()
            fields[last] = "" if value in ("|", ">", "|-", ">-", "|+", ">+") else _unquoted(value)
        elif last is not None and line.strip() and line[0] in " \t":
            fields[last] = f"{fields[last]} {line.strip()}".strip()
    return fields


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _named(name: str, folder: str, notes: list[str]) -> str:
    if name and name != folder:
        notes.append("the name is not that of the folder")
    for candidate in (name, folder):
        if _NAME.match(candidate):
            return candidate
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", candidate).strip("-._")[:64].lower()
        if slug:
            notes.append("the name was changed")
            return slug
    raise Unreadable("it has no name")


def _requirements(metadata: Mapping[str, Any], fields: Mapping[str, Any]) -> Requirements:
    family = next((block for key in _FAMILY if isinstance(block := metadata.get(key), dict)), {})
    family = family or {key: fields[key] for key in ("requires", "os", "always") if key in fields}
    requires = family.get("requires")
    wanted: Mapping[str, Any] = requires if isinstance(requires, dict) else {}
    return Requirements(
        bins=_list(wanted.get("bins")),
        any_bins=_list(wanted.get("anyBins")),
        env=_list(wanted.get("env")),
        config=_list(wanted.get("config")),
        os=_list(family.get("os")),
        always=_truth(family.get("always"), default=False),
    )


def _mapping(value: Any, notes: list[str]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            found = msgspec.json.decode(value.strip())
        except (msgspec.DecodeError, RecursionError):
            notes.append("the metadata cannot be read")
            return {}
        return found if isinstance(found, dict) else {}
    return {}


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(_words(item) for item in value)
    if isinstance(value, dict):
        # An unquoted colon made a map of what was a sentence.
        return "; ".join(f"{key}: {_words(item)}" for key, item in value.items())
    return ""


def _list(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in re.split(r"[\s,]+", value) if part)
    if isinstance(value, list):
        names = [item.get("name") if isinstance(item, dict) else item for item in value]
        return tuple(name for name in names if isinstance(name, str) and name)
    return ()


def _truth(value: Any, *, default: bool) -> bool:
    if isinstance(value, bool):
        return value
    return value.strip().lower() in ("true", "yes", "on", "1") if isinstance(value, str) and value.strip() else default
