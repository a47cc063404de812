"""Puts what a boot stumbled over into words: routes that nothing protects, words that nothing knows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pluggy

from openclaw_gateway import hooks
from openclaw_gateway.pipeline import Proof
from openclaw_gateway.structs import Finding, nearest


def refused_routes(proofs: Iterable[Proof]) -> Iterator[Finding]:
    """One finding a gap: one mistake often opens the same one on every route."""
    found: dict[str, list[str]] = {}
    for proof in proofs:
        for gap in proof.gaps:
            found.setdefault(gap, []).append(f"{'/'.join(proof.route.methods)} {proof.route.path}")
    for gap, routes in found.items():
        named = ", ".join(routes[:3]) + (f" and {len(routes) - 3} more" if len(routes) > 3 else "")
        yield Finding(
            ("gateway", "pipeline"),
            f"route{'s' * (len(routes) > 1)} {named} {'are' if len(routes) > 1 else 'is'} refused: {gap}",
        )


def misset(id: str, config: Any, tree: Mapping[str, Any], said: str) -> Finding:
    """Give what a plugin says of the configuration its place, by the key that its text begins with.

    `url: not an address` is about the plugin's own table, `models.large.fallbacks: ...` about a table that all share.
    """
    where, _, message = said.partition(": ")
    own = re.fullmatch(r"(\w+)(?:[.\[]\S*)?", where)  # a key, with what is within it; not words that begin like one
    if message and own is not None and own[1] in getattr(config, "__struct_fields__", ()):
        return Finding(
            ("plugins", id, *_keys(where, {own[1]: tree.get("plugins", {}).get(id, {}).get(own[1])})), message
        )
    shared = _keys(where, tree)
    if message and len(shared) > 1:
        return Finding(shared, message)
    return Finding(("plugins", id), said or "its constructor failed: a ValueError without a text")


def _keys(where: str, tree: Any) -> tuple[str, ...]:
    """Split a dotted path by the keys that are there, for these may hold dots; empty where it begins with none."""
    for key in sorted(tree, key=len, reverse=True) if isinstance(tree, Mapping) else ():
        if where == key:
            return (key,)
        if where.startswith((f"{key}.", f"{key}[")):
            rest = where[len(key) + 1 :]
            return (key, *(_keys(rest, tree[key]) or tuple(re.findall(r"\w+", rest))))
    return ()


def unknown_meters(unmetered: Sequence[str], meters: Collection[str]) -> list[Finding]:
    """Find names in `gateway.unmetered` that no meter has: whoever wrote them meant something else."""
    expected = "one of: " + ", ".join(sorted(meters))
    return [
        Finding(("gateway", "unmetered", i), "no such meter", f'"{name}"', expected, nearest(name, meters))
        for i, name in enumerate(unmetered)
        if name not in meters
    ]


def unknown_hooks(id: str, plugin: Any, manager: pluggy.PluginManager) -> list[Finding]:
    """Find what a plugin marks as a hook and no hook is: misspelt, it would never be called."""
    known = sorted(name for name, value in vars(hooks).items() if hasattr(value, f"{hooks.PROJECT}_spec"))
    expected = "one of: " + ", ".join(known)
    return [
        Finding(("plugins", id), f"it has the hook {name!r}, and there is none", None, expected, nearest(name, known))
        for name in sorted(caller.name for caller in manager.get_hookcallers(plugin) or () if not caller.has_spec())
    ]
