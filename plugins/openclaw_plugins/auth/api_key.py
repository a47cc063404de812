"""Recognises API keys, and makes, rotates and revokes them; it stores digests and shows a key only once.

A key is remembered for less than a second, so that a revocation holds on every replica within that time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import (
    By,
    Database,
    Duration,
    Exchange,
    Fact,
    Host,
    IssuedKey,
    KeyRecord,
    NotGrantable,
    Page,
    PluginConfig,
    Principal,
    Refusal,
    Secret,
    UnknownKey,
    hookimpl,
    needs,
)
from openclaw_plugins.auth import audit, keys
from openclaw_plugins.auth.credentials import KEY_PREFIX, bearer
from openclaw_plugins.auth.development_key import DevelopmentKey
from openclaw_plugins.auth.grants import check_grant
from openclaw_plugins.auth.kept_secret import kept_secret
from openclaw_plugins.auth.key_check import KeyCheck
from openclaw_plugins.auth.last_used import LastUsed
from openclaw_plugins.auth.peppers import Peppers, check_pepper
from openclaw_plugins.auth.records import KeyRecords, Stored

_GATEWAY = By("gateway")


class ApiKeys:
    """Checks the keys of `X-API-Key` and of bearer tokens that begin with `ocg_`."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        database: Annotated[str, needs(Database), Meta(description="Id of the database that holds the keys.")] = (
            "database"
        )
        pepper: Annotated[
            Secret | None,
            Meta(
                description="Secret under which keys are hashed, 32 bytes or more; by default one made in data_dir, "
                "which other machines then do not have."
            ),
        ] = None
        pepper_version: Annotated[int, Meta(ge=1, description="Raise it by one when `pepper` is changed.")] = 1
        previous_pepper: Annotated[
            Secret | None, Meta(description="The pepper of the version before, while keys made under it are in use.")
        ] = None
        cache_ttl: Annotated[
            Duration,
            Meta(description='How long a good key is remembered, and so outlives its revocation; at most "1s".'),
        ] = Duration(0.8)
        cache_size: Annotated[int, Meta(ge=1, description="How many good keys are remembered.")] = 10_000
        last_used_every: Annotated[Duration, Meta(description="How often times of last use are written.")] = Duration(
            30
        )
        development_key: Annotated[
            bool, Meta(description="On SQLite without any key: make one at the first start and show it once.")
        ] = True

    def __init__(self, config: Config, host: Host) -> None:
        if config.cache_ttl > 1:
            raise ValueError('cache_ttl: longer than "1s", so a revoked key would be accepted for too long')
        for field, pepper in (("pepper", config.pepper), ("previous_pepper", config.previous_pepper)):
            if pepper is not None:
                check_pepper(field, pepper.reveal())
        self._config = config
        self._host = host
        self._clock = host.clock
        self._database = host.get(config.database, Database)
        self._records = KeyRecords(self._database)
        self._peppers: Peppers
        self._last_used = LastUsed(self._records, host.clock, host.logger)
        self._development = DevelopmentKey(host, self._new, self._store)
        self._check = KeyCheck(
            self._records,
            host.clock,
            ttl=config.cache_ttl,
            size=config.cache_size,
            settled=self._development.stored,
        )

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._peppers = self._load_peppers()
        if self._config.development_key and self._database.dialect == "sqlite":
            await self._development.look(self._records)
        async with self._last_used.written(every=self._config.last_used_every):
            try:
                yield
            finally:
                await self._development.stored()

    @hookimpl
    def notices(self) -> list[str]:
        return self._development.notices()

    async def authenticate(self, x: Exchange) -> Principal | Refusal | None:
        credential = x.header(b"x-api-key")
        if credential is None:
            credential = bearer(x)
            if credential is None or not credential.startswith(KEY_PREFIX):
                return None
        found = self._check.known(credential) or await self._check.found(credential, self._peppers)
        if isinstance(found, Principal):
            self._last_used.note(found.credential)
        return found

    async def ended(self, principals: Collection[Principal]) -> Collection[Principal]:
        """Return those whose key is revoked, expired or gone."""
        mine = [principal for principal in principals if principal.method == "api_key"]
        if not mine:
            return ()
        await self._development.stored()
        good = await self._records.in_force({principal.credential for principal in mine}, self._now())
        gone = [principal for principal in mine if principal.credential not in good]
        for principal in gone:
            # Its sockets close now: nobody should see its requests pass a moment longer.
            self._check.verified.drop(principal.credential)
        return gone

    # --- for operators --------------------------------------------------------------------------

    async def create(
        self,
        *,
        organization: str,
        user: str,
        tier: str,
        scopes: Iterable[str] = (),
        name: str | None = None,
        expires_in: float | None = None,
        by: By = _GATEWAY,
    ) -> IssuedKey:
        """Make and store a key. Raises NotGrantable, StoreUnavailable."""
        issued = self._new(
            organization=organization,
            user=user,
            tier=tier,
            scopes=scopes,
            name=name,
            expires_at=None if expires_in is None else _later(self._now(), expires_in),
        )
        await self._store(issued, by)
        return issued

    async def find(self, key_id: str, *, organization: str | None = None) -> KeyRecord:
        """Return what is known of a key. Raises UnknownKey, as for a key of another organisation."""
        found = await self._records.find(key_id)
        if found is None or organization not in (None, found.record.organization_id):
            raise UnknownKey(f"no key {key_id!r}")
        return found.record

    async def list(
        self, organization: str | None = None, *, limit: int | None = None, after: str | None = None
    ) -> Sequence[KeyRecord]:
        """Return what is known of the keys of an organisation, or of all; never a key or its digest."""
        return await self._records.listed(organization, limit, after)

    async def rotate(
        self, key_id: str, *, overlap: float, organization: str | None = None, by: By = _GATEWAY
    ) -> IssuedKey:
        """Make a key that may do the same, and end the old one after `overlap` seconds. Raises UnknownKey."""
        old = await self.find(key_id, organization=organization)
        now = self._now()
        ends = _later(now, overlap)
        overtaken = UnknownKey(f"no key {key_id!r} that is in force and not rotated yet")
        if old.state(now) != "active" or old.replaced_by is not None:
            raise overtaken
        issued = self._new(
            organization=old.organization_id,
            user=old.user_id,
            tier=old.tier,
            scopes=old.scopes,
            name=old.name,
            expires_at=old.expires_at,
        )
        successor = issued.record.key_id
        entry = audit.deed("key.rotate", old, by, now, replacedBy=successor, overlapSeconds=overlap)
        if not await self._records.replace(key_id, self._stored(issued), entry, expires_at=ends):
            raise overtaken
        self._check.verified.drop(key_id)
        return issued

    async def revoke(self, key_id: str, *, organization: str | None = None, by: By = _GATEWAY) -> None:
        """End a key at once: here immediately, on other replicas within `cache_ttl`. Raises UnknownKey."""
        record = await self.find(key_id, organization=organization)
        await self._records.revoke(key_id, audit.deed("key.revoke", record, by, self._now()))
        self._check.verified.drop(key_id)

    async def audit(self, organization: str | None = None, *, limit: int = 50, cursor: str | None = None) -> Page:
        """Return a page of what was done to keys, newest first."""
        return await audit.page(self._database, organization, limit=limit, cursor=cursor)

    # --- making ---------------------------------------------------------------------------------

    def _new(
        self,
        *,
        organization: str,
        user: str,
        tier: str,
        scopes: Iterable[str] = (),
        name: str | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedKey:
        scopes = tuple(dict.fromkeys(scopes))
        check_grant(self._host.tiers, organization=organization, user=user, tier=tier, scopes=scopes)
        key_id, key = keys.new_key()
        record = KeyRecord(
            key_id=key_id,
            organization_id=organization,
            user_id=user,
            tier=tier,
            scopes=scopes,
            name=name,
            created_at=self._now(),
            expires_at=expires_at,
        )
        return IssuedKey(key=key, record=record)

    async def _store(self, issued: IssuedKey, by: By = _GATEWAY) -> None:
        record = issued.record
        entry = audit.deed("key.create", record, by, record.created_at, **audit.grants(record))
        await self._records.add(self._stored(issued), entry)

    def _stored(self, issued: IssuedKey) -> Stored:
        return Stored(issued.record, self._peppers.digest(issued.key.encode("ascii")), self._peppers.version)

    def _load_peppers(self) -> Peppers:
        config = self._config
        if config.pepper is not None:
            current = config.pepper.reveal().encode()
        else:
            current = kept_secret(self._host.data_dir / "api_key.pepper", self._host.logger)
            if self._database.shared:
                self._host.logger.warning(
                    "keys in a shared database are hashed under a pepper of this machine alone; "
                    "set `pepper` before a second replica starts"
                )
        previous = config.previous_pepper.reveal().encode() if config.previous_pepper is not None else None
        return Peppers(config.pepper_version, current, previous)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)


def _later(now: datetime, seconds: float) -> datetime:
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        raise NotGrantable("the expiry lies too far ahead for a date") from None
