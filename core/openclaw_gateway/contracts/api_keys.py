"""What is known of API keys, and the Protocol by which they are administered; a key's text is in `IssuedKey` alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from openclaw_gateway.contracts.conversations import Page
from openclaw_gateway.errors import GatewayError


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a key, but for its digest. Times are in UTC."""

    key_id: str
    organization_id: str
    user_id: str
    tier: str
    scopes: tuple[str, ...] = ()
    name: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    replaced_by: str | None = None

    def state(self, now: datetime) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key with its text, which cannot be had again."""

    key: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"IssuedKey({self.record.key_id})"


class By(msgspec.Struct, frozen=True):
    """Who administers keys: `cli:<user of the machine>` or `<method>:<organisation>/<user>/<credential's id>`."""

    actor: str
    request_id: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One deed: who did what to which key of which organisation. It never holds a secret."""

    audit_id: str
    at: datetime
    actor: str
    action: Literal["key.create", "key.rotate", "key.revoke"]
    organization_id: str
    key_id: str
    request_id: str | None = None
    details: Mapping[str, Any] = {}


class NotGrantable(GatewayError):
    """What was asked for cannot be put into a credential; the text says why, and what is near."""


class UnknownKey(GatewayError):
    """There is no such key, or none that can still be rotated."""


@runtime_checkable
class KeyStore(Protocol):
    """Makes, shows, rotates and ends API keys, and keeps who did so.

    `organization` holds a call to the keys of one organisation; another's are unknown to it. None is for the
    operator. All raise StoreUnavailable.
    """

    async def create(
        self,
        *,
        organization: str,
        user: str,
        tier: str,
        scopes: Iterable[str],
        name: str | None,
        expires_in: float | None,
        by: By,
    ) -> IssuedKey:
        """Make and store a key; `expires_in` is in seconds. Raises NotGrantable."""
        ...

    async def find(self, key_id: str, *, organization: str | None) -> KeyRecord:
        """Return what is known of a key. Raises UnknownKey."""
        ...

    async def list(
        self, organization: str | None, *, limit: int | None = None, after: str | None = None
    ) -> Sequence[KeyRecord]:
        """Return what is known of keys, newest first, after the key `after`; never a key or its digest.

        Raises UnknownKey where there is no key `after`.
        """
        ...

    async def rotate(self, key_id: str, *, overlap: float, organization: str | None, by: By) -> IssuedKey:
        """Make a key that may do the same, and end the old one after `overlap` seconds. Raises UnknownKey."""
        ...

    async def revoke(self, key_id: str, *, organization: str | None, by: By) -> None:
        """End a key at once: here immediately, on every replica in less than a second. Raises UnknownKey."""
        ...

    async def audit(self, organization: str | None, *, limit: int, cursor: str | None) -> Page:
        """Return a page of AuditEntry, newest first. Raises Refused for a cursor that is none."""
        ...
