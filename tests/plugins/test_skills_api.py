"""Skills over REST: what refuses costs nothing, every run ends, and ends within its bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from skill_kit import Act, execute, offer, rows, used
from socket_kit import Place, place, said, say
from sqlalchemy import text

from openclaw_gateway.assets import asset

UNKNOWN = "0190b0e0-0000-7000-8000-000000000000"


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)


@pytest.fixture
async def here(tmp_path: Path, acting: None) -> AsyncIterator[Place]:
    edit = {"plugins.skills.running_per_organization": 4}
    async with place(tmp_path, edit=edit) as found:
        yield found


async def test_skills_are_listed_and_shown_with_their_schema(here: Place) -> None:
    status, body = await here.ask("GET", "/api/v1/skills")
    assert status == 200
    assert [skill["name"] for skill in body["skills"]] == [
        "act",
        "exact",
        "http_fetch",
        "search",
        "summarise_session",
        "threaded",
    ]
    status, act = await here.ask("GET", "/api/v1/skills/act")
    assert status == 200 and act in body["skills"]
    assert act == {
        "name": "act",
        "version": "2.1",
        "description": "Does what its parameter says.",
        "kind": "python",
        "eligible": True,
        "missing": [],
        "modelVisible": True,
        "userInvocable": True,
        "parameters": {
            "type": "object",
            "properties": {
                "how": {"type": "string"},
                "times": {"type": "integer", "minimum": 1, "maximum": 5, "default": 1},
            },
            "required": ["how"],
            "additionalProperties": False,
        },
    }
    status, body = await here.ask("GET", "/api/v1/skills/nothing")
    assert (status, body["error"]["code"]) == (404, "NOT_FOUND")
    async with here.http.get(here.url + "/api/v1/skills", headers={"X-API-Key": ""}) as answer:
        assert answer.status == 401


async def test_a_run_answers_with_its_row(here: Place) -> None:
    session = await here.session()
    status, body = await execute(here, "act", session, how="well", times=3)
    assert status == 200
    assert body.keys() == {"executionId", "skillName", "sessionId", "status", "result", "durationMs", "startedAt"}
    assert (body["status"], body["skillName"], body["sessionId"]) == ("completed", "act", session)
    assert body["result"] == {"text": "did well", "times": 3, "nul": "\x00"}
    (row,) = await rows(here)
    assert row["status"] == "completed" and row["finished_at"] is not None
    assert (row["organization_id"], row["user_id"], row["skill_name"]) == ("acme", "ada", "act")
    assert await used(here, session) == 1
    assert here.metric("skill_executions_total", skill_name="act", status="completed") == 1
    assert here.metric("skill_execution_duration_seconds_count", skill_name="act") == 1


@pytest.mark.parametrize(
    ("params", "problems"),
    [
        ({}, {"params.how": "missing"}),
        ({"how": 1}, {"params.how": "expected string"}),
        ({"how": "x", "times": 0}, {"params.times": "expected at least 1"}),
        ({"how": "x", "times": 1.5}, {"params.times": "expected integer"}),
        (
            {"how": "x", "other": 1, "more": 2},
            {"params.other": "unknown parameter", "params.more": "unknown parameter"},
        ),
        (
            {"times": 9, "z": None},
            {"params.how": "missing", "params.times": "expected at most 5", "params.z": "unknown parameter"},
        ),
    ],
)
async def test_parameters_that_do_not_fit_are_400_with_every_path_and_no_charge(
    here: Place, params: dict[str, Any], problems: dict[str, str]
) -> None:
    session = await here.session()
    status, body = await execute(here, "act", session, **params)
    assert status == 400, body
    error = body["error"]
    told = error.get("problems") or [{"param": error["param"], "message": error["message"].partition(": ")[2]}]
    assert {each["param"]: each["message"] for each in told} == problems
    assert await rows(here) == [] and await used(here, session) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"params": {}}',
        b'{"sessionId": 1}',
        b'{"sessionId": "x", "params": []}',
        b'{"a": 1}',
        b'{"sessionId": "x", "params": ' + b'{"a":' * 70 + b"1" + b"}" * 71,
    ],
)
async def test_bad_bodies_are_400(here: Place, body: bytes) -> None:
    async with here.http.post(here.url + "/api/v1/skills/act/execute", data=body) as answer:
        assert answer.status == 400, await answer.text()
    assert await rows(here) == []


async def test_a_body_that_is_too_large_is_413(here: Place) -> None:
    status, _ = await execute(here, "act", UNKNOWN, how="x" * 300_000)
    assert status == 413


async def test_unknown_skills_and_sessions_are_404_and_foreign_sessions_403(here: Place) -> None:
    session = await here.session()
    assert (await execute(here, "nothing", session))[0] == 404
    assert (await execute(here, "act", UNKNOWN, how="x"))[0] == 404
    assert (await execute(here, "act", "no-uuid", how="x"))[0] == 404
    other = await here.gateway.plugin("api_key").create(organization="other", user="eve", tier="teams")
    body = {"sessionId": session, "params": {"how": "x"}}
    status, answer = await here.ask("POST", "/api/v1/skills/act/execute", body, **{"X-API-Key": other.key})
    assert status == 403 and "acme" not in str(answer)
    assert await rows(here) == []


async def test_the_quota_of_a_session_holds_whatever_way_its_id_is_written(here: Place) -> None:
    session, another = await here.session(), await here.session()
    statuses = [(await execute(here, "act", session if i % 2 else session.upper(), how="x"))[0] for i in range(11)]
    assert statuses == [200] * 10 + [403]
    status, body = await execute(here, "act", session, how="x")
    assert (status, body["error"]["code"], body["error"]["type"]) == (403, "QUOTA_EXCEEDED", "insufficient_quota")
    assert (body["error"]["limit"]["name"], body["error"]["limit"]["used"]) == ("quota.skills", 10)
    assert (await execute(here, "act", another, how="x"))[0] == 200
    assert len(await rows(here)) == 11


async def test_a_key_that_is_sent_twice_runs_once(here: Place) -> None:
    body = {"sessionId": await here.session(), "params": {"how": "x"}}
    asks = [here.ask("POST", "/api/v1/skills/act/execute", body, **{"Idempotency-Key": "k1"}) for _ in range(3)]
    first, *more = [await asking for asking in asks]
    assert first[0] == 200 and all(answer == first for answer in more)
    assert len(await rows(here)) == 1 and await used(here, body["sessionId"]) == 1


async def test_simultaneous_runs_never_pass_the_quota(here: Place) -> None:
    session = await here.session()
    for _ in range(8):
        assert (await execute(here, "act", session, how="x"))[0] == 200
    answers = await asyncio.gather(*(execute(here, "act", session, how="x") for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 200, 403, 403]
    assert await used(here, session) == 10


async def test_time_that_is_up_is_504_and_really_cancels(here: Place) -> None:
    session = await here.session()
    started = time.monotonic()
    status, body = await execute(here, "act", session, how="sleep")
    assert 0.4 < time.monotonic() - started < 10  # of the 30 that it sleeps
    assert (status, body["error"]["code"]) == (504, "UPSTREAM_TIMEOUT")
    execution = body["error"]["execution"]
    assert (execution["status"], execution["skillName"]) == ("timeout", "act")
    assert Act.cancelled == [execution["executionId"]]
    (row,) = await rows(here)
    assert row["status"] == "timeout" and await used(here, session) == 0
    assert here.metric("skill_execution_errors_total", skill_name="act", error_type="timeout") == 1


async def test_a_skill_that_does_not_let_itself_be_cancelled_ends_for_its_caller(here: Place) -> None:
    session = await here.session()
    started = time.monotonic()
    assert (await execute(here, "act", session, how="stubborn"))[0] == 504
    assert time.monotonic() - started < 4
    Act.cancelled.append("now it may")
    for task in asyncio.all_tasks():
        if "PythonSkill.run" in repr(task):
            task.cancel()
    assert (await rows(here))[0]["status"] == "timeout"


@pytest.mark.parametrize(
    ("how", "error", "error_type"),
    [
        ("fail", "it would not", "unwilling"),
        ("raise", "the skill failed; the cause is in the gateway's log", "exception"),
        ("large", "its result is larger than 1000000 bytes", "output_too_large"),
        ("odd", "its result cannot be written as JSON", "result"),
        ("surrogate", "its result cannot be written as JSON", "result"),
    ],
)
async def test_a_run_that_fails_is_told_and_kept(here: Place, how: str, error: str, error_type: str) -> None:
    status, body = await execute(here, "act", await here.session(), how=how)
    assert (status, body["status"], body["error"], body["result"]) == (200, "failed", error, None)
    (row,) = await rows(here)
    assert (row["status"], row["error"], row["result"]) == ("failed", error, None)
    assert await used(here, row["session_id"]) == 0
    assert here.metric("skill_executions_total", skill_name="act", status="failed") == 1
    assert here.metric("skill_execution_errors_total", skill_name="act", error_type=error_type) == 1


async def test_an_organisation_runs_so_many_at_a_time(here: Place) -> None:
    sessions = [await here.session() for _ in range(5)]
    answers = await asyncio.gather(*(execute(here, "act", session, how="sleep") for session in sessions))
    assert sorted(status for status, _ in answers) == [503, 504, 504, 504, 504]
    assert len(await rows(here)) == 4


async def test_listeners_of_the_session_are_told_in_order(here: Place) -> None:
    session = await here.session()
    async with here.connect(session) as socket:
        assert (await execute(here, "act", session, how="progress", times=3))[0] == 200
        frames = [await said(socket, "skill") for _ in range(5)]
        assert (await execute(here, "act", session, how="fail"))[0] == 200
        frames += [await said(socket, "skill") for _ in range(2)]
    assert [(f["state"], f["detail"]) for f in frames] == [
        ("started", None),
        ("progress", "step 1"),
        ("progress", "step 2"),
        ("progress", "step 3"),
        ("completed", None),
        ("started", None),
        ("failed", "it would not"),
    ]
    assert {f["name"] for f in frames} == {"act"} and [f["seq"] for f in frames] == sorted(f["seq"] for f in frames)


async def test_plain_functions_run_in_threads_and_end_for_their_caller(here: Place) -> None:
    session = await here.session()
    status, body = await execute(here, "threaded", session, seconds=0.01)
    assert (status, body["result"]) == (200, {"slept": 0.01})
    started = time.monotonic()
    status, _ = await execute(here, "threaded", session, seconds=1.0)
    assert status == 504 and time.monotonic() - started < 2.5


async def test_a_tier_has_the_skills_that_it_opens(tmp_path: Path, acting: None) -> None:
    async with place(tmp_path, tiers=only_search()) as here:
        _, body = await here.ask("GET", "/api/v1/skills")
        assert [skill["name"] for skill in body["skills"]] == ["search"]
        assert (await here.ask("GET", "/api/v1/skills/act"))[0] == 404
        session = await here.session()
        assert (await execute(here, "act", session, how="x"))[0] == 404
        assert (await execute(here, "search", session, query="x"))[0] == 200


def only_search() -> dict[str, str]:
    """The shipped tiers, of which the first has one skill."""
    tiers = {path.stem: path.read_text() for path in asset("tiers").glob("*.toml")}
    tiers["open_source"] = 'skills = ["search"]\n' + tiers["open_source"]
    return tiers


@pytest.mark.parametrize(
    ("skill", "param"),
    [
        pytest.param("act", "metadata.skillName", id="a skill that the tier has not"),
        pytest.param("nothing", "metadata.skillName", id="no skill"),
        pytest.param("exact", "params.number", id="parameters that do not fit"),
    ],
)
async def test_what_cannot_be_run_by_name_is_refused_on_every_way_and_costs_nothing(
    tmp_path: Path, acting: None, skill: str, param: str
) -> None:
    tiers = only_search()
    if skill == "exact":
        tiers["open_source"] = tiers["open_source"].replace('["search"]', '["search", "exact"]', 1)
    async with place(tmp_path, tiers=tiers) as here:
        session = await here.session()
        asked = {"model": "slow", "messages": [{"role": "user", "content": "seven"}], "sessionId": session}
        named = {**asked, "max_tokens": 9, "metadata": {"skillName": skill}}
        for path in ("/v1/chat/completions", "/v1/messages"):
            for stream in (False, True):
                status, body = await here.ask("POST", path, {**named, "stream": stream})
                assert (status, body["error"]["code"], body["error"]["param"]) == (400, "BAD_REQUEST", param)
        async with here.connect(session) as socket:
            for stream in (False, True):
                await say(socket, "message", content="seven", stream=stream, metadata={"skillName": skill})
                error = await said(socket, "error", "message", "stream", "skill")
                assert (error["type"], error["code"], error["param"]) == ("error", "BAD_REQUEST", param)
        async with asyncio.timeout(5):  # on a socket the error is told first, and what was held is given back then
            while await charged(here):
                await asyncio.sleep(0.02)
        assert (await rows(here), await used(here, session), here.upstream.received) == ([], 0, [])


async def charged(here: Place) -> int:
    """How many messages are charged, or held."""
    _, usage = await here.ask("GET", "/api/v1/usage")
    return int({row["name"]: row["used"] for row in usage["limits"]}["quota.messages"])


async def test_what_a_crash_left_is_marked_lost(here: Place) -> None:
    session = await here.session()
    assert (await execute(here, "act", session, how="x"))[0] == 200
    database, skills = here.gateway.plugin("database"), here.gateway.plugin("skills")
    async with database.transaction(None, operation="update", table="t") as connection:
        await connection.execute(
            text("UPDATE openclaw_skill_executions SET status = 'running', deadline_at = started_at")
        )
    assert await skills._executions.reap(1e9) == ["act"]
    (row,) = await rows(here)
    assert row["status"] == "lost" and row["finished_at"] is not None
    assert await skills._executions.reap(1e9) == []


async def test_a_stop_keeps_what_ran_as_cancelled(
    tmp_path: Path, acting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Act, "timeout", 20.0)
    async with place(tmp_path) as here:
        session = await here.session()
        asking = asyncio.ensure_future(execute(here, "act", session, how="sleep"))
        while not len(here.gateway.plugin("skills")._runs):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await here.gateway.plugin("skills")._runs.cut(5)
        status, body = await asking
        assert (status, body["status"]) == (200, "cancelled")
        (row,) = await rows(here)
        assert row["status"] == "cancelled" and await used(here, session) == 0


async def test_a_run_that_cannot_be_begun_costs_nothing(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from openclaw_gateway.api import StoreUnavailable

    session = await here.session()
    executions = here.gateway.plugin("skills")._executions

    async def down(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("database", "down")

    monkeypatch.setattr(executions, "begin", down)
    status, body = await execute(here, "act", session, how="x")
    assert (status, body["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
    assert await used(here, session) == 0 and Act.cancelled == []
