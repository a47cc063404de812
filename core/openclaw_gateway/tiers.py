"""Reads the tier files: what each tier may use, as data. The core knows no limit by name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openclaw_gateway.config.layers import TomlFile
from openclaw_gateway.config.problems import Problem
from openclaw_gateway.plans import counts_sessions
from openclaw_gateway.structs import Finding, collect, nearest

if TYPE_CHECKING:
    from openclaw_gateway.plans import Plan
    from openclaw_gateway.routes import Route

#: keys of a tier file that belong to the host; every other key is the id of a plugin with limits
_OWN: dict[str, Any] = {"title": str, "models": list[str], "skills": list[str], "scopes": list[str]}


class Tier(msgspec.Struct, frozen=True):
    """One tier: plugin id → limit name → that plugin's `Limits` Struct. None opens all models or skills."""

    name: str
    title: str
    tables: Mapping[str, Mapping[str, Any]]
    models: frozenset[str] | None = None
    skills: frozenset[str] | None = None
    scopes: frozenset[str] | None = None


class TierFiles:
    """The folder as read; typed by `build` once the plugins that own the tables are known."""

    def __init__(self, folder: Path, shown: str) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.files: dict[str, TomlFile] = {}
        try:
            if not folder.is_dir():
                self.problems.append(
                    Problem(origin=shown, path="", message="no such folder", expected="a folder of tier files")
                )
                return
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")  # glob hides a refusal
        except OSError as error:
            message = f"cannot be read: {(error.strerror or str(error)).lower()}"
            self.problems.append(Problem(origin=shown, path="", message=message))
            return
        for path in paths:
            file = TomlFile(path, f"{shown}/{path.name}")
            self.problems.extend(file.problems)
            name = path.stem
            if name.lower() in (other.lower() for other in self.files):
                self.problems.append(
                    Problem(origin=file.shown, path="", message=f"a second file for the tier {name.lower()!r}")
                )
            self.files[name] = file
        if not self.files:
            self.problems.append(
                Problem(origin=shown, path="", message="no tier file", expected="at least one NAME.toml")
            )

    def build(
        self, owners: Mapping[str, type[msgspec.Struct]], models: Collection[str] | None = None
    ) -> tuple[dict[str, Tier], list[Problem]]:
        """Type every table by the `Limits` of its plugin; return all tiers, or all problems.

        `models` are those of the configuration: a tier that opens another one has a problem. None knows of no models.
        """
        problems = list(self.problems)
        tiers: dict[str, Tier] = {}
        for name, file in self.files.items():
            if file.problems:
                continue
            found: list[Finding] = []
            tables: dict[str, dict[str, Any]] = {}
            for key, value in file.data.items():
                if key in _OWN:
                    wrong = collect(value, _OWN[key], path=(key,))
                    if key == "models" and models is not None and not wrong:
                        wrong = _unknown(value, models)
                    found += wrong
                elif key not in owners:
                    found.append(
                        Finding(
                            (key,),
                            "unknown table: no plugin of the configuration with this id has limits",
                            expected="one of: " + ", ".join(sorted([*owners, *_OWN])),
                            nearest=nearest(key, [*owners, *_OWN]),
                        )
                    )
                else:
                    found += collect(value, dict[str, owners[key]], path=(key,))  # type: ignore[valid-type]
                    tables[key] = value
            for owner in owners:
                if owner not in file.data:
                    found.append(Finding((owner,), "missing table", expected=f"[{owner}.<limit>]"))
            problems += [Problem.of(f, file.origin) for f in found]
            if not found:
                tiers[name] = Tier(
                    name=name,
                    title=file.data.get("title", name),
                    tables={
                        owner: {k: msgspec.convert(v, owners[owner]) for k, v in table.items()}
                        for owner, table in tables.items()
                    },
                    models=_opened(file.data, "models"),
                    skills=_opened(file.data, "skills"),
                    scopes=_opened(file.data, "scopes"),
                )
        return tiers, problems

    def origin(self, tier: str, keys: tuple[str | int, ...] = ()) -> str:
        return self.files[tier].origin(keys)


def idle_limits(
    tiers: Mapping[str, Tier], owners: Iterable[str], whole: Mapping[str, Plan], routes: Iterable[Route]
) -> list[tuple[str, Finding]]:
    """Find limits whose meter nothing emits, each with its tier: they would count nothing."""
    emitted: set[str] = set()
    in_sessions: set[str] = set()
    for route in routes:
        meters = {m.name for m in (*route.meters, *route.message_meters, *route.charges_later)}
        emitted |= meters
        if route.names_session:
            in_sessions |= meters
    found = []
    for tier in tiers.values():
        by_session = {limit.name for limit in whole[tier.name].limits if counts_sessions(limit)}
        counted = {
            limit.name
            for limit in whole[tier.name].limits
            if limit.meter in (in_sessions if limit.name in by_session else emitted)
        }
        for owner in owners:
            for name, table in tier.tables.get(owner, {}).items():
                if f"{owner}.{name}" not in counted:
                    meter = getattr(table, "meter", None) or name
                    which, known = "route", emitted
                    if f"{owner}.{name}" in by_session:
                        which, known = "route whose requests name a session", in_sessions
                    message = f"counts nothing: no {which} meters {meter!r}"
                    expected = "one of: " + ", ".join(sorted(known))
                    finding = Finding((owner, name), message, expected=expected, nearest=nearest(meter, known))
                    found.append((tier.name, finding))
    return found


def _unknown(opened: Iterable[str], models: Collection[str]) -> list[Finding]:
    """Find models that a tier opens and the configuration does not have: they would only be missing."""
    expected = "one of: " + ", ".join(models) if models else "a table [models.<alias>] for it"
    return [
        Finding(("models", i), "there is no such model", f'"{name}"', expected, nearest(name, models))
        for i, name in enumerate(opened)
        if name not in models
    ]


def _opened(data: Mapping[str, Any], key: str) -> frozenset[str] | None:
    return frozenset(data[key]) if key in data else None
