"""What every plugin that serves others must do, as classes of tests for the author of one to inherit.

A suite asks only for what its Protocol promises, so it cannot tell a store in memory from one behind a network. Give
it a fixture of the name that its tests take, and let pytest-asyncio run coroutines (`asyncio_mode = "auto"`):

    class TestBuckets(CountersContract):
        @pytest.fixture
        def counters(self) -> Counters:
            return Buckets(...)
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from uuid import uuid4

from openclaw_gateway.contracts.capabilities import Accounts, Counters
from openclaw_gateway.contracts.conversations import NewMessage, Session, SessionStore
from openclaw_gateway.errors import Refused
from openclaw_gateway.facts import Principal
from openclaw_gateway.meters import Balance, Correction, Limit, Take
from openclaw_gateway.testing.model_contract import ModelProviderContract as ModelProviderContract

#: an id of the right form that nothing has
UNKNOWN = "0190b0e0-0000-7000-8000-000000000000"


class CountersContract:
    """For a `Counters`; takes the fixture `counters`. Its tests need no clock: none waits for a window to pass."""

    #: what a rate is counted by; a plugin that has one way of its own changes this
    algorithm: Literal["sliding", "gcra", "fixed"] = "sliding"

    def rate(self, limit: int, name: str = "ratelimit.requests") -> Limit:
        # With `gcra` the burst is what is admitted at one instant.
        return Limit(
            name=name, meter="requests", kind="rate", limit=limit, window=3600, algorithm=self.algorithm, burst=limit
        )

    async def test_a_limit_admits_exactly_as_much_as_it_says_of_calls_at_once(self, counters: Counters) -> None:
        organization, take = _name(), Take(self.rate(5), "-")
        answers = await asyncio.gather(*(counters.admit(organization, [take]) for _ in range(20)))
        assert sum(not balances[0].refused for balances in answers) == 5

    async def test_a_refusal_says_when_to_come_back_and_is_not_charged(self, counters: Counters) -> None:
        organization, take = _name(), Take(self.rate(1), "-")
        await counters.admit(organization, [take])
        for _ in range(3):
            (refused,) = await counters.admit(organization, [take])
            assert refused.refused
            # A window that slides by buckets may be one bucket longer.
            assert refused.retry_after is not None and 0 < refused.retry_after <= 2 * 3600
            assert refused.used == 1

    async def test_one_limit_that_refuses_means_that_none_is_charged(self, counters: Counters) -> None:
        organization = _name()
        wide, narrow = Take(self.rate(10, "r.wide"), "-"), Take(self.rate(1, "r.narrow"), "-")
        await counters.admit(organization, [wide, narrow])
        balances = await counters.admit(organization, [wide, narrow])
        assert [balance.limit.name for balance in balances] == ["r.wide", "r.narrow"]
        assert [balance.refused for balance in balances] == [False, True]
        assert [balance.used for balance in await counters.peek(organization, [wide, narrow])] == [1, 1]

    async def test_an_amount_is_charged_whole_or_not_at_all(self, counters: Counters) -> None:
        organization, limit = _name(), self.rate(10)
        assert not _only(await counters.admit(organization, [Take(limit, "-", amount=7)])).refused
        assert _only(await counters.admit(organization, [Take(limit, "-", amount=4)])).refused
        assert not _only(await counters.admit(organization, [Take(limit, "-", amount=3)])).refused

    async def test_an_estimate_becomes_what_it_turned_out_to_be(self, counters: Counters) -> None:
        organization, take = _name(), Take(self.rate(10), "-", amount=8)
        charged = _only(await counters.admit(organization, [take]))
        assert charged.at
        assert _only(await counters.admit(organization, [take])).refused
        less = Correction(limit=take.limit, subject="-", amount=-8, at=charged.at)
        await counters.correct(organization, [less])
        again = _only(await counters.admit(organization, [take]))
        assert not again.refused
        more = Correction(limit=take.limit, subject="-", amount=2, at=again.at)
        await counters.correct(organization, [more])
        assert _only(await counters.admit(organization, [Take(take.limit, "-")])).refused

    async def test_organisations_and_subjects_do_not_share(self, counters: Counters) -> None:
        first, second, limit = _name(), _name(), self.rate(1)
        for organization, subject in ((first, "ada"), (first, "bob"), (second, "ada")):
            assert not _only(await counters.admit(organization, [Take(limit, subject)])).refused
        assert _only(await counters.admit(first, [Take(limit, "ada")])).refused

    async def test_a_look_charges_nothing(self, counters: Counters) -> None:
        organization, take = _name(), Take(self.rate(2), "-")
        for _ in range(5):
            assert _only(await counters.peek(organization, [take])).used == 0
        assert not _only(await counters.admit(organization, [take])).refused


class LeasesContract:
    """For a `Counters` that also holds leases; takes the fixture `counters`."""

    @staticmethod
    def lease(holder: str, limit: int = 2) -> Take:
        held = Limit(name="concurrency.ws_connections", meter="ws_connections", kind="lease", limit=limit)
        return Take(held, "-", lease=holder)

    async def test_as_many_hold_a_lease_as_may_and_one_that_is_given_back_is_free(self, counters: Counters) -> None:
        organization = _name()
        balances = [_only(await counters.admit(organization, [self.lease(holder)])) for holder in "abc"]
        assert [balance.refused for balance in balances] == [False, False, True]
        await counters.release(organization, [self.lease("a")])
        assert not _only(await counters.admit(organization, [self.lease("c")])).refused

    async def test_giving_back_twice_frees_one(self, counters: Counters) -> None:
        organization = _name()
        for holder in "ab":
            await counters.admit(organization, [self.lease(holder)])
        await counters.release(organization, [self.lease("a")])
        await counters.release(organization, [self.lease("a")])
        balances = [_only(await counters.admit(organization, [self.lease(holder)])) for holder in "cd"]
        assert [balance.refused for balance in balances] == [False, True]

    async def test_a_holder_renews_what_it_holds_and_nothing_else(self, counters: Counters) -> None:
        organization = _name()
        await counters.admit(organization, [self.lease("a")])
        assert await counters.renew(organization, [self.lease("a")])
        await counters.release(organization, [self.lease("a")])
        assert not await counters.renew(organization, [self.lease("a")])
        assert counters.lease_ttl > 0


class AccountsContract:
    """For an `Accounts`; takes the fixture `accounts`."""

    @staticmethod
    def quota(limit: int, name: str = "quota.messages") -> Limit:
        return Limit(name=name, meter="messages", kind="quota", limit=limit, period="month")

    async def test_a_quota_admits_exactly_as_much_as_it_says_of_calls_at_once(self, accounts: Accounts) -> None:
        organization, take = _name(), Take(self.quota(5), "-")
        answers = await asyncio.gather(*(accounts.reserve(organization, [take]) for _ in range(20)))
        assert sum(bool(holds) for _, holds in answers) == 5
        assert all(balances[0].refused != bool(holds) for balances, holds in answers)

    async def test_what_is_voided_costs_nothing_and_what_is_committed_stays(self, accounts: Accounts) -> None:
        organization, take = _name(), Take(self.quota(2), "-")
        _, first = await accounts.reserve(organization, [take])
        _, second = await accounts.reserve(organization, [take])
        await accounts.commit(first)
        await accounts.void(second)
        await accounts.void(second)
        assert _only(await accounts.peek(organization, [take])).used == 1
        _, third = await accounts.reserve(organization, [take])
        assert third

    async def test_one_quota_that_refuses_means_that_none_is_held(self, accounts: Accounts) -> None:
        organization = _name()
        wide, narrow = Take(self.quota(10, "q.wide"), "-"), Take(self.quota(1, "q.narrow"), "-")
        await accounts.reserve(organization, [wide, narrow])
        balances, holds = await accounts.reserve(organization, [wide, narrow])
        assert not holds
        assert [balance.refused for balance in balances] == [False, True]
        assert _only(await accounts.peek(organization, [wide])).used == 1

    async def test_organisations_do_not_share(self, accounts: Accounts) -> None:
        take = Take(self.quota(1), "-")
        for organization in (_name(), _name()):
            _, holds = await accounts.reserve(organization, [take])
            assert holds


class SessionStoreContract:
    """For a `SessionStore`; takes the fixture `sessions`."""

    @staticmethod
    async def created(sessions: SessionStore, organization: str, **given: Any) -> Session:
        principal = Principal(organization=organization, user="ada", tier="teams", method="api_key", credential="k")
        fields: dict[str, Any] = {"tier": "teams", "metadata": {}, "ttl": None, "holds": (), **given}
        return await sessions.create(principal, **fields)

    async def test_what_is_created_is_found_changed_and_deleted(self, sessions: SessionStore) -> None:
        organization = _name()
        session = await self.created(sessions, organization, metadata={"topic": "tour"})
        assert (await sessions.get(organization, session.session_id)).metadata == {"topic": "tour"}
        changed = await sessions.update(organization, session.session_id, metadata={"topic": "2"}, status="inactive")
        assert (changed.metadata, changed.status) == ({"topic": "2"}, "inactive")
        await sessions.delete(organization, session.session_id)
        assert await _status(sessions.get(organization, session.session_id)) == 404

    async def test_another_organisation_is_refused_and_what_is_not_there_is_not_found(
        self, sessions: SessionStore
    ) -> None:
        organization, other = _name(), _name()
        session = await self.created(sessions, organization)
        id = session.session_id
        say = [NewMessage(role="user", content="hello")]
        for wanted, called, status in ((id, other, 403), (UNKNOWN, organization, 404), ("no uuid", organization, 404)):
            assert await _status(sessions.get(called, wanted)) == status
            assert await _status(sessions.append(called, wanted, say)) == status
            assert await _status(sessions.messages(called, wanted, limit=10, cursor=None)) == status
            assert await _status(sessions.delete(called, wanted)) == status
        assert (await sessions.list(other, status=None, limit=10, cursor=None)).items == []

    async def test_messages_that_come_at_once_are_all_kept_and_read_in_one_order(self, sessions: SessionStore) -> None:
        organization = _name()
        session = await self.created(sessions, organization)
        texts = [f"message {i}" for i in range(20)]

        async def say(text: str) -> None:
            await sessions.append(organization, session.session_id, [NewMessage(role="user", content=text)])

        await asyncio.gather(*map(say, texts))
        read: list[str] = []
        cursor = None
        while True:
            page = await sessions.messages(organization, session.session_id, limit=7, cursor=cursor)
            read += [message.content for message in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(read) == sorted(texts)
        last = await sessions.history(organization, session.session_id, limit=5)
        assert [message.content for message in last] == read[-5:]
        size = sum(len(text) + 2 for text in read[-3:])
        last = await sessions.history(organization, session.session_id, limit=5, max_bytes=size)
        assert [message.content for message in last] == read[-3:], "as many as fit, the newest"

    async def test_sessions_are_listed_newest_first_each_once(self, sessions: SessionStore) -> None:
        organization = _name()
        made = [(await self.created(sessions, organization)).session_id for _ in range(5)]
        first = await sessions.list(organization, status=None, limit=3, cursor=None)
        await self.created(sessions, organization)
        second = await sessions.list(organization, status=None, limit=3, cursor=first.next_cursor)
        assert [s.session_id for s in (*first.items, *second.items)] == made[::-1]


def _name() -> str:
    """An organisation of its own for each test, so that one store serves them all."""
    return f"org-{uuid4().hex[:12]}"


def _only(balances: Any) -> Balance:
    (balance,) = balances
    assert isinstance(balance, Balance)
    return balance


async def _status(call: Any) -> int | None:
    try:
        await call
    except Refused as refused:
        return refused.refusal.status
    return None
