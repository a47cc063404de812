"""Runs of skills as rows, on every backend: ended once, with their charge, and by the reaper if by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update
from uuid_utils import uuid7

from openclaw_gateway.api import Hold, Limit, Principal, Refused, SystemClock, Take
from openclaw_plugins.skills.executions import Executions, table

from .conftest import Stores

LIMIT = Limit(name="quota.skills", meter="skills", kind="quota", limit=3, period="session")


@pytest.fixture
def executions(stores: Stores) -> Executions:
    return Executions(stores.database, stores.accounts, SystemClock())


async def begun(stores: Stores, executions: Executions, *, session: bool = True) -> str:
    id, session_id = str(uuid7()), None
    if session:
        who = Principal(organization="acme", user="ada", tier="teams", method="api_key", credential="k")
        session_id = (await stores.sessions.create(who, tier="teams", metadata={}, ttl=None, holds=())).session_id
    params = {"a": [1, "ü", None], "big": 2**70}
    await executions.begin(
        id, organization="acme", user="ada", session_id=session_id, skill="act", params=params, at_most=5
    )
    return id


async def row(stores: Stores, id: str) -> Any:
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        return (await connection.execute(table.select().where(table.c.execution_id == id))).mappings().one()


async def end(
    executions: Executions,
    id: str,
    status: Any,
    organization: str = "acme",
    holds: Sequence[Hold] = (),
    counts: bool = True,
) -> None:
    result = {"x": "\x00"}
    await executions.end(
        id, organization, status=status, result=result, error=None, duration_ms=7, holds=holds, counts=counts
    )


async def reserved(stores: Stores) -> Sequence[Hold]:
    _, holds = await stores.accounts.reserve("acme", [Take(LIMIT, "s")])
    return holds


async def settled(stores: Stores) -> tuple[int, int]:
    """What is used of the limit, and what is still held."""
    async with stores.database.transaction(None, operation="select", table="t") as connection:
        found = await connection.execute(
            text("SELECT coalesce(sum(used), 0), coalesce(sum(held), 0) FROM openclaw_usage")
        )
        used, held = found.one()
        return int(used), int(held)


async def test_a_run_in_a_session_that_has_gone_is_refused(stores: Stores, executions: Executions) -> None:
    who = Principal(organization="acme", user="ada", tier="teams", method="api_key", credential="k")
    made = await stores.sessions.create(who, tier="teams", metadata={}, ttl=None, holds=())

    async def begin(organization: str) -> None:
        await executions.begin(
            str(uuid7()),
            organization=organization,
            user="ada",
            session_id=made.session_id,
            skill="act",
            params={},
            at_most=5,
        )

    await begin("acme")
    await stores.sessions.delete("acme", made.session_id)
    for organization in ("acme", "other"):
        with pytest.raises(Refused) as error:
            await begin(organization)
        assert error.value.refusal.status == 404


async def test_runs_and_a_deletion_at_once(stores: Stores, executions: Executions) -> None:
    who = Principal(organization="acme", user="ada", tier="teams", method="api_key", credential="k")
    for _ in range(10):
        made = await stores.sessions.create(who, tier="teams", metadata={}, ttl=None, holds=())
        begins = [
            executions.begin(
                str(uuid7()),
                organization="acme",
                user="ada",
                session_id=made.session_id,
                skill="act",
                params={},
                at_most=5,
            )
            for _ in range(5)
        ]
        done = await asyncio.gather(
            *begins[:3], stores.sessions.delete("acme", made.session_id), *begins[3:], return_exceptions=True
        )
        assert all(each is None or isinstance(each, (Refused, datetime)) for each in done), done


async def test_a_run_is_ended_once_with_its_charge(stores: Stores, executions: Executions) -> None:
    holds = await reserved(stores)
    id = await begun(stores, executions)
    assert await settled(stores) == (0, 1)
    assert (await row(stores, id))["status"] == "running"
    await end(executions, id, "completed", organization="other")
    assert (await row(stores, id))["status"] == "running"
    await end(executions, id, "completed", holds=holds)
    assert await settled(stores) == (1, 0)
    await end(executions, id, "failed", holds=holds, counts=False)
    assert await settled(stores) == (1, 0)
    kept = await row(stores, id)
    assert (kept["status"], kept["result"], kept["duration_ms"]) == ("completed", {"x": "\x00"}, 7)
    assert kept["params"] == {"a": [1, "ü", None], "big": 2**70}


@pytest.mark.parametrize("status", ["completed", "failed", "timeout", "cancelled", "lost", "pending"])
async def test_every_state_can_be_kept(stores: Stores, executions: Executions, status: str) -> None:
    id = await begun(stores, executions)
    await end(executions, id, status)
    assert (await row(stores, id))["status"] == status


async def test_the_reaper_ends_what_nobody_runs_any_more(stores: Stores, executions: Executions) -> None:
    lost, running, done = [await begun(stores, executions) for _ in range(3)]
    await end(executions, done, "completed")
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await connection.execute(update(table).where(table.c.execution_id.in_([lost, done])).values(deadline_at=past))
    assert await executions.reap(1e9) == ["act"]
    assert [(await row(stores, id))["status"] for id in (lost, running, done)] == ["lost", "running", "completed"]
    await end(executions, lost, "completed")
    assert (await row(stores, lost))["status"] == "lost"


async def test_runs_go_with_their_session_and_others_in_time(stores: Stores, executions: Executions) -> None:
    with_session, without = await begun(stores, executions), await begun(stores, executions, session=False)
    await end(executions, with_session, "completed")
    await end(executions, without, "completed")
    await executions.reap(-1)
    async with stores.database.transaction(None, operation="update", table="t") as connection:
        assert (await connection.execute(text("SELECT count(*) FROM openclaw_skill_executions"))).scalar() == 1
        await connection.execute(text("DELETE FROM openclaw_sessions"))
        assert (await connection.execute(text("SELECT count(*) FROM openclaw_skill_executions"))).scalar() == 0


async def test_what_does_not_count_and_what_the_reaper_has_ended_costs_nothing(
    stores: Stores, executions: Executions
) -> None:
    first, second = await reserved(stores), await reserved(stores)
    failed, lost = await begun(stores, executions), await begun(stores, executions)
    await end(executions, failed, "failed", holds=first, counts=False)
    assert await settled(stores) == (0, 1)
    await end(executions, lost, "lost")
    await end(executions, lost, "completed", holds=second)
    assert await settled(stores) == (0, 0)


async def test_a_run_is_not_ended_without_its_charge(stores: Stores, executions: Executions) -> None:
    class Broken:
        async def commit(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no")

    id = await begun(stores, executions)
    broken = Executions(stores.database, Broken(), SystemClock())  # type: ignore[arg-type] # fails on purpose
    with pytest.raises(RuntimeError):
        await end(broken, id, "completed", holds=await reserved(stores))
    assert (await row(stores, id))["status"] == "running"
