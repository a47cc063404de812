"""Finds out whom an API key proves: form, then memory, then the store. It says nothing of why a key is not good."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from openclaw_gateway.api import Clock, Principal, Refusal, unauthorized
from openclaw_plugins.auth import keys
from openclaw_plugins.auth.cache import Verified, fingerprint
from openclaw_plugins.auth.peppers import Peppers
from openclaw_plugins.auth.records import KeyRecords
from openclaw_plugins.auth.single_flight import SingleFlight

#: one text for unknown, expired and revoked: a caller learns nothing of keys that are not his
REFUSED = unauthorized("the API key is not valid")


class KeyCheck:
    """Checks keys, and remembers good ones for `ttl` seconds: as long as a revocation elsewhere takes to hold here."""

    __slots__ = ("_clock", "_records", "_settled", "_ttl", "flights", "verified")

    def __init__(
        self, records: KeyRecords, clock: Clock, *, ttl: float, size: int, settled: Callable[[], Awaitable[None]]
    ) -> None:
        self._records = records
        self._clock = clock
        self._ttl = ttl
        #: waits until keys that were shown are stored
        self._settled = settled
        self.verified = Verified(size)
        self.flights: SingleFlight[Principal | Refusal] = SingleFlight()

    def known(self, credential: bytes) -> Principal | None:
        """Return whom a key proves that was found good of late; None for every other."""
        if len(credential) != keys.LENGTH:
            return None
        principal = self.verified.get(fingerprint(credential), self._clock.monotonic())
        if principal is None or (principal.expires_at is not None and principal.expires_at <= self._clock.now()):
            return None
        return principal

    async def found(self, credential: bytes, peppers: Peppers) -> Principal | Refusal:
        """Ask the store whom a key proves that is not `known`; return that, or the one refusal.

        Raises StoreUnavailable.
        """
        key_id = keys.key_id(credential)
        if key_id is None:
            return REFUSED
        mark = fingerprint(credential)
        found = await self.flights.join(mark, lambda: self._looked_up(mark, key_id, credential, peppers))
        if isinstance(found, Principal) and found.expires_at is not None and found.expires_at <= self._clock.now():
            return REFUSED
        return found

    async def _looked_up(self, mark: bytes, key_id: str, credential: bytes, peppers: Peppers) -> Principal | Refusal:
        await self._settled()
        asked = self._clock.monotonic()
        stored = await self._records.find(key_id)
        computed, known = peppers.digest_as_stored(credential, stored.pepper_version if stored is not None else None)
        same = hmac.compare_digest(computed, stored.digest if stored is not None else bytes(32))
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        if stored is None or not known or not same or stored.record.state(now) != "active":
            return REFUSED
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
        self.verified.put(mark, principal, asked + self._ttl)
        return principal
