"""Counts rates and leases in Redis or Valkey, for all replicas together: one script call an admission.

Where the store does not answer, each limit's `on_backend_failure` decides; where it is merely full of calls of this
process, the request is refused with 503. It never asks twice whether something was charged.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from prometheus_client import Gauge

from openclaw_gateway.api import (
    Balance,
    Correction,
    Duration,
    Fact,
    Host,
    PluginConfig,
    Prepared,
    Redis,
    StoreBusy,
    StoreUnavailable,
    Take,
    hookimpl,
    needs,
)
from openclaw_plugins.counters.redis_fallback import Fallback, turned_away

_ADMIT = files(__package__).joinpath("redis_admit.lua").read_text()
_CORRECT = files(__package__).joinpath("redis_correct.lua").read_text()
_RENEW = files(__package__).joinpath("redis_renew.lua").read_text()
#: encoded admissions that are kept: one for each organisation and plan that has no subject but the organisation
_KEPT = 10_000


class RedisCounters:
    """Decides an admission in one step of the store, by the store's clock.

    A tally is kept by organisation, subject, limit, algorithm and window; all keys of an organisation share one hash
    tag, so that they lie on one node of a cluster.
    """

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.counters]`"""

        redis: Annotated[str, needs(Redis), Meta(description="Id of the plugin that holds the connection.")] = "redis"
        replicas: Annotated[
            int,
            Meta(
                ge=1,
                description="Most replicas that ever serve at once. While the store does not answer, each worker of "
                "each admits its share of a limit whose `on_backend_failure` is local.",
            ),
        ] = 1
        lease_ttl: Annotated[
            Duration, Meta(description="How long a lease (an open WebSocket) lives if its holder does not renew it.")
        ] = Duration(30)

    shared: ClassVar[bool] = True
    #: the scripts; a test may put a clock of its own into them
    admit_script = _ADMIT
    renew_script = _RENEW
    correct_script = _CORRECT

    def __init__(self, config: Config, host: Host) -> None:
        self._redis = host.get(config.redis, Redis)
        self._lease_ttl = float(config.lease_ttl)
        self._ttl = round(config.lease_ttl * 1000)
        self._evicts: str | None = None
        self._fallback = Fallback(host, config.lease_ttl, config.replicas * host.settings.workers)
        #: by organisation and the identity of its takes, which are kept along so that no others can have it
        self._prepared: dict[tuple[str, int], tuple[Sequence[Take], Prepared]] = {}
        degraded = host.metric(
            Gauge,
            "ledger_degraded",
            "1 while an account does not answer and failure policies decide.",
            ("backend",),
            multiprocess_mode="max",
        )
        degraded.labels(host.id).set_function(lambda: float(self._redis.degraded))

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._evicts = await self._eviction()
        yield

    @hookimpl
    def notices(self) -> Sequence[str]:
        if self._evicts is None:
            return []
        return [
            f"the store of limits evicts keys when it is full (maxmemory-policy {self._evicts}): "
            "a limit whose key is evicted begins anew; set noeviction, and keep caches elsewhere"
        ]

    async def _eviction(self) -> str | None:
        """Return the policy by which a node may drop keys; None where it drops none, or may not be asked."""
        try:
            told = await self._redis.call(None, "INFO", "memory")
        except StoreUnavailable:
            return None
        text = told.decode("ascii", "replace") if isinstance(told, bytes) else str(told)
        facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        policy = facts.get("maxmemory_policy", "noeviction")
        return None if facts.get("maxmemory", "0") == "0" or policy == "noeviction" else policy

    @property
    def lease_ttl(self) -> float:
        return self._lease_ttl

    async def admit(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        if not takes:
            return ()
        try:
            numbers = await self._redis.run(self._admission(organization, takes))
        except StoreBusy:
            return turned_away(takes)
        except StoreUnavailable:
            return await self._fallback.admit(organization, takes)
        return _balances(takes, numbers)

    async def peek(self, organization: str, takes: Sequence[Take]) -> Sequence[Balance]:
        if not takes:
            return ()
        numbers = await self._redis.run(self._prepare(organization, takes, look=True))
        return _balances(takes, numbers)

    async def correct(self, organization: str, corrections: Sequence[Correction]) -> None:
        here = [correction for correction in corrections if correction.degraded]
        if here:
            await self._fallback.correct(organization, here)
        keys: list[str] = []
        arguments: list[str | int] = []
        for correction in corrections:
            if not correction.degraded:
                limit = correction.limit
                keys.append(self._key(organization, Take(limit, correction.subject)))
                arguments += (limit.algorithm, limit.limit, round(limit.window * 1000))
                arguments += (correction.amount, correction.at)
        if keys:
            await self._redis.run(self._redis.prepare(self.correct_script, keys, arguments))

    async def release(self, organization: str, takes: Sequence[Take]) -> None:
        await self._fallback.release(organization, takes)
        for take in takes:
            if take.lease is not None:
                key = self._key(organization, take)
                try:
                    await self._redis.call(key, "ZREM", key, take.lease)
                except StoreUnavailable:
                    return  # it expires

    async def renew(self, organization: str, takes: Sequence[Take]) -> bool:
        leases = [take for take in takes if take.lease is not None]
        if not leases:
            return True
        keys = [self._key(organization, take) for take in leases]
        arguments: list[str | int] = []
        for take in leases:
            assert take.lease is not None
            arguments += (take.lease, self._ttl, int(self._fallback.joins(take)))
        try:
            held = await self._redis.run(self._redis.prepare(self.renew_script, keys, arguments))
        except StoreUnavailable as error:
            if isinstance(error, StoreBusy) or not await self._fallback.renew(organization, leases):
                raise
            return True
        await self._fallback.release(organization, leases)
        return all(held[i] or take.limit.mode == "shadow" for i, take in enumerate(leases))

    def _admission(self, organization: str, takes: Sequence[Take]) -> Prepared:
        """Encode an admission; one that is the same object each time, as a plan's is, is encoded once."""
        if type(takes) is not tuple:
            return self._prepare(organization, takes)
        place = (organization, id(takes))
        kept = self._prepared.get(place)
        if kept is not None:
            return kept[1]
        prepared = self._prepare(organization, takes)
        if all(take.lease is None for take in takes):
            if len(self._prepared) >= _KEPT:
                del self._prepared[next(iter(self._prepared))]
            self._prepared[place] = (takes, prepared)
        return prepared

    def _prepare(self, organization: str, takes: Sequence[Take], *, look: bool = False) -> Prepared:
        arguments: list[str | int] = ["look" if look else "charge"]
        for take in takes:
            limit = take.limit
            enforced = int(limit.mode == "enforce")
            if limit.kind == "lease":
                arguments += ("lease", limit.limit, self._ttl, "" if look else take.lease or "", enforced)
                continue
            height: str | int = limit.limit
            if limit.algorithm == "gcra":
                height = f"{limit.limit} {limit.effective_burst()}"
            amount = 0 if look else take.amount
            arguments += (limit.algorithm, height, round(limit.window * 1000), amount, enforced)
        keys = [self._key(organization, take) for take in takes]
        return self._redis.prepare(self.admit_script, keys, arguments)

    def _key(self, organization: str, take: Take) -> str:
        limit = take.limit
        tally = _digest(f"{limit.name}\n{limit.algorithm}\n{limit.window}\n{take.subject}")
        return f"{self._redis.prefix}{{{_digest(organization)}}}:{tally}"


def _balances(takes: Sequence[Take], numbers: Sequence[int]) -> list[Balance]:
    waits = numbers[::4]
    if not any(waits):  # nearly always
        each = iter(numbers)
        return [
            Balance(
                limit=take.limit, used=used, reset_after=None if take.limit.kind == "lease" else reset / 1000, at=at
            )
            for take, _, used, reset, at in zip(takes, each, each, each, each, strict=True)
        ]
    rates_fit = True
    for take, wait in zip(takes, waits, strict=True):
        if wait and take.limit.kind != "lease" and take.limit.mode == "enforce":
            rates_fit = False
    balances = []
    for i, take in enumerate(takes):
        limit = take.limit
        wait, used, reset, at = numbers[4 * i : 4 * i + 4]
        lease = limit.kind == "lease"
        reset_after = None if lease else reset / 1000
        if wait and (rates_fit or not lease):
            refused = limit.mode == "enforce"
            retry_after = wait / 1000 if wait > 0 else limit.window
            balances.append(
                Balance(limit=limit, used=used, refused=refused, reset_after=reset_after, retry_after=retry_after)
            )
        else:
            balances.append(Balance(limit=limit, used=used, reset_after=reset_after, at=at))
    return balances


@lru_cache(maxsize=20_000)
def _digest(text: str) -> str:
    """A name that no organisation or user can make collide with another's or put a brace into."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
