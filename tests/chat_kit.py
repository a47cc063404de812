"""What the tests of the OpenAI surface share: a gateway with echo and a scripted upstream, and accounts that tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from msgspec import Meta
from openai import AsyncOpenAI
from small import Capped, Known, Named, Ranked, Tally
from upstreams import ScriptedUpstream, scripted

from openclaw_gateway import loader
from openclaw_gateway.api import (
    PRINCIPAL,
    TIER,
    Balance,
    Charge,
    Fact,
    Hold,
    Host,
    Limit,
    Message,
    NewMessage,
    Page,
    PluginConfig,
    Refused,
    Session,
    StoreUnavailable,
    forbidden,
    hookimpl,
    not_found,
)
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration, serving

MINE = "0192d3a0-0000-7000-8000-000000000001"
THEIRS = "0192d3a0-0000-7000-8000-000000000002"


class Books:
    """A durable account whose every entry can be read: what is held, committed, voided."""

    shared = False

    def __init__(self, host: Host) -> None:
        self.held: dict[str, Hold] = {}
        self.committed: list[str] = []
        self.voided: list[str] = []

    async def reserve(self, organization: str, takes: Any) -> tuple[list[Balance], list[Hold]]:
        number = len(self.held) + len(self.committed) + len(self.voided)
        holds = [Hold(f"h{number + i}", take, organization, "2026-11") for i, take in enumerate(takes)]
        self.held.update({hold.id: hold for hold in holds})
        return [Balance(limit=take.limit, used=1) for take in takes], holds

    async def commit(self, holds: Any, *, transaction: Any = None, lives_until: Any = None) -> None:
        for hold in holds:
            del self.held[hold.id]
            self.committed.append(hold.id)

    async def void(self, holds: Any) -> None:
        for hold in holds:
            if self.held.pop(hold.id, None) is not None:
                self.voided.append(hold.id)

    async def release(self, organization: str, meter: str, holder: str, *, transaction: Any = None) -> None:
        return None

    async def peek(self, organization: str, takes: Any) -> list[Balance]:
        return []


class Allowed:
    """Contributes a quota a table, counted in the books."""

    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Limits(PluginConfig, frozen=True, kw_only=True):
        limit: Annotated[int, Meta(ge=0, description="How many.")]

    def __init__(self, host: Host) -> None:
        self._host = host

    @hookimpl
    def charges(self, route: Any, tier: Any) -> list[Charge]:
        books = dict(self._host.plugins())["books"]
        return [
            Charge(Limit(name=f"allowed.{name}", meter=name, kind="quota", limit=table.limit), books)
            for name, table in tier.tables["allowed"].items()
        ]


class Shelf:
    """A session store of two sessions, mine and another organisation's; commits holds as the real one does."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.messages_of: list[NewMessage] = []
        self.down = False

    async def get(self, organization: str, session_id: str) -> Session:
        if session_id == THEIRS:
            raise Refused(forbidden("this session belongs to another organisation"))
        if session_id != MINE:
            raise Refused(not_found("no such session"))
        now = datetime.now(UTC)
        return Session(
            session_id=session_id,
            organization_id=organization,
            user_id="u",
            tier="basic",
            status="active",
            metadata={},
            created_at=now,
            updated_at=now,
            expires_at=now,
        )

    async def append(self, organization: str, session_id: str, messages: Any, *, holds: Any = ()) -> list[Message]:
        if self.down:
            raise StoreUnavailable("database", "down")
        self.messages_of += messages
        await dict(self._host.plugins())["books"].commit(holds)
        return []

    async def create(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def list(self, *args: Any, **kwargs: Any) -> Page:
        raise NotImplementedError

    async def update(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def delete(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    async def messages(self, *args: Any, **kwargs: Any) -> Page:
        raise NotImplementedError

    async def history(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


CONFIG = """
[gateway]
port = 0
drain_timeout = "DRAIN"
pipeline = ["named", "known", "ranked", "capped", "allowed"]

[plugins.named]
[plugins.known]
[plugins.ranked]
[plugins.tally]
[plugins.capped]
[plugins.books]
[plugins.allowed]
[plugins.sessions]
use = "shelf"

[plugins.chat]
keep_alive = "200ms"
stall = "1s"

[plugins.echo]
use = "providers.echo"

[plugins.up]
use = "providers.openai"
url = "URL"
api_key = "sk-upstream-secret-value"

[models.echo]
provider = "echo"

[models."vendor/fast"]
provider = "up"
name = "upstream-name"
owned_by = "vendor"
retries = 0
timeouts = { first_byte = "2s", idle = "2s" }

[models.same]
provider = "up"
retries = 0

[models.dear]
provider = "echo"
tiers = ["rich"]

[models.closed]
provider = "echo"
"""

LIMITS = "[capped.requests]\nlimit = 1000\n[allowed.messages]\nlimit = 1000\n"
TIERS = {"basic": 'models = ["echo", "same", "vendor/fast", "dear"]\n' + LIMITS, "rich": LIMITS}

OFFERED: dict[str, Any] = {
    "named": Named,
    "known": Known,
    "ranked": Ranked,
    "tally": Tally,
    "capped": Capped,
    "books": Books,
    "allowed": Allowed,
    "shelf": Shelf,
}


class Offered(EntryPoint):
    """An entry point whose class is at hand."""

    def load(self) -> Any:
        return OFFERED[self.name]


class Kit:
    """A served gateway with its scripted upstream, an SDK client, and what its accounts hold."""

    def __init__(self, gateway: Gateway, url: str, upstream: ScriptedUpstream) -> None:
        self.gateway = gateway
        self.url = url
        self.upstream = upstream
        self.books: Books = gateway.plugin("books")
        self.shelf: Shelf = gateway.plugin("sessions")
        self.named: Named = gateway.plugin("named")
        self.headers = {"x-org": "acme"}

    def client(self, **options: Any) -> AsyncOpenAI:
        options = {"default_headers": self.headers, "max_retries": 0, **options}
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="unused", **options)

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def chat_gateway(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    url: str | None = None,
    drain_timeout: str = "5s",
    keep_alive: str = "200ms",
) -> AsyncIterator[Kit]:
    """Serve the surface; model `same` and `vendor/fast` are the scripted upstream, or the one at `url`."""
    real = loader.installed()
    extra = {name: [Offered(name, f"chat_kit:{cls.__name__}", loader.GROUP)] for name, cls in OFFERED.items()}
    monkeypatch.setattr(loader, "installed", lambda: {**real, **extra})
    async with scripted() as upstream:
        toml = CONFIG.replace("URL", url or upstream.url).replace("DRAIN", drain_timeout)
        toml = toml.replace('"200ms"', f'"{keep_alive}"')
        gateway = build(configuration(directory, toml=toml, tiers=TIERS))
        async with serving(gateway) as served:
            yield Kit(gateway, served, upstream)
