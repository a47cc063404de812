"""The effective configuration as operators read it: each value by its dotted key, and never the text of a secret."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import msgspec

logger = logging.getLogger("openclaw.config")

#: in data_dir: what is served now, to be compared with the files
FILE = "served.json"


def values(gateway: Any) -> dict[str, dict[str, Any]]:
    """Return every effective value by its dotted key, with its type and origin; never the text of a secret."""
    found: dict[str, dict[str, Any]] = {}

    def walk(struct: Any, keys: tuple[str, ...]) -> None:
        for field in msgspec.structs.fields(struct):
            value = getattr(struct, field.name)
            path = (*keys, field.encode_name)
            if isinstance(value, msgspec.Struct):
                walk(value, path)
            elif isinstance(value, dict) and keys == () and field.name != "plugins":
                for name, item in value.items():
                    walk(item, (*path, name))
            elif field.name != "plugins" or keys:
                found[".".join(path)] = _entry(gateway, path, value, field)

    walk(gateway.document, ())
    for definition in gateway.definitions:
        if definition.config is not None:
            walk(definition.config, ("plugins", definition.id))
    return found


def standing(gateway: Any) -> dict[str, str]:
    """Return the effective values as texts, the limits of the tiers among them."""
    found = {key: str(entry["value"]) for key, entry in values(gateway).items()}
    for tier, plan in gateway.admission.whole.items():
        for limit in plan.limits:
            found |= {f"tiers.{tier}.{limit.name}.{f}": str(getattr(limit, f)) for f in limit.__struct_fields__}
    return found


def differences(served: dict[str, str], files: dict[str, str]) -> list[dict[str, str | None]]:
    """Return each key whose value in the files is not the one that is served, with both."""
    return [
        {"key": key, "served": served.get(key), "file": files.get(key)}
        for key in sorted({*served, *files})
        if served.get(key) != files.get(key)
    ]


def leave(gateway: Any, folder: Path) -> None:
    """Leave in `folder` what is served, for its owner alone to read. A failure is logged: it hinders nobody."""
    fresh = folder / f"{FILE}.{os.getpid()}"
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(standing(gateway)))
        fresh.replace(folder / FILE)
    except OSError as error:
        logger.warning("what is served could not be left in %s: %s", folder, error.strerror)


def left(folder: Path) -> dict[str, str] | None:
    """Return what a gateway has left that serves from here; None where there is none."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None


def _entry(gateway: Any, path: tuple[str, ...], value: Any, field: Any) -> dict[str, Any]:
    from openclaw_gateway.structs import describe

    layers = gateway.layers
    variable = layers.variables.get(path)
    written = path in layers.file.positions
    # Never the text of a variable or of a shadowed value: either may be a secret.
    return {
        "value": str(value),
        "type": describe(field.type),
        "origin": layers.origin(path) if written or variable is not None else "default",
        "shadows": layers.file.origin(path) if variable is not None and written else None,
        "description": _description(field.type),
    }


def _description(type: Any) -> str | None:
    from typing import get_args

    for meta in get_args(type)[1:]:
        if isinstance(meta, msgspec.Meta) and meta.description:
            return meta.description
    return None
