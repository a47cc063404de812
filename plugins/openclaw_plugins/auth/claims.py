"""What an issuer states of a caller, read the same way from a token and from an answer about a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from openclaw_gateway.api import PluginConfig, Principal, Refusal, unauthorized
from openclaw_plugins.auth.grants import is_name

EXPIRED = unauthorized("the token has expired")
EARLY = unauthorized("the token is not valid yet")
UNUSABLE = unauthorized("the token lacks a claim that this gateway needs, or holds one that it cannot use")


class Claims(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.<id>.claims]`: under which names an issuer states who the caller is."""

    organization: Annotated[str, Meta(min_length=1, description="Claim of the organisation.")] = "org_id"
    user: Annotated[str, Meta(min_length=1, description="Claim of the user.")] = "sub"
    tier: Annotated[str, Meta(min_length=1, description="Claim of the tier.")] = "tier"
    scopes: Annotated[
        str, Meta(min_length=1, description="Claim of the scopes: words in a text, or a list of words.")
    ] = "scope"


def principal_of(
    stated: Mapping[str, Any],
    names: Claims,
    *,
    now: float,
    leeway: float,
    method: str,
    credential: str | None,
    must_expire: bool,
) -> Principal | Refusal:
    """Return whom the claims prove. `credential` is its id where it states none; by default the user."""
    expires, begins = stated.get("exp"), stated.get("nbf", 0)
    if not (_is_time(expires) or (expires is None and not must_expire)) or not _is_time(begins):
        return UNUSABLE
    if expires is not None and expires + leeway <= now:
        return EXPIRED
    if begins - leeway > now:
        return EARLY
    organization, user = stated.get(names.organization), stated.get(names.user)
    # A token without a tier is a whole credential with a tier that no file names: the tier step refuses it.
    tier = stated.get(names.tier, "")
    scopes = stated.get(names.scopes, "")
    if isinstance(scopes, str):
        scopes = scopes.split()
    if (
        not is_name(organization)
        or not is_name(user)
        or not (tier == "" or is_name(tier))
        or not isinstance(scopes, list)
        or not all(is_name(scope) for scope in scopes)
    ):
        return UNUSABLE
    token_id = stated.get("jti")
    return Principal(
        organization=organization,
        user=user,
        tier=tier,
        scopes=frozenset(scopes),
        method=method,
        credential=token_id if is_name(token_id) else credential or user,
        expires_at=None if expires is None else float(expires + leeway),
    )


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e15 < value < 1e15
