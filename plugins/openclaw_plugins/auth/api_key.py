"""Recognises API keys, and makes, rotates and revokes them; it stores digests and shows a key only once.

A key is remembered for less than a second, so that a revocation holds on every replica within that time.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import (
    Database,
    Duration,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    Principal,
    Refusal,
    Secret,
    StoreUnavailable,
    hookimpl,
    needs,
    unauthorized,
)
from openclaw_plugins.auth import keys
from openclaw_plugins.auth.cache import Verified, fingerprint
from openclaw_plugins.auth.credentials import KEY_PREFIX, bearer
from openclaw_plugins.auth.development_key import DevelopmentKey
from openclaw_plugins.auth.grants import NotGrantable, UnknownKey, check_grant
from openclaw_plugins.auth.kept_secret import kept_secret
from openclaw_plugins.auth.last_used import LastUsed
from openclaw_plugins.auth.records import IssuedKey, KeyRecord, KeyRecords, Stored

#: one text for unknown, expired and revoked: a caller learns nothing of keys that are not his
_REFUSED = unauthorized("the API key is not valid")


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
            if pepper is not None and len(pepper.reveal().encode()) < 32:
                raise ValueError(f"{field}: shorter than 32 bytes")
        self._config = config
        self._host = host
        self._clock = host.clock
        self._database = host.get(config.database, Database)
        self._records = KeyRecords(self._database)
        self._verified = Verified(config.cache_size)
        self._flights: dict[bytes, asyncio.Future[Principal | Refusal | StoreUnavailable | None]] = {}
        self._peppers: dict[int, bytes] = {}
        self._last_used = LastUsed(self._records, host.clock, host.logger)
        self._development = DevelopmentKey(host, self._new, self._store)

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
        if len(credential) != keys.LENGTH:
            return _REFUSED
        mark = fingerprint(credential)
        found: Principal | Refusal | None = self._verified.get(mark, self._clock.monotonic())
        if found is None:
            key_id = keys.key_id(credential)
            if key_id is None:
                return _REFUSED
            found = await self._check_once(mark, key_id, credential)
        if isinstance(found, Principal):
            if found.expires_at is not None and found.expires_at <= self._clock.now():
                return _REFUSED
            self._last_used.note(found.credential)
        return found

    async def ended(self, principals: Collection[Principal]) -> Collection[Principal]:
        """Return those whose key is revoked, expired or gone."""
        mine = [principal for principal in principals if principal.method == "api_key"]
        if not mine:
            return ()
        await self._development.stored()
        good = await self._records.in_force({principal.credential for principal in mine}, self._now())
        return [principal for principal in mine if principal.credential not in good]

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
    ) -> IssuedKey:
        """Make and store a key. Raises NotGrantable, StoreUnavailable."""
        issued = self._new(
            organization=organization, user=user, tier=tier, scopes=scopes, name=name, expires_in=expires_in
        )
        await self._store(issued)
        return issued

    async def list(self, organization: str | None = None) -> Sequence[KeyRecord]:
        """Return what is known of the keys of an organisation, or of all; never a key or its digest."""
        return await self._records.all(organization)

    async def rotate(self, key_id: str, *, overlap: float) -> IssuedKey:
        """Make a key that may do the same, and end the old one after `overlap` seconds. Raises UnknownKey."""
        found = await self._records.find(key_id)
        now = self._now()
        if found is None or found.record.state(now) != "active" or found.record.replaced_by is not None:
            raise UnknownKey(f"no key {key_id!r} that is in force and not rotated yet")
        old = found.record
        remaining = None if old.expires_at is None else (old.expires_at - now).total_seconds()
        issued = self._new(
            organization=old.organization_id,
            user=old.user_id,
            tier=old.tier,
            scopes=old.scopes,
            name=old.name,
            expires_in=remaining,
        )
        if not await self._records.replace(key_id, self._stored(issued), expires_at=now + timedelta(seconds=overlap)):
            raise UnknownKey(f"no key {key_id!r} that is in force and not rotated yet")
        self._verified.drop(key_id)
        return issued

    async def revoke(self, key_id: str) -> None:
        """End a key at once: here immediately, on other replicas within `cache_ttl`. Raises UnknownKey."""
        if not await self._records.revoke(key_id, self._now()):
            raise UnknownKey(f"no key {key_id!r}")
        self._verified.drop(key_id)

    # --- checking -------------------------------------------------------------------------------

    async def _check_once(self, mark: bytes, key_id: str, credential: bytes) -> Principal | Refusal:
        """Look a key up once for all requests that bring it at the same moment."""
        while (flight := self._flights.get(mark)) is not None:
            answer = await asyncio.shield(flight)
            if isinstance(answer, StoreUnavailable):
                raise StoreUnavailable(answer.store, "the look-up that this request joined failed")
            if answer is not None:
                return answer
            # The request that asked was cancelled before it knew: ask anew.
        flight = asyncio.get_running_loop().create_future()
        self._flights[mark] = flight
        answer = None
        try:
            answer = await self._check(mark, key_id, credential)
            return answer
        except StoreUnavailable as error:
            answer = error
            raise
        finally:
            del self._flights[mark]
            flight.set_result(answer)

    async def _check(self, mark: bytes, key_id: str, credential: bytes) -> Principal | Refusal:
        await self._development.stored()
        asked = self._clock.monotonic()
        stored = await self._records.find(key_id)
        pepper = self._peppers.get(stored.pepper_version) if stored is not None else None
        # An unknown key is hashed and compared too, so that it takes as long to refuse as a revoked one.
        computed = keys.digest(pepper or self._pepper, credential)
        same = hmac.compare_digest(computed, stored.digest if stored is not None else bytes(32))
        if stored is None or pepper is None or not same or stored.record.state(self._now()) != "active":
            return _REFUSED
        record = stored.record
        principal = Principal(
            organization=record.organization_id,
            user=record.user_id,
            tier=record.tier,
            scopes=frozenset(record.scopes),
            method="api_key",
            credential=record.key_id,
            expires_at=record.expires_at.timestamp() if record.expires_at is not None else None,
        )
        self._verified.put(mark, principal, asked + self._config.cache_ttl)
        return principal

    # --- making ---------------------------------------------------------------------------------

    def _new(
        self,
        *,
        organization: str,
        user: str,
        tier: str,
        scopes: Iterable[str] = (),
        name: str | None = None,
        expires_in: float | None = None,
    ) -> IssuedKey:
        scopes = tuple(dict.fromkeys(scopes))
        check_grant(self._host.tiers, organization=organization, user=user, tier=tier, scopes=scopes)
        key_id, key = keys.new_key()
        now = self._now()
        try:
            expires_at = None if expires_in is None else now + timedelta(seconds=expires_in)
        except OverflowError:
            raise NotGrantable("the expiry lies too far ahead for a date") from None
        record = KeyRecord(
            key_id=key_id,
            organization_id=organization,
            user_id=user,
            tier=tier,
            scopes=scopes,
            name=name,
            created_at=now,
            expires_at=expires_at,
        )
        return IssuedKey(key=key, record=record)

    async def _store(self, issued: IssuedKey) -> None:
        await self._records.add(self._stored(issued))

    def _stored(self, issued: IssuedKey) -> Stored:
        digest = keys.digest(self._pepper, issued.key.encode("ascii"))
        return Stored(issued.record, digest, self._config.pepper_version)

    @property
    def _pepper(self) -> bytes:
        return self._peppers[self._config.pepper_version]

    def _load_peppers(self) -> dict[int, bytes]:
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
        peppers = {config.pepper_version: current}
        if config.previous_pepper is not None:
            peppers[config.pepper_version - 1] = config.previous_pepper.reveal().encode()
        return peppers

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)
