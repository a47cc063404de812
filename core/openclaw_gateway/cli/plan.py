"""What an edit of the tier files means: who gains and loses what, before anything is served with it.

It compares typed tables, so that only what counts is a difference, and it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from openclaw_gateway.contracts.accounting import Standing
from openclaw_gateway.tiers import Tier

Verdict = Literal["gains", "loses", "changes"]


class Change(msgspec.Struct, frozen=True):
    """One difference of a tier. `field` is empty where a whole limit, or the tier itself, came or went."""

    tier: str
    limit: str
    field: str
    old: Any
    new: Any
    verdict: Verdict


class Affected(msgspec.Struct, frozen=True):
    """A subject whom the new files treat differently now, with what it has used."""

    organization: str
    subject: str
    tier: str
    limit: str
    used: int
    old: int | None
    new: int | None
    effect: Literal["refused from now on", "refused as before", "admitted again", "tier gone"]


def changes(old: Mapping[str, Tier], new: Mapping[str, Tier]) -> list[Change]:
    """Return every difference, by tier and limit."""
    found: list[Change] = []
    for name in sorted({*old, *new}):
        if name not in new:
            found.append(Change(name, "", "", "tier", None, "loses"))
        elif name not in old:
            found.append(Change(name, "", "", None, "tier", "gains"))
        else:
            found += _of_tier(old[name], new[name])
    return found


def affected(standings: Iterable[Standing], old: Mapping[str, Tier], new: Mapping[str, Tier]) -> list[Affected]:
    """Return the subjects that the new files refuse, or admit again, at what they have used by now."""
    found: list[Affected] = []
    for row in standings:
        before, after = _allowed(old, row), _allowed(new, row)
        if row.tier in old and row.tier not in new:
            effect: Any = "tier gone"
        elif after is not None and row.used >= after:
            effect = "refused as before" if before is not None and row.used >= before else "refused from now on"
        elif before is not None and row.used >= before:
            effect = "admitted again"
        else:
            continue
        found.append(Affected(row.organization, row.subject, row.tier, row.limit, row.used, before, after, effect))
    return found


def _of_tier(old: Tier, new: Tier) -> Iterator[Change]:
    before, after = _limits(old), _limits(new)
    for limit in sorted({*before, *after}):
        if limit not in after:
            yield Change(old.name, limit, "", before[limit]["limit"], None, "gains")
        elif limit not in before:
            yield Change(old.name, limit, "", None, after[limit]["limit"], "loses")
        else:
            for field, value in after[limit].items():
                if before[limit].get(field) != value:
                    verdict = _verdict(field, before[limit], after[limit])
                    yield Change(old.name, limit, field, before[limit].get(field), value, verdict)
    for opened in ("models", "skills", "scopes"):
        yield from _of_names(old.name, opened, getattr(old, opened), getattr(new, opened))


def _of_names(tier: str, what: str, old: frozenset[str] | None, new: frozenset[str] | None) -> Iterator[Change]:
    if old == new:
        return
    if old is None or new is None:  # None opens all of them
        verdict: Verdict = "gains" if new is None else "loses"
        yield Change(tier, what, "", _names(old), _names(new), verdict)
        return
    for name in sorted(new - old):
        yield Change(tier, what, name, None, name, "gains")
    for name in sorted(old - new):
        yield Change(tier, what, name, name, None, "loses")


def _verdict(field: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Verdict:
    if field == "mode":
        return "gains" if new["mode"] == "shadow" else "loses"
    if field == "limit" and old.get("per") == new.get("per"):
        return "gains" if new["limit"] > old["limit"] else "loses"
    return "changes"


def _limits(tier: Tier) -> dict[str, dict[str, Any]]:
    return {
        f"{plugin}.{name}": msgspec.structs.asdict(table)
        for plugin, tables in tier.tables.items()
        for name, table in tables.items()
    }


def _allowed(tiers: Mapping[str, Tier], row: Standing) -> int | None:
    """Return the limit that these files set on what the row counts; None where they count something else."""
    tier = tiers.get(row.tier)
    limit = _limits(tier).get(row.limit) if tier is not None else None
    if limit is None or limit.get("mode") == "shadow" or _period(limit.get("per")) != _shape(row.period):
        return None
    allowed: int = limit["limit"]
    return allowed


def _period(per: str | None) -> str:
    return per if per is not None else "lease"


def _shape(period: str) -> str:
    """Say which kind of period a row belongs to: `2026-11`, `2026-11-22`, `session` or `lease`."""
    return {7: "month", 10: "day"}.get(len(period), period) if period[:1].isdigit() else period


def _names(names: frozenset[str] | None) -> Any:
    return "all" if names is None else sorted(names)
