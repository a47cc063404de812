"""Who may do what to which keys: the operator to all, an organisation's administrator within what he himself has."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Generic, TypeVar

from openclaw_gateway.api import (
    PRINCIPAL,
    REQUEST_ID,
    TIER,
    By,
    Clock,
    Exchange,
    KeyRecord,
    KeyStore,
    NotGrantable,
    Refused,
    UnknownKey,
    bad_request,
    conflict,
    forbidden,
    not_found,
)
from openclaw_plugins.admin.shapes import (
    Issued,
    Key,
    KeyPage,
    NewKey,
    NewOwnKey,
    Rotation,
    seconds,
    shown,
    shown_once,
)

N = TypeVar("N", bound=NewOwnKey)

#: what cannot be a key's id is never looked up
_id = re.compile(r"[0-9A-Za-z]{1,64}").fullmatch

_UNKNOWN = not_found("no such key")


class Desk(ABC, Generic[N]):
    """What both kinds of administrator do the same way. Every refusal leaves as Refused."""

    def __init__(self, keys: KeyStore, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    @abstractmethod
    def organization_of(self, x: Exchange, asked: str | None) -> str | None:
        """The organisation to which the caller is held; None for all."""

    @abstractmethod
    def grant(self, x: Exchange, asked: N) -> tuple[str, str]:
        """The organisation and the tier of a key that the caller asks for. Raises Refused."""

    @abstractmethod
    def check_power(self, x: Exchange, record: KeyRecord) -> None:
        """Raise Refused where the caller may not be handed a key like this one."""

    async def create(self, x: Exchange, asked: N) -> Issued:
        organization, tier = self.grant(x, asked)
        life = None if asked.expires_in is None else seconds(asked.expires_in)
        if life == 0:
            raise Refused(bad_request("expiresIn: the key would never be good", param="expiresIn"))
        try:
            issued = await self._keys.create(
                organization=organization,
                user=asked.user_id,
                tier=tier,
                scopes=asked.scopes,
                name=asked.name,
                expires_in=life,
                by=_by(x),
            )
        except NotGrantable as error:
            raise Refused(bad_request(str(error))) from None
        return shown_once(issued.record, issued.key, self._now())

    async def list(self, x: Exchange, organization: str | None, *, limit: int, cursor: str | None) -> KeyPage:
        try:
            if cursor is not None and not _id(cursor):
                raise UnknownKey(cursor)
            records = await self._keys.list(self.organization_of(x, organization), limit=limit + 1, after=cursor)
        except UnknownKey:
            raise Refused(bad_request("cursor: not one that this listing gave", param="cursor")) from None
        now = self._now()
        keys = [shown(record, now) for record in records[:limit]]
        return KeyPage(keys=keys, next_cursor=keys[-1].key_id if len(records) > limit else None)

    async def show(self, x: Exchange, key_id: str) -> Key:
        return shown(await self._found(x, key_id), self._now())

    async def rotate(self, x: Exchange, key_id: str, asked: Rotation) -> Issued:
        record = await self._found(x, key_id)
        self.check_power(x, record)
        try:
            issued = await self._keys.rotate(
                key_id, overlap=seconds(asked.overlap), organization=record.organization_id, by=_by(x)
            )
        except UnknownKey:
            raise Refused(conflict("the key is not in force any more, or was rotated already")) from None
        except NotGrantable as error:
            raise Refused(bad_request(str(error))) from None
        return shown_once(issued.record, issued.key, self._now())

    async def revoke(self, x: Exchange, key_id: str) -> None:
        record = await self._found(x, key_id)
        await self._keys.revoke(key_id, organization=record.organization_id, by=_by(x))

    async def _found(self, x: Exchange, key_id: str) -> KeyRecord:
        if not _id(key_id):
            raise Refused(_UNKNOWN)
        try:
            return await self._keys.find(key_id, organization=self.organization_of(x, None))
        except UnknownKey:
            raise Refused(_UNKNOWN) from None

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


class OperatorDesk(Desk[NewKey]):
    """For the scope `admin`: all organisations, every tier, every scope."""

    def organization_of(self, x: Exchange, asked: str | None) -> str | None:
        return asked

    def grant(self, x: Exchange, asked: NewKey) -> tuple[str, str]:
        return asked.organization_id, asked.tier

    def check_power(self, x: Exchange, record: KeyRecord) -> None:
        return None


class OrganizationDesk(Desk[NewOwnKey]):
    """For the scope `keys`: the caller's organisation, his tier, and no scope that he lacks.

    Rotation hands out a key's powers, so it is bound in the same way. Revocation hands out nothing: every key of
    the organisation can be ended.
    """

    def organization_of(self, x: Exchange, asked: str | None) -> str | None:
        return x[PRINCIPAL].organization

    def grant(self, x: Exchange, asked: NewOwnKey) -> tuple[str, str]:
        principal = x[PRINCIPAL]
        lacking = sorted(set(asked.scopes) - principal.scopes)
        if lacking:
            raise Refused(forbidden(f"a key cannot be given a scope that its maker lacks: {', '.join(lacking)}"))
        return principal.organization, x[TIER].name

    def check_power(self, x: Exchange, record: KeyRecord) -> None:
        if record.tier != x[TIER].name or not x[PRINCIPAL].scopes.issuperset(record.scopes):
            raise Refused(forbidden("the key may do more than its rotation by this credential could hand out"))


def _by(x: Exchange) -> By:
    principal = x[PRINCIPAL]
    actor = f"{principal.method}:{principal.organization}/{principal.user}/{principal.credential}"
    return By(actor, x.get(REQUEST_ID))
