"""The public keys that an issuer serves under one URL: fetched ahead, refreshed in the background, kept in an outage.

No token makes it ask another address, and tokens with invented key ids make it ask this one only now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

from msgspec import Meta

from openclaw_gateway.api import Duration, Host, PluginConfig, StoreUnavailable
from openclaw_plugins.auth.remote import Remote, check_url
from openclaw_plugins.auth.token_keys import ServedKeys, served_keys

_LARGEST: Final = 262_144
#: while there is no good key, between two attempts that requests cause
_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 60.0
_LONGEST_KEEP: Final = 86_400


class KeySet(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.<id>.jwks]`: public keys that the issuer serves as a JSON Web Key Set."""

    url: Annotated[str, Meta(pattern="^https?://", description="Its fixed address; http on a loopback address only.")]
    refresh: Annotated[Duration, Meta(description="How often it is fetched.")] = Duration(600)
    timeout: Annotated[
        Duration, Meta(description="For one fetch; shorter than the time-out of the step that waits for it.")
    ] = Duration(3)
    keep: Annotated[
        Duration, Meta(description='How long the last good keys are used while it cannot be fetched; at most "24h".')
    ] = Duration(86_400)
    unknown_key: Annotated[
        Duration, Meta(description="Least time between two fetches that tokens with an unknown `kid` cause.")
    ] = Duration(10)


class KeySource:
    """The keys as they were last served. Raises StoreUnavailable where it cannot know, and never guesses."""

    def __init__(
        self, config: KeySet, algorithms: Sequence[str], host: Host, *, field: str, changed: Callable[[], None]
    ) -> None:
        check_url(f"{field}.url", config.url)
        if config.keep > _LONGEST_KEEP:
            raise ValueError(f'{field}.keep: longer than "24h", so a withdrawn key would be believed for too long')
        if config.refresh < 1:
            raise ValueError(f'{field}.refresh: shorter than "1s"')
        self._config = config
        self._algorithms = tuple(algorithms)
        self._clock = host.clock
        self._logger = host.logger
        #: called when a key has changed or gone: what it verified is then not to be remembered
        self._changed = changed
        self._remote = Remote(
            config.url, host, name="key source", operation="jwks", timeout=config.timeout, max_bytes=_LARGEST
        )
        self._keys: ServedKeys = {}
        self._fetched = self._asked = float("-inf")
        self._failing: StoreUnavailable | None = None
        self._fetch: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Fetch, and keep fetching. An outage at the start is no reason not to start: keys may come later."""
        async with self._remote.opened():
            await self._fetched_once()
            refresher = asyncio.create_task(self._refresh())
            try:
                yield
            finally:
                tasks = [refresher] + ([self._fetch] if self._fetch is not None else [])
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def key(self, kid: str | None, algorithm: str) -> Any:
        """Return the key for a token, or None where there is none. Raises StoreUnavailable."""
        if not self._knows(kid):
            wait = self._config.unknown_key if self._good else min(_RETRY, self._config.unknown_key)
            if self._fetch is not None or self._clock.monotonic() - self._asked >= wait:
                await self._fetched_once()
            if not self._knows(kid) and (self._failing is not None or not self._good):
                raise StoreUnavailable(self._remote.name, "it cannot be asked for the key of a token")
        return _of(self._keys, kid, algorithm) if self._good else None

    async def probe(self) -> Mapping[str, Any]:
        """Say how the keys stand. Raises StoreUnavailable where they are missing, or older than they should be."""
        if self._failing is not None:
            raise StoreUnavailable(self._remote.name, str(self._failing))
        return {"keys": len(self._keys), "ageSeconds": round(self._clock.monotonic() - self._fetched)}

    @property
    def _good(self) -> bool:
        return bool(self._keys) and self._clock.monotonic() - self._fetched < self._config.keep

    def _knows(self, kid: str | None) -> bool:
        if not self._good:
            return False
        return kid is None or any(known in (kid, None) for known, _ in self._keys)

    async def _refresh(self) -> None:
        retry = 1.0
        while True:
            if self._failing is None:
                retry = 1.0
                await asyncio.sleep(self._config.refresh)
            else:
                await asyncio.sleep(min(retry, self._config.refresh))
                retry = min(2 * retry, _LONGEST_RETRY)
            await self._fetched_once()

    async def _fetched_once(self) -> None:
        """Fetch, or wait for the fetch that is on its way; who stops waiting does not stop it for others."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._fetch_now())
            self._fetch.add_done_callback(self._landed)
        # A fetch ends by itself alone, or with the gateway.
        await asyncio.shield(self._fetch)

    def _landed(self, fetch: asyncio.Task[None]) -> None:
        self._fetch = None
        with contextlib.suppress(asyncio.CancelledError):
            if (error := fetch.exception()) is not None:
                self._logger.error("fetching the keys of tokens failed", exc_info=error)

    async def _fetch_now(self) -> None:
        self._asked = self._clock.monotonic()
        try:
            text = await self._remote.ask("GET")
            try:
                keys = served_keys(text, self._algorithms)
            except ValueError as error:
                raise self._remote.failed("unreadable", str(error)) from None
        except StoreUnavailable as error:
            if self._failing is None:
                self._logger.warning("the keys of tokens cannot be fetched", extra={"fields": {"reason": str(error)}})
            self._failing = error
            return
        if self._failing is not None:
            self._logger.info("the keys of tokens can be fetched again")
        self._failing = None
        before, self._keys, self._fetched = self._keys, keys, self._clock.monotonic()
        if any(keys.get(name) != key for name, key in before.items()):
            self._changed()


def _of(keys: ServedKeys, kid: str | None, algorithm: str) -> Any:
    if kid is None:
        # A token may leave out its key's id where no choice is left.
        fitting = [key for (_, known), key in keys.items() if known == algorithm]
        return fitting[0] if len(fitting) == 1 else None
    found = keys.get((kid, algorithm))
    return found if found is not None else keys.get((None, algorithm))
