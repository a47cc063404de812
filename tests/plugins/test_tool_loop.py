"""A model that calls skills by itself: what it is offered, what it is told, what its client sees, and what it costs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from skill_kit import Act, offer, rows, used
from socket_kit import Place, place, said, say
from sqlalchemy import text
from tool_loop_kit import CLIENT_TOOL, Round, call, model
from upstreams import Pause, event

from openclaw_gateway.assets import asset
from openclaw_plugins.chat.tokens import prompt_estimate

ASKED: Any = [{"role": "user", "content": "What is it?"}]
LOOP = {"skills": ["act", "search"]}


CLIENTS: list[AsyncOpenAI | AsyncAnthropic] = []


@pytest.fixture(autouse=True)
async def acting(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    offer(monkeypatch)
    yield
    while CLIENTS:
        await CLIENTS.pop().close()


def looping(
    directory: Path, edit: dict[str, Any] | None = None, *, tiers: dict[str, str] | None = None, **loop: Any
) -> AbstractAsyncContextManager[Place]:
    settings = {f"plugins.chat.tool_loop.{key}": value for key, value in {**LOOP, **loop}.items()}
    return place(directory, edit={**settings, **(edit or {})}, tiers=tiers)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with looping(tmp_path) as found:
        yield found


def client(here: Place) -> AsyncOpenAI:
    made = AsyncOpenAI(base_url=here.url + "/v1", api_key=here.key, max_retries=0)
    CLIENTS.append(made)
    return made


async def complete(here: Place, **more: Any) -> Any:
    return await client(here).chat.completions.create(model="slow", messages=ASKED, **more)


async def raw(here: Place, **more: Any) -> str:
    body = {"model": "slow", "messages": ASKED, "stream": True, **more}
    async with here.http.post(here.url + "/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


def chunks_of(stream: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]" and lines.count("[DONE]") == 1
    return [json.loads(line) for line in lines[:-1]]


def told(here: Place, round: int = -1) -> list[dict[str, Any]]:
    """What the model was told by tools in the prompt of a round."""
    return [m for m in here.upstream.received[round].json["messages"] if m["role"] == "tool"]


async def charged(here: Place, limit: str) -> int:
    """How much of a limit is used, held amounts included."""
    database = here.gateway.plugin("database")
    async with database.transaction(None, operation="select", table="t") as connection:
        found = await connection.execute(
            text("SELECT coalesce(sum(used), 0) + coalesce(sum(held), 0) FROM openclaw_usage WHERE limit_name = :name"),
            {"name": limit},
        )
        return int(found.scalar() or 0)


async def messages_used(here: Place) -> int:
    return await charged(here, "quota.messages")


async def until(condition: Any, within: float = 5.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


ACT = Round("Let me ", "see.", calls=[call("act", how="well", times=2)])
ANSWER = Round("It is ", "well.", tokens=30)


async def test_a_skill_that_callers_may_not_name_is_run_for_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "skills/quiet"
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text("---\nname: quiet\ndescription: d\nuser-invocable: false\n---\nWhisper.")
    async with looping(tmp_path, skills=["quiet"]) as here:
        session = await here.session()
        status, shown = await here.ask("GET", "/api/v1/skills/quiet")
        assert (status, shown["userInvocable"], shown["modelVisible"]) == (200, False, True)
        by_name: Any = {"model": "slow", "sessionId": session, "messages": ASKED, "metadata": {"skillName": "quiet"}}
        for path, body in (
            ("/api/v1/skills/quiet/execute", {"sessionId": session, "params": {}}),
            ("/v1/chat/completions", by_name),
        ):
            status, answer = await here.ask("POST", path, body)
            assert (status, answer["error"]["code"]) == (409, "CONFLICT") and "model" in answer["error"]["message"]
        assert await used(here, session) == 0
        here.upstream.script = model(Round(calls=[call("quiet")]), ANSWER)
        answer = await complete(here, extra_body={"sessionId": session})
        assert answer.metadata == {"skillExecuted": True, "skillNames": ["quiet"]}
        assert "Whisper." in told(here)[0]["content"]
        assert await used(here, session) == 1


async def test_a_plain_turn_runs_what_the_model_calls_and_answers_once(here: Place) -> None:
    session = await here.session()
    here.upstream.script = model(ACT, ANSWER)
    answer = await complete(here, extra_body={"sessionId": session})
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("Let me see.\n\nIt is well.", "stop")
    assert choice.message.tool_calls is None
    assert answer.metadata == {"skillExecuted": True, "skillNames": ["act"]}
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (40, 4, 44)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    offered = {tool["function"]["name"]: tool["function"] for tool in here.upstream.received[0].json["tools"]}
    assert offered.keys() == {"act", "search"}
    assert offered["act"]["parameters"]["required"] == ["how"] and offered["act"]["description"]
    assistant, result = here.upstream.received[1].json["messages"][1:]
    assert assistant == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [call("act", how="well", times=2)],
    }
    assert result == {"role": "tool", "tool_call_id": "call_1", "content": "did well"}
    (row,) = await rows(here)
    assert (row["status"], row["session_id"].replace("-", "")) == ("completed", session.replace("-", ""))
    assert (await used(here, session), await messages_used(here)) == (1, 1)
    _, history = await here.ask("GET", f"/api/v1/sessions/{session}/messages")
    assert [(m["role"], m["content"]) for m in history["messages"]] == [
        ("user", "What is it?"),
        ("assistant", "Let me see.\n\nIt is well."),
    ]
    assert history["messages"][1]["metadata"]["skillNames"] == ["act"]
    assert here.metric("tool_loop_turns_total", model="slow", end="answer") == 1


async def test_a_stream_carries_every_round_as_it_comes_and_ends_once(here: Place) -> None:
    session = await here.session()
    here.upstream.script = model(ACT, ANSWER)
    stream = await raw(here, sessionId=session, stream_options={"include_usage": True})
    chunks = chunks_of(stream)
    assert {c["id"] for c in chunks} == {"round-0"} and {c["model"] for c in chunks} == {"slow"}
    assert "tool_calls" not in stream
    texts = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert [t for t in texts if t] == ["Let me ", "see.", "\n\nIt is ", "well."]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]] == [
        "stop"
    ]
    assert [c["choices"][0]["delta"].get("role") for c in chunks if c["choices"]].count("assistant") == 1
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 44
    assert sum("usage" in c for c in chunks) == 1
    assert chunks[-2]["metadata"] == {"skillExecuted": True, "skillNames": ["act"]}
    notes = [json.loads(line.removeprefix(": skill ")) for line in stream.split("\n\n") if line.startswith(": skill")]
    assert [(n["name"], n["state"]) for n in notes] == [("act", "started"), ("act", "completed")]
    assert stream.index("Let me") < stream.index('"started"') < stream.index("It is")
    assert (await used(here, session), await messages_used(here)) == (1, 1)


async def test_a_client_that_asked_for_no_usage_gets_none_and_it_is_known_all_the_same(here: Place) -> None:
    here.upstream.script = model(ACT, ANSWER)
    stream = await raw(here)
    assert "usage" not in stream
    assert all(r.json["stream_options"] == {"include_usage": True} for r in here.upstream.received)


async def test_the_first_text_is_there_while_the_skill_still_runs(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Act, "timeout", 20.0)
    here.upstream.script = model(Round("Wait.", calls=[call("act", how="sleep")]), ANSWER)
    stream = await client(here).chat.completions.create(model="slow", messages=ASKED, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            assert chunk.choices[0].delta.content == "Wait."
            break
    await until(lambda: Act.began)
    started = time.monotonic()
    await stream.close()
    await until(lambda: Act.cancelled)
    assert time.monotonic() - started < 2.0
    await until(lambda: not len(here.gateway.plugin("skills")._runs))
    (row,) = await rows(here)
    assert row["status"] == "cancelled"
    assert len(here.upstream.received) == 1
    assert await messages_used(here) == 1  # what was said was said


async def test_a_client_that_leaves_in_a_later_round_closes_the_upstream(here: Place) -> None:
    slow = [event(b'{"id":"x","choices":[{"index":0,"delta":{"content":"So"}}]}'), Pause(20)]
    first = model(ACT)
    here.upstream.script = lambda received: first(received) if len(received.json["messages"]) == 1 else slow
    stream = await client(here).chat.completions.create(model="slow", messages=ASKED, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content == "\n\nSo":
            break
    started = time.monotonic()
    await stream.close()
    async with asyncio.timeout(3):
        await here.upstream.left.wait()
    assert time.monotonic() - started < 1.5
    assert [row["status"] for row in await rows(here)] == ["completed"]


def misfit(arguments: str) -> dict[str, Any]:
    return {**call("act"), "function": {"name": "act", "arguments": arguments}}


FAILING: list[tuple[dict[str, Any], dict[str, str]]] = [
    (call("act", how="fail"), {"message": "it would not", "code": "failed"}),
    (call("act", how="raise"), {"message": "the skill failed; the cause is in the gateway's log", "code": "failed"}),
    (call("act", how="sleep"), {"message": "it did not end within 0.5 seconds", "code": "timeout"}),
    (call("act", times=9), {"message": "params.how: missing; params.times: expected at most 5"}),
    (call("nothing"), {"message": "there is no tool 'nothing'"}),
    (call("http_fetch", url="https://example.com"), {"message": "there is no tool 'http_fetch'"}),
    (misfit('{"how": '), {"message": "the arguments are no JSON object"}),
    (misfit("[1]"), {"message": "the arguments are no JSON object"}),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_is_told_to_the_model_and_costs_nothing(here: Place, stream: bool) -> None:
    session = await here.session()
    for called, part in FAILING:
        here.upstream.script = model(Round(calls=[called]), ANSWER)
        if stream:
            assert "It is " in await raw(here, sessionId=session)
        else:
            answer = await complete(here, extra_body={"sessionId": session})
            assert answer.choices[0].message.content == "It is well."
        (message,) = told(here)
        error = json.loads(message["content"])["error"]
        assert {key: error.get(key) for key in part} == part
    assert await used(here, session) == 0
    assert [row["status"] for row in await rows(here)] == ["failed", "failed", "timeout"]


async def test_a_quota_that_is_used_up_is_told_to_the_model(here: Place) -> None:
    session = await here.session()
    here.upstream.script = model(Round(calls=[call("act", f"c{i}", how="x") for i in range(4)]), ANSWER)
    for _ in range(3):
        await complete(here, extra_body={"sessionId": session})
    contents = [message["content"] for message in told(here)]
    assert contents[:2] == ["did x", "did x"]
    assert [json.loads(c)["error"]["code"] for c in contents[2:]] == ["QUOTA_EXCEEDED"] * 2
    assert (await used(here, session), len(await rows(here))) == (10, 10)


async def test_calls_of_one_round_run_side_by_side(here: Place) -> None:
    session = await here.session()
    here.upstream.script = model(Round(calls=[call("act", f"c{i}", how="meet", times=3) for i in range(3)]), ANSWER)
    await complete(here, extra_body={"sessionId": session})
    assert [(m["tool_call_id"], m["content"]) for m in told(here)] == [(f"c{i}", "did meet") for i in range(3)]
    assert await used(here, session) == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_of_the_clients_tool_ends_the_turn(here: Place, stream: bool) -> None:
    here.upstream.script = model(ACT, Round("Look.", calls=[call("browse", "call_2", url="u")]))
    if stream:
        async with client(here).chat.completions.stream(model="slow", messages=ASKED, tools=[CLIENT_TOOL]) as events:
            answer = await events.get_final_completion()
    else:
        answer = await complete(here, tools=[CLIENT_TOOL])
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.\n\nLook.")
    (asked,) = choice.message.tool_calls
    assert (asked.id, asked.function.name, json.loads(asked.function.arguments)) == ("call_2", "browse", {"url": "u"})
    assert len(here.upstream.received) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_of_a_mixed_round_the_client_gets_its_calls_and_no_skill_is_run(here: Place, stream: bool) -> None:
    mixed = [call("act", "a", how="x"), call("browse", "b", url="u"), call("act", "c", how="x")]
    here.upstream.script = model(Round(calls=mixed))
    if stream:
        async with client(here).chat.completions.stream(model="slow", messages=ASKED, tools=[CLIENT_TOOL]) as events:
            answer = await events.get_final_completion()
    else:
        answer = await complete(here, tools=[CLIENT_TOOL])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert [(c.id, c.function.name) for c in choice.message.tool_calls] == [("b", "browse")]
    assert await rows(here) == []
    assert here.metric("tool_loop_turns_total", model="slow", end="client") == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [[], [CLIENT_TOOL]])
async def test_after_the_last_round_the_model_is_asked_without_skills(
    tmp_path: Path, stream: bool, tools: list[Any]
) -> None:
    async with looping(tmp_path, rounds=2) as here:
        here.upstream.script = model(ACT)  # calls for ever
        given = {"tools": tools} if tools else {}
        if stream:
            chunks = chunks_of(await raw(here, **given))
            reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
            assert [r for r in reasons if r] == ["length"]
        else:
            answer = await complete(here, **given)
            assert answer.choices[0].finish_reason == "length"
            assert answer.choices[0].message.content == "\n\n".join(["Let me see."] * 3)
        assert len(here.upstream.received) == 3 and len(await rows(here)) == 2
        last = here.upstream.received[2].json
        assert last["tools"] == tools if tools else last["tool_choice"] == "none"
        assert here.metric("tool_loop_turns_total", model="slow", end="cap") == 1


async def test_no_more_calls_are_run_than_a_turn_may(tmp_path: Path) -> None:
    async with looping(tmp_path, calls=3) as here:
        two = Round(calls=[call("act", "a", how="x"), call("act", "b", how="x")])
        here.upstream.script = model(two, two, ANSWER)
        answer = await complete(here)
        assert answer.choices[0].message.content == "It is well."
        assert len(await rows(here)) == 3
        assert "no more calls" in told(here)[3]["content"]
        assert here.upstream.received[2].json["tool_choice"] == "none"


async def test_when_the_time_is_up_a_running_skill_is_cut_and_the_model_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Act, "timeout", 20.0)
    async with looping(tmp_path, time="300ms") as here:
        session = await here.session()
        here.upstream.script = model(Round(calls=[call("act", how="sleep")]), ANSWER)
        started = time.monotonic()
        answer = await complete(here, extra_body={"sessionId": session})
        assert time.monotonic() - started < 5
        assert answer.choices[0].message.content == "It is well."
        assert json.loads(told(here)[0]["content"])["error"]["code"] == "cancelled"
        assert [row["status"] for row in await rows(here)] == ["cancelled"]
        assert await used(here, session) == 0


async def test_a_large_result_is_cut_for_the_model_and_says_so(tmp_path: Path) -> None:
    async with looping(tmp_path, result="10B") as here:
        here.upstream.script = model(Round(calls=[call("act", how="w\u00e4\u00e4\u00e4\u00e4ll")]), ANSWER)
        await complete(here)
        assert told(here)[0]["content"] == "did w\u00e4\u00e4\n[cut: 15 bytes in all]"


async def test_what_a_request_says_of_tools_holds(here: Place) -> None:
    received = here.upstream.received
    # a tool of the client's hides a skill of that name
    mine = {"type": "function", "function": {"name": "act", "parameters": {"type": "object"}}}
    here.upstream.script = model(ACT)
    answer = await complete(here, tools=[mine])
    assert answer.choices[0].message.tool_calls[0].function.name == "act"
    assert [tool["function"]["name"] for tool in received[0].json["tools"]] == ["act", "search"]
    assert await rows(here) == []

    # who wants no tools, or several answers, gets no loop
    here.upstream.script = model(ANSWER)
    for more in ({"tool_choice": "none", "tools": [CLIENT_TOOL]}, {"n": 2}):
        await complete(here, **more)
        assert "act" not in [tool["function"]["name"] for tool in received[-1].json.get("tools", [])]

    # a call that was cut is not run
    here.upstream.script = model(Round("Long", calls=[call("act", how="x")], finish="length"))
    answer = await complete(here)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.tool_calls) == ("length", None)
    assert await rows(here) == []

    # a call that is forced is forced once
    here.upstream.script = model(ACT, ANSWER)
    forced = {"type": "function", "function": {"name": "act"}}
    await complete(here, tool_choice=forced)
    assert [each.json["tool_choice"] for each in received[-2:]] == [forced, "auto"]
    assert len(await rows(here)) == 1


async def test_a_model_may_call_what_the_tier_opens_and_nothing_else(tmp_path: Path) -> None:
    """Whatever the loop would offer: the other skill is not told of, and a call of it is one of no tool."""
    tiers = {path.stem: path.read_text() for path in asset("tiers").glob("*.toml")}
    tiers["open_source"] = 'skills = ["search"]\n' + tiers["open_source"]
    async with looping(tmp_path, tiers=tiers) as here:
        here.upstream.script = model(Round(calls=[call("act", how="x")]), ANSWER)
        for stream in (False, True):
            await raw(here, stream=stream)
            offered, _ = here.upstream.received[-2:]
            assert [tool["function"]["name"] for tool in offered.json["tools"]] == ["search"]
            (message,) = told(here)
            assert json.loads(message["content"])["error"]["message"] == "there is no tool 'act'"
        assert await rows(here) == []


async def test_off_by_default_and_for_other_models(tmp_path: Path) -> None:
    async with place(tmp_path / "off") as here:
        here.upstream.script = model(ACT)
        answer = await complete(here)
        assert answer.choices[0].message.tool_calls[0].function.name == "act"
        assert "tools" not in here.upstream.received[0].json
    async with looping(tmp_path / "other", models=["echo"]) as here:
        here.upstream.script = model(ANSWER)
        await complete(here)
        assert "tools" not in here.upstream.received[0].json


async def test_a_round_falls_back_and_a_failure_after_content_is_an_error_event(tmp_path: Path) -> None:
    spare = {"models.slow.fallbacks": ["spare"], "models.spare.provider": "echo", "models.slow.retries": 0}
    async with looping(tmp_path, spare) as here:
        first = model(ACT)

        def broken(received: Any) -> Any:
            return first(received) if len(received.json["messages"]) == 1 else [event(b"not json")]

        here.upstream.script = broken
        chunks = chunks_of(await raw(here))
        said_in_all = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert said_in_all.startswith("Let me see.\n\nWhat is it?")  # echo answers in the second round
        assert here.metric("model_fallbacks_total", model="slow", fallback="spare", reason="broken") == 1
    async with looping(tmp_path / "alone", {"models.slow.retries": 0}) as here:
        here.upstream.script = broken
        stream = await raw(here)
        assert '"error"' in stream and "[DONE]" not in stream
        assert await messages_used(here) == 1


async def test_a_failure_of_the_last_round_of_a_plain_turn_is_an_error_and_no_charge(here: Place) -> None:
    session = await here.session()
    first = model(ACT)
    here.upstream.script = lambda r: first(r) if len(r.json["messages"]) == 1 else [b"not json"]
    with pytest.raises(openai.APIStatusError) as failed:
        await complete(here, extra_body={"sessionId": session})
    assert failed.value.status_code == 502
    assert (await messages_used(here), await used(here, session)) == (0, 1)  # the skill did run


async def test_a_turn_over_the_socket_runs_skills_and_tells_of_them(here: Place) -> None:
    session = await here.session()
    here.upstream.script = model(ACT, ANSWER)
    async with here.connect(session) as socket:
        await say(socket, type="message", id="m1", content="What is it?", stream=True, model="slow")
        frames: list[Any] = []
        while not frames or frames[-1]["type"] != "message":
            frames.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
    text = "".join(f["chunk"] for f in frames if f["type"] == "stream")
    assert text == frames[-1]["content"] == "Let me see.\n\nIt is well."
    assert [(f["state"], f["name"], f["ref"]) for f in frames if f["type"] == "skill"] == [
        ("started", "act", "m1"),
        ("completed", "act", "m1"),
    ]
    assert frames[-1]["metadata"]["skillExecuted"] is True and frames[-1]["usage"]["total_tokens"] == 44
    assert (await used(here, session), await messages_used(here)) == (1, 1)


async def test_cancel_over_the_socket_cuts_the_skill(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Act, "timeout", 20.0)
    session = await here.session()
    here.upstream.script = model(Round("Hm.", calls=[call("act", how="sleep")]), ANSWER)
    async with here.connect(session) as socket:
        await say(socket, type="message", id="m1", content="x", stream=True, model="slow")
        await said(socket, "skill")
        await until(lambda: Act.began)
        await say(socket, type="cancel", ref="m1")
        await until(lambda: Act.cancelled)
    await until(lambda: not len(here.gateway.plugin("skills")._runs))
    assert [row["status"] for row in await rows(here)] == ["cancelled"]
    assert await used(here, session) == 1  # its client cut it


@pytest.mark.parametrize("stream", [False, True])
async def test_it_works_in_anthropics_shape_too(here: Place, stream: bool) -> None:
    here.upstream.script = model(ACT, ANSWER)
    sdk = AsyncAnthropic(base_url=here.url, api_key=here.key, max_retries=0)
    CLIENTS.append(sdk)
    asked: Any = {"model": "slow", "max_tokens": 100, "messages": ASKED}
    if stream:
        async with sdk.messages.stream(**asked) as events:
            message = await events.get_final_message()
    else:
        message = await sdk.messages.create(**asked)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == "Let me see.\n\nIt is well."  # type: ignore[union-attr]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (40, 4)
    assert len(await rows(here)) == 1


async def test_tokens_are_charged_for_every_round_told_or_cut(tmp_path: Path) -> None:
    tiers = {path.stem: path.read_text() for path in asset("tiers").glob("*.toml")}
    tiers["open_source"] += '\n[quota.tokens]\nlimit = 100_000\nper = "month"\n'
    async with looping(tmp_path, tiers=tiers) as here:
        here.upstream.script = model(ACT, ANSWER)
        await complete(here)
        assert await charged(here, "quota.tokens") == 44
        await raw(here)
        assert await charged(here, "quota.tokens") == 88

        first = model(ACT)
        slow = [event(b'{"id":"x","choices":[{"index":0,"delta":{"content":"Soon"}}]}'), Pause(20)]
        here.upstream.script = lambda received: first(received) if len(received.json["messages"]) == 1 else slow
        stream = await client(here).chat.completions.create(model="slow", messages=ASKED, stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content == "\n\nSoon":
                break
        await stream.close()
        estimate = prompt_estimate(here.upstream.received[-1].json)
        async with asyncio.timeout(5):
            while (now := await charged(here, "quota.tokens")) > 1_000:  # what it was admitted for is still held
                await asyncio.sleep(0.02)
        assert 88 + 12 + estimate < now < 88 + 12 + estimate + 30


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"plugins.chat.tool_loop.models": ["nowhere"]}, "there is no model 'nowhere'"),
        ({"plugins.chat.tool_loop.skills": []}, "skills"),
    ],
)
async def test_a_loop_that_makes_no_sense_stops_the_start(tmp_path: Path, edit: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        async with looping(tmp_path, edit):
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_each_round_is_a_call_with_its_own_tokens(here: Place, stream: bool) -> None:
    here.upstream.script = model(ACT, ANSWER)
    if stream:
        await raw(here)
    else:
        await complete(here)
    value = here.gateway.registry.get_sample_value
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "upstream", "gen_ai_request_model": "slow"}
    for kind, total in (("input", 10 + 30), ("output", 2 + 2)):
        of = {**labels, "gen_ai_token_type": kind}
        assert value("gen_ai_client_token_usage_count", of) == 2
        assert value("gen_ai_client_token_usage_sum", of) == total
    assert value("gen_ai_client_operation_duration_seconds_count", {**labels, "error_type": ""}) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_that_is_no_number_is_none(here: Place, stream: bool) -> None:
    odd = Round("It is ", "well.")
    odd.usage = {"prompt_tokens": "many", "completion_tokens": "few", "total_tokens": None}
    here.upstream.script = model(odd)
    if stream:
        assert any(choice["finish_reason"] == "stop" for c in chunks_of(await raw(here)) for choice in c["choices"])
    else:
        assert (await complete(here)).choices[0].message.content == "It is well."
    families = here.gateway.registry.collect()
    assert not [s for family in families if family.name == "gen_ai_client_token_usage" for s in family.samples]
