"""Where each key of a TOML file stands, so that a problem can name line and column.

The grammar is tree-sitter's; `tomllib` stays the judge of what is valid.
"""

from __future__ import annotations

import tomllib
from typing import Any

from tree_sitter import Language, Node, Parser
from tree_sitter_toml import language

Position = tuple[int, int]
Positions = dict[tuple[str | int, ...], Position]


def positions(text: str) -> Positions:
    """Map every key path of valid TOML to the line and column (from 1) where it is first written."""
    source = text.encode()
    found: Positions = {}
    arrays: dict[tuple[str | int, ...], int] = {}
    root = Parser(Language(language())).parse(source).root_node
    for child in root.named_children:
        if child.type == "pair":
            _pair(child, (), found, source)
        elif child.type in ("table", "table_array_element"):
            keys = _keys(child.named_children[0])
            path: tuple[str | int, ...] = ()
            for key in keys[:-1]:
                path = (*path, key)
                if path in arrays:
                    path = (*path, arrays[path])
            path = (*path, keys[-1])
            if child.type == "table_array_element":
                arrays[path] = arrays.get(path, -1) + 1
                found.setdefault(path, _place(child.named_children[0], source))
                path = (*path, arrays[path])
            _mark(path, child.named_children[0], found, source)
            for pair in child.named_children[1:]:
                if pair.type == "pair":
                    _pair(pair, path, found, source)
    return found


def _pair(pair: Node, prefix: tuple[str | int, ...], found: Positions, source: bytes) -> None:
    key, value = pair.named_children[0], pair.named_children[1]
    path = (*prefix, *_keys(key))
    _mark(path, key, found, source)
    _value(value, path, found, source)


def _value(value: Node, path: tuple[str | int, ...], found: Positions, source: bytes) -> None:
    if value.type == "inline_table":
        for pair in value.named_children:
            if pair.type == "pair":
                _pair(pair, path, found, source)
    elif value.type == "array":
        items = [n for n in value.named_children if n.type != "comment"]
        for i, item in enumerate(items):
            _mark((*path, i), item, found, source)
            _value(item, (*path, i), found, source)


def _mark(path: tuple[str | int, ...], node: Node, found: Positions, source: bytes) -> None:
    for depth in range(1, len(path) + 1):
        found.setdefault(path[:depth], _place(node, source))


def _place(node: Node, source: bytes) -> Position:
    row, column = node.start_point
    line = source.split(b"\n")[row][:column]
    return row + 1, len(line.decode()) + 1


def _keys(node: Node) -> list[str]:
    """Read a bare, quoted or dotted key by the rules of TOML itself."""
    assert node.text is not None
    value: Any = tomllib.loads(f"{node.text.decode()} = 0")
    keys = []
    while isinstance(value, dict):
        key, value = next(iter(value.items()))
        keys.append(key)
    return keys
