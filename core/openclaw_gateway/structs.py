"""Walks plain data against a Struct and finds every problem, where msgspec stops at the first.

Serves the operator's files and the bodies of clients alike. It reports; building the value stays msgspec's.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

Path = tuple[str | int, ...]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong: where, what was found and expected, and the nearest right thing."""

    keys: Path
    message: str
    found: str | None = None
    expected: str | None = None
    nearest: str | None = None

    @property
    def path(self) -> str:
        return dotted(self.keys)


def dotted(keys: Iterable[str | int]) -> str:
    """Write a path as `messages[0].role`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{key}" if text else str(key)
    return text


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Return the word that was most likely meant."""
    matches = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return matches[0] if matches else None


def collect(value: Any, type: Any, *, path: Path = (), dec_hook: Any = None, most: int | None = None) -> list[Finding]:
    """Return all findings of `value` against `type`, or the first `most`."""
    findings = list(islice(_walk(value, type, path, dec_hook), most))
    if not findings:
        # What only the whole shows: bounds of a list, and what a Struct checks of itself.
        try:
            msgspec.convert(value, type, dec_hook=dec_hook)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at `$")
            findings = [Finding((*path, *_keys(place)), message[0].lower() + message[1:])]
    return findings


def _keys(place: str) -> Path:
    """Read as much of msgspec's path (`.a.b[0]`) as names keys; it hides the keys of maps."""
    keys: list[str | int] = []
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place):
        if index == "...":
            break
        keys.append(name or int(index))
    return tuple(keys)


def _walk(value: Any, type: Any, path: Path, dec_hook: Any) -> Iterator[Finding]:
    base = bare(type)
    if _is_struct(base):
        found = list(_walk_struct(value, base, path, dec_hook))
        yield from found
        if not found and hasattr(base, "__post_init__"):
            try:
                msgspec.convert(value, base, dec_hook=dec_hook)
            except msgspec.ValidationError as error:
                message = str(error).split(" - at `")[0]
                yield Finding(path, message[0].lower() + message[1:])
        return
    origin, args = get_origin(base), get_args(base)
    if origin is dict and isinstance(value, dict) and len(args) == 2 and _nested(args[1]):
        for key, item in value.items():
            yield from _walk(item, args[1], (*path, key), dec_hook)
        return
    if origin in (list, tuple) and isinstance(value, list) and args and _nested(args[0]):
        wrong = False
        for i, item in enumerate(value):
            for finding in _walk(item, args[0], (*path, i), dec_hook):
                wrong = True
                yield finding
        if wrong or base is type:
            return  # what is left to look at is how many they are
    if origin in (Union, types.UnionType):
        structs = [a for a in args if _is_struct(bare(a))]
        lists = [a for a in args if get_origin(bare(a)) is list]
        likely = structs if isinstance(value, dict) else lists if isinstance(value, list) else []
        if len(likely) == 1:
            yield from _walk(value, likely[0], path, dec_hook)
            return
    try:
        msgspec.convert(value, type, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        message = str(error).split(" - at `")[0]
        options = [str(o) for o in get_args(base)] if origin is Literal else []
        if message.startswith(("Expected `", "Invalid enum", "expected ")):
            message = "not a valid value"  # msgspec's words quote the value; what is expected stands beside it
        yield Finding(
            path,
            message[0].lower() + message[1:],
            found=_kind(value),
            expected=describe(type),
            nearest=nearest(value, options) if isinstance(value, str) and options else None,
        )


def _walk_struct(value: Any, struct: Any, path: Path, dec_hook: Any) -> Iterator[Finding]:
    if not isinstance(value, dict):
        yield Finding(path, "not a table", found=_kind(value), expected="a table")
        return
    fields = {f.encode_name: f for f in msgspec.structs.fields(struct)}
    closed = struct.__struct_config__.forbid_unknown_fields
    for key, item in value.items():
        field = fields.get(key)
        if field is not None:
            yield from _walk(item, field.type, (*path, key), dec_hook)
        elif closed:
            yield Finding(
                (*path, key),
                "unknown key",
                expected="one of: " + ", ".join(sorted(fields)) if fields else "no keys",
                nearest=nearest(str(key), fields),
            )
    for name, field in fields.items():
        if field.required and name not in value:
            yield Finding((*path, name), "missing", expected=describe(field.type))


def describe(type: Any) -> str:
    """Say in an operator's words what values a type takes."""
    base = bare(type)
    shown = getattr(base, "__expects__", None)
    if shown is not None:
        return str(shown)
    origin, args = get_origin(base), get_args(base)
    if origin is Literal:
        return "one of " + ", ".join(f'"{a}"' for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args if a is not types.NoneType)
    if origin in (list, tuple, frozenset, set):
        text, long = "a list of " + (describe(args[0]) if args else "values"), "of them"
    elif origin is dict or base is dict or _is_struct(base):
        return "a table"
    else:
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Any: "any value"}
        text, long = words.get(base, getattr(base, "__name__", str(base))), "long"
    for meta in get_args(type)[1:] if get_origin(type) is Annotated else ():
        if isinstance(meta, msgspec.Meta):
            bounds = [("gt", "over"), ("ge", "at least"), ("lt", "under"), ("le", "at most")]
            for name, word in bounds:
                if (bound := getattr(meta, name)) is not None:
                    text += f", {word} {bound}"
            if meta.pattern is not None:
                text += f", like {meta.pattern}"
            if meta.min_length is not None:
                text += f", at least {meta.min_length} {long}"
            if meta.max_length is not None:
                text += f", at most {meta.max_length} {long}"
    return text


def bare(type: Any) -> Any:
    """Return a type without its annotations."""
    while get_origin(type) is Annotated:
        type = get_args(type)[0]
    return type


def _nested(type: Any) -> bool:
    base = bare(type)
    return _is_struct(base) or get_origin(base) in (dict, list, tuple) or get_origin(type) is Annotated


def _is_struct(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, msgspec.Struct)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return type(value).__name__
