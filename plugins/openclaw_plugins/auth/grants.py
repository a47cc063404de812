"""What an operator may grant: tiers that exist, scopes and names that can be stored."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeGuard

from openclaw_gateway.api import NotGrantable

#: longest organisation, user or tier name that a credential may carry
NAME_LENGTH = 255


def check_grant(tiers: Collection[str], *, organization: str, user: str, tier: str, scopes: Iterable[str]) -> None:
    """Raise NotGrantable for a tier that no file names, and for names and scopes that cannot travel."""
    if tier not in tiers:
        close = difflib.get_close_matches(tier, tiers, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "the tiers are: " + ", ".join(sorted(tiers))
        raise NotGrantable(f"no tier file names the tier {tier!r}; {hint}")
    for word, value in (("organisation", organization), ("user", user)):
        if not is_name(value):
            raise NotGrantable(f"the {word} must be 1 to {NAME_LENGTH} characters that can be stored")
    for scope in scopes:
        if not is_name(scope) or any(c.isspace() for c in scope):
            raise NotGrantable(f"the scope {scope!r} must be one word")


def is_name(value: object) -> TypeGuard[str]:
    """Say whether a claim can be an organisation, a user or a tier: text that every store can hold."""
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH or "\x00" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
