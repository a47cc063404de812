"""The suites that authors of plugins inherit pass over the bundled backends, and fail over one that lies."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Sequence
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contracts.test_counters import MillisecondClock, memory
from counters_kit import counting
from prometheus_client import CollectorRegistry
from upstreams import DONE, chunk, event, scripted

from openclaw_gateway.api import Accounts, Balance, Counters, ModelProvider, Page, SessionStore, Take
from openclaw_gateway.testing import contracts
from openclaw_gateway.testing.contracts import (
    AccountsContract,
    CountersContract,
    LeasesContract,
    ModelProviderContract,
    SessionStoreContract,
)
from openclaw_plugins.providers.echo import Echo
from openclaw_plugins.providers.openai import OpenAI

from .conftest import Stores


class Bundled:
    @pytest.fixture(params=["memory", "valkey"])
    async def counters(self, request: pytest.FixtureRequest) -> AsyncIterator[Counters]:
        if request.param == "memory":
            yield memory(MillisecondClock())
            return
        async with counting(request.getfixturevalue("valkey_url"), timeout=5) as (counters, _):
            yield counters


class TestCounters(Bundled, CountersContract):
    pass


class TestLeases(Bundled, LeasesContract):
    pass


class TestAccounts(AccountsContract):
    @pytest.fixture
    def accounts(self, stores: Stores) -> Accounts:
        return stores.accounts


class TestSessions(SessionStoreContract):
    @pytest.fixture
    def sessions(self, stores: Stores) -> SessionStore:
        return stores.sessions


class TestEcho(ModelProviderContract):
    @pytest.fixture
    def provider(self, tmp_path: Path) -> ModelProvider:
        host: Any = SimpleNamespace()
        return Echo(Echo.Config(), host)


class TestOpenAI(ModelProviderContract):
    @pytest.fixture
    async def provider(self) -> AsyncIterator[ModelProvider]:
        message = {"role": "assistant", "content": "one two"}
        answer = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        stream = [*map(event, map(chunk, ("one", " ", "two"))), event(chunk(finish="stop")), DONE]

        def metric(kind: Any, name: str, documentation: str, labels: Any = (), **options: Any) -> Any:
            return kind(name, documentation, labels, registry=CollectorRegistry(), **options)

        document = SimpleNamespace(models={})
        host: Any = SimpleNamespace(id="up", metric=metric, logger=getLogger("test"), document=document)
        async with scripted() as upstream:
            upstream.script = lambda asked: stream if asked.json.get("stream") else [json.dumps(answer).encode()]
            provider = OpenAI(OpenAI.Config(url=upstream.url), host)
            async with provider.lifespan():
                yield provider


class Generous:
    """Counts, and refuses one call too late."""

    shared = False
    lease_ttl = 30.0

    def __init__(self) -> None:
        self._used: dict[tuple[str, str, str], int] = {}

    async def admit(self, organization: str, takes: Sequence[Take]) -> list[Balance]:
        balances = []
        for take in takes:
            key = (organization, take.limit.name, take.subject)
            used = self._used.get(key, 0)
            refused = used > take.limit.limit
            self._used[key] = used + (0 if refused else take.amount)
            balances.append(Balance(limit=take.limit, used=self._used[key], refused=refused, retry_after=1.0))
        return balances

    async def peek(self, organization: str, takes: Sequence[Take]) -> list[Balance]:
        return [Balance(limit=t.limit, used=self._used.get((organization, t.limit.name, t.subject), 0)) for t in takes]


@pytest.mark.parametrize(
    "name",
    [
        "test_a_limit_admits_exactly_as_much_as_it_says_of_calls_at_once",
        "test_one_limit_that_refuses_means_that_none_is_charged",
        "test_an_amount_is_charged_whole_or_not_at_all",
    ],
)
async def test_counters_that_lie_are_found_out(name: str) -> None:
    with pytest.raises(AssertionError):
        await getattr(CountersContract(), name)(Generous())


async def test_a_store_that_shows_another_s_sessions_is_found_out() -> None:
    class Open:
        async def create(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(session_id=contracts.UNKNOWN)

        async def get(self, *_: Any) -> Any:
            return SimpleNamespace()

        async def list(self, *_: Any, **__: Any) -> Page:
            return Page([], None)

    store: Any = Open()
    name = "test_another_organisation_is_refused_and_what_is_not_there_is_not_found"
    with pytest.raises(AssertionError):
        await getattr(SessionStoreContract(), name)(store)


def test_every_suite_of_the_kit_is_run_here() -> None:
    suites = {cls for _, cls in inspect.getmembers(contracts, inspect.isclass) if cls.__name__.endswith("Contract")}
    run = {base for name, cls in globals().items() if name.startswith("Test") for base in cls.__mro__}
    assert suites <= run
