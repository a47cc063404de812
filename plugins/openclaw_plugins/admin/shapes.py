"""The JSON of key administration: strict on the way in, and without secrets on the way out, but for `Issued`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from openclaw_gateway.api import AuditEntry, Duration, KeyRecord

_CENTURY = 3_155_760_000
_DURATION = Annotated[str, Meta(pattern=Duration.__pattern__, max_length=32)]

Name = Annotated[str, Meta(min_length=1, max_length=255)]
#: whole seconds, or a text with a unit as everywhere in configuration
Life = Annotated[int, Meta(ge=1, le=_CENTURY)] | _DURATION
Overlap = Annotated[int, Meta(ge=0, le=_CENTURY)] | _DURATION


class NewOwnKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The body of POST /keys. Organisation and tier are the caller's."""

    user_id: Annotated[Name, Meta(description="User that the key speaks for.")]
    scopes: Annotated[
        tuple[Name, ...], Meta(max_length=100, description="Scopes to grant, of those that the caller has.")
    ] = ()
    name: Annotated[Name | None, Meta(description="A note by which to know the key again.")] = None
    expires_in: Annotated[
        Life | None, Meta(description='How long it is good: seconds, or "90d" say. For ever by default.')
    ] = None


class NewKey(NewOwnKey, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The body of POST /admin/keys."""

    organization_id: Annotated[Name, Meta(description="Organisation that the key speaks for.")]
    tier: Annotated[Name, Meta(description="Tier, by the name of its file.")]


class Rotation(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The body of POST .../{id}/rotate."""

    overlap: Annotated[
        Overlap, Meta(description='How long the old key stays good: seconds, or "1h" say; a day by default.')
    ] = "24h"


class Key(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is known of a key. The key itself is not."""

    key_id: str
    organization_id: str
    user_id: str
    tier: str
    scopes: tuple[str, ...]
    name: str | None
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: Annotated[datetime | None, Meta(description="Written now and then, so up to a minute old.")]
    revoked_at: datetime | None
    replaced_by: Annotated[str | None, Meta(description="The key that took its place when it was rotated.")]


class Issued(Key, frozen=True, kw_only=True, rename="camel"):
    """A new key."""

    key: Annotated[str, Meta(description="The key, shown this once.")]


class KeyPage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A page of keys, newest first."""

    keys: list[Key]
    next_cursor: str | None


class AuditPage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A page of what was done to keys, newest first."""

    entries: list[AuditEntry]
    next_cursor: str | None


def seconds(given: int | str) -> float:
    """Read a length of time that has passed decoding."""
    return float(given) if isinstance(given, int) else float(Duration.parse(given))


def shown(record: KeyRecord, now: datetime) -> Key:
    return Key(**msgspec.structs.asdict(record), state=record.state(now))


def shown_once(record: KeyRecord, key: str, now: datetime) -> Issued:
    return Issued(**msgspec.structs.asdict(record), state=record.state(now), key=key)
