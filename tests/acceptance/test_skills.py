"""What users of skills were promised in chat and over the socket, on the gateway as it is shipped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from socket_kit import Place, place, said, say

ASKED: Any = [{"role": "user", "content": "quarterly report"}]


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(tmp_path) as found:
        yield found


async def with_history(here: Place) -> str:
    session = await here.session()
    for content in ("The quarterly report is due on Friday.", "Lunch is at noon."):
        status, _ = await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": content})
        assert status == 201
    return session


async def test_c9_a_named_skill_is_run_and_its_result_is_the_content(here: Place) -> None:
    session = await with_history(here)
    body = {"model": "echo", "messages": ASKED, "sessionId": session, "metadata": {"skillName": "search"}}
    status, answer = await here.ask("POST", "/api/v1/chat/completions", body)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "1. user: The quarterly report is due on Friday."
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["metadata"] == {"skillExecuted": True, "skillName": "search"}
    assert here.metric("skill_executions_total", skill_name="search", status="completed") == 1
    _, history = await here.ask("GET", f"/api/v1/sessions/{session}/messages")
    asked, told = history["messages"][2:]
    assert (asked["role"], asked["content"]) == ("user", "quarterly report")
    assert (told["role"], told["content"]) == ("assistant", answer["choices"][0]["message"]["content"])
    assert told["metadata"]["skillExecuted"] is True


async def test_c9_without_a_session_and_as_a_stream(here: Place) -> None:
    client = AsyncOpenAI(base_url=here.url + "/v1", api_key=here.key)
    whole = await client.chat.completions.create(model="echo", messages=ASKED, metadata={"skillName": "search"})
    assert isinstance(whole.choices[0].message.content, str)
    stream = await client.chat.completions.create(
        model="echo",
        messages=ASKED,
        metadata={"skillName": "search"},
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 0
    await client.close()


async def test_a_named_skill_answers_the_messages_api_too(here: Place) -> None:
    client = AsyncAnthropic(base_url=here.url, api_key=here.key, max_retries=0)
    given: Any = {"model": "echo", "max_tokens": 5, "messages": ASKED}
    labels: Any = {"skillName": "no-such-skill", "user_id": "u"}
    with pytest.raises(anthropic.BadRequestError, match=r"metadata\.skillName"):
        await client.messages.create(**given, metadata=labels)
    _, usage = await here.ask("GET", "/api/v1/usage")
    assert {row["name"]: row["used"] for row in usage["limits"]}["quota.messages"] == 0
    labels["skillName"] = "search"
    whole = await client.messages.create(**given, metadata=labels)
    (block,) = whole.content
    assert block.type == "text" and block.text != "quarterly report"  # which echo would have said
    async with client.messages.stream(**given, metadata=labels) as stream:
        assert "".join([text async for text in stream.text_stream]) == block.text
    assert here.metric("skill_executions_total", skill_name="search", status="completed") == 2
    await client.close()


async def test_a_session_is_summarised_by_what_was_said_in_it(here: Place) -> None:
    """In the session's own words, which no model adds to, the same each time; of another session nothing is in it."""
    await with_history(here)
    session = await here.session()
    for content in (
        "We ship the release on Friday.",
        "It rains.",
        "The release needs its changelog.",
        "Who writes the changelog of the release?",
    ):
        assert (await here.ask("POST", f"/api/v1/sessions/{session}/messages", {"content": content}))[0] == 201
    told = []
    for _ in range(2):
        asked = {"sessionId": session, "params": {"sentences": 3}}
        status, run = await here.ask("POST", "/api/v1/skills/summarise_session/execute", asked)
        assert (status, run["status"]) == (200, "completed")
        told.append(run["result"]["text"])
    assert told[0] == told[1]
    places = [told[0].index(part) for part in ("on Friday", "needs its changelog", "Who writes")]
    assert places == sorted(places) and "It rains" not in told[0] and "quarterly" not in told[0]
    chat = {"model": "echo", "messages": ASKED, "sessionId": session, "metadata": {"skillName": "summarise_session"}}
    status, answer = await here.ask("POST", "/v1/chat/completions", chat)
    assert status == 200 and "on Friday" in answer["choices"][0]["message"]["content"]


async def test_c10_an_unknown_skill_is_400_and_costs_nothing(here: Place) -> None:
    session = await here.session()
    body = {"model": "echo", "messages": ASKED, "sessionId": session, "metadata": {"skillName": "no-such-skill"}}
    status, answer = await here.ask("POST", "/api/v1/chat/completions", body)
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == ("BAD_REQUEST", "metadata.skillName")
    _, usage = await here.ask("GET", "/api/v1/usage")
    assert {row["name"]: row["used"] for row in usage["limits"]}["quota.messages"] == 0


async def test_w7_a_message_that_names_a_skill_is_answered_by_its_result(here: Place) -> None:
    session = await with_history(here)
    async with here.connect(session) as socket:
        await say(socket, "message", content="quarterly report", id="m1", metadata={"skillName": "search"})
        frames = []
        while not frames or frames[-1]["type"] != "message":
            frames.append(await said(socket, "skill", "message", "error"))
    assert [(f["type"], f.get("state")) for f in frames] == [
        ("skill", "started"),
        ("skill", "completed"),
        ("message", None),
    ]
    assert {f["ref"] for f in frames} == {"m1"}
    answer = frames[-1]
    assert answer["metadata"]["skillExecuted"] is True
    assert answer["content"] == "1. user: The quarterly report is due on Friday."
    assert (answer["role"], answer["sessionId"]) == ("assistant", session)


async def test_w7_as_a_stream_and_unknown(here: Place) -> None:
    session = await with_history(here)
    async with here.connect(session) as socket:
        await say(socket, "message", content="quarterly", stream=True, id="m1", metadata={"skillName": "search"})
        text = ""
        while not (frame := await said(socket, "stream"))["done"]:
            text += frame["chunk"]
        assert (await said(socket, "message"))["content"] == text != ""
        for i, name in enumerate(("nothing", 7, {"a": 1})):
            await say(socket, "message", content="x", id=f"u{i}", metadata={"skillName": name})
            error = await said(socket, "error")
            assert (error["code"], error.get("param"), error["ref"]) == (
                "BAD_REQUEST",
                "metadata.skillName",
                f"u{i}",
            ), error


async def test_a_session_has_ten_runs_whichever_way_they_come(here: Place) -> None:
    session = await here.session()
    body = {"sessionId": session, "params": {"query": "x"}}
    for _ in range(9):
        assert (await here.ask("POST", "/api/v1/skills/search/execute", body))[0] == 200
    chat = {"model": "echo", "messages": ASKED, "sessionId": session, "metadata": {"skillName": "search"}}
    assert (await here.ask("POST", "/v1/chat/completions", chat))[0] == 200
    status, answer = await here.ask("POST", "/v1/chat/completions", chat)
    assert (status, answer["error"]["code"]) == (403, "QUOTA_EXCEEDED")
    async with here.connect(session) as socket:
        await say(socket, "message", content="x", metadata={"skillName": "search"})
        assert (await said(socket, "error"))["code"] == "QUOTA_EXCEEDED"
    assert json.dumps(answer).find("quota.skills") > 0
