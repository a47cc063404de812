"""What users of chat completions were promised, sentence by sentence, on the gateway as it is shipped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI

from openclaw_gateway.testing import build, configuration, serving

MESSAGES: Any = [{"role": "user", "content": "Good morning to all of you"}]


class Client:
    """A caller of one organisation, over a real socket."""

    def __init__(self, url: str, token: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.token = token
        self._session = session

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self._session.request(method, self.url + path, json=body) as answer:
            return answer.status, json.loads(await answer.read())

    async def complete(self, **body: Any) -> tuple[int, Any]:
        return await self.ask("POST", "/api/v1/chat/completions", {"model": "echo", "messages": MESSAGES, **body})


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    gateway = build(configuration(tmp_path))
    async with serving(gateway) as url:
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="teams")
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            yield Client(url, token, session)


async def test_a_completion_has_every_field(client: Client) -> None:
    """C1: a plain completion is a 200 with the model's name, one choice and real counts."""
    status, answer = await client.complete()
    assert status == 200
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "echo")
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert (choice["index"], choice["message"]["role"], choice["finish_reason"]) == (0, "assistant", "stop")
    assert choice["message"]["content"] == "Good morning to all of you"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}


async def test_a_stream_is_whole_chunks_and_the_marker(client: Client) -> None:
    """C2: a stream is events of whole chunks, one blank line after each, the last of them the marker."""
    async with client._session.post(
        client.url + "/v1/chat/completions", json={"model": "echo", "messages": MESSAGES, "stream": True}
    ) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        pieces = (await answer.text()).split("\n\n")
    data = [piece.removeprefix("data: ") for piece in pieces if piece.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert len(data) > 2
    for text in data[:-1]:
        chunk = json.loads(text)
        assert chunk["object"] == "chat.completion.chunk"
        assert {"id", "created", "model", "choices"} <= chunk.keys()


async def test_earlier_turns_of_the_request_are_known(client: Client) -> None:
    """C3: what the client said in an earlier turn of the same request is in the model's reach."""
    messages = [
        {"role": "user", "content": "I am called Ada"},
        {"role": "assistant", "content": "Welcome"},
        {"role": "user", "content": "How am I called?"},
    ]
    _, answer = await client.complete(messages=messages)
    assert "Ada" in answer["choices"][0]["message"]["content"]


async def test_a_system_message_shapes_the_answer(client: Client) -> None:
    """C4: the answer is another one when a system message stands before the prompt."""
    _, plain = await client.complete()
    _, shaped = await client.complete(messages=[{"role": "system", "content": "Speak like a pirate"}, *MESSAGES])
    assert "pirate" in shaped["choices"][0]["message"]["content"]
    assert plain["choices"][0]["message"]["content"] != shaped["choices"][0]["message"]["content"]


async def test_temperature_is_taken(client: Client) -> None:
    """C5: a temperature is accepted; at zero the same prompt has the same answer, to the letter."""
    answers = [(await client.complete(temperature=0.0))[1]["choices"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][0]["message"]["content"] == MESSAGES[0]["content"]


@pytest.mark.parametrize("bound", [1, 3, 100])
async def test_max_tokens_bounds_the_answer(client: Client, bound: int) -> None:
    """C6: no answer counts more tokens than the request allows, and a cut one says that it is cut."""
    _, answer = await client.complete(max_tokens=bound)
    assert answer["usage"]["completion_tokens"] == min(bound, 6)
    assert answer["choices"][0]["finish_reason"] == ("length" if bound < 6 else "stop")


async def test_an_unknown_model_is_the_clients_mistake(client: Client) -> None:
    """C7: a model that nobody knows is a 400 with the code for it, and names the field."""
    status, answer = await client.complete(model="no-such-model")
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == ("BAD_REQUEST", "model")


async def test_a_prompt_without_messages_is_refused(client: Client) -> None:
    """C8: an empty list of messages is a 400 with an error."""
    status, answer = await client.complete(messages=[])
    assert status == 400
    assert (answer["error"]["code"], answer["error"]["param"]) == ("BAD_REQUEST", "messages")


async def test_an_unknown_skill_is_refused(client: Client) -> None:
    """C10: a skill that nobody offers is a 400 with an error."""
    status, answer = await client.complete(metadata={"skillName": "no-such-skill"})
    assert status == 400
    assert answer["error"]["param"] == "metadata.skillName"


async def test_turns_of_a_session_are_in_its_history(client: Client) -> None:
    """C11: two completions on a session leave both turns, questions and answers, in its history."""
    status, session = await client.ask("POST", "/api/v1/sessions", {"metadata": {}})
    assert status == 201
    for text in ("first", "second"):
        status, _ = await client.complete(sessionId=session["sessionId"], messages=[{"role": "user", "content": text}])
        assert status == 200
    _, page = await client.ask("GET", f"/api/v1/sessions/{session['sessionId']}/messages")
    assert [(m["role"], m["content"]) for m in page["messages"]] == [
        ("user", "first"),
        ("assistant", "first"),
        ("user", "second"),
        ("assistant", "second"),
    ]


async def test_the_body_of_a_plain_sdk_is_enough(client: Client) -> None:
    """C13: what OpenAI's own SDK sends, without anything of ours, is answered in its own shape."""
    async with AsyncOpenAI(base_url=f"{client.url}/v1", api_key=client.token, max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(
            model="echo", messages=MESSAGES, top_p=0.9, frequency_penalty=0.1, presence_penalty=0.1, n=1, user="ada"
        )
    assert answer.choices[0].message.content == MESSAGES[0]["content"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
