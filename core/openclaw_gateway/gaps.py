"""Puts what a boot stumbled over into words: routes that nothing protects, words that nothing knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
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
