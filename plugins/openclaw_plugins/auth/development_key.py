"""The key with which a new embedded gateway can be tried at once; made where it is shown, and shown once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from openclaw_gateway.api import Host, IssuedKey, StoreUnavailable
from openclaw_plugins.auth.records import KeyRecords

_NAME = "development"
_OWNER = "dev"


class DevelopmentKey:
    """Finds out whether this is the first start, and makes the key when the gateway turns out to serve."""

    __slots__ = ("_first_start", "_host", "_make", "_stands", "_store", "_storing")

    def __init__(
        self, host: Host, make: Callable[..., IssuedKey], store: Callable[[IssuedKey], Awaitable[None]]
    ) -> None:
        self._host = host
        self._make = make
        self._store = store
        self._first_start = False
        self._stands = False
        self._storing: asyncio.Task[None] | None = None

    async def look(self, records: KeyRecords) -> None:
        self._first_start = await records.is_empty()
        self._stands = await records.has_live(_NAME)

    def notices(self) -> list[str]:
        tiers = self._host.tiers
        tier = "teams" if "teams" in tiers else next(iter(tiers))
        if self._first_start:
            # Not made before this moment: a command that merely opens the store shows nobody the key.
            self._first_start = False
            issued = self._make(organization=_OWNER, user=_OWNER, tier=tier, name=_NAME)
            self._storing = asyncio.get_running_loop().create_task(self._keep(issued))
            return [
                f"development key, shown this once: {issued.key}",
                f"for an SDK: export OPENAI_BASE_URL={self._host.gateway.url}/v1 OPENAI_API_KEY={issued.key}",
                f"try it: {self._example(issued.key)}",
            ]
        if self._stands:
            command = f"openclaw-gateway keys create --org {_OWNER} --user {_OWNER} --tier {tier}"
            return [f"the development key was shown at the first start; to make another key: {command}"]
        return []

    async def stored(self) -> None:
        """Wait until a key that was shown is in the store."""
        if self._storing is not None and not self._storing.done():
            await asyncio.wait([self._storing])

    async def _keep(self, issued: IssuedKey) -> None:
        try:
            await self._store(issued)
        except StoreUnavailable:
            self._host.logger.exception("the development key could not be stored and will not be accepted")

    def _example(self, key: str) -> str:
        models = self._host.document.models
        model = "echo" if "echo" in models or not models else next(iter(models))
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "hello"}]}).decode()
        return (
            f"curl -s {self._host.gateway.url}/v1/chat/completions -H 'Authorization: Bearer {key}' "
            f"-H 'Content-Type: application/json' -d '{body}'"
        )
