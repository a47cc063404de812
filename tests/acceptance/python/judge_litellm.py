"""LiteLLM as a judge, by both protocols: run with the URL, an API key, and one of a tier of one call a minute."""

import json
import sys
from typing import Any

import litellm

url, token, tight = sys.argv[1:]
hello = [{"role": "user", "content": "Hello there"}]
tools = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
protocols: dict[str, dict[str, Any]] = {
    "openai": {"api_base": url + "/v1", "num_retries": 0, "max_retries": 0},
    "anthropic": {"api_base": url, "num_retries": 0, "max_retries": 0, "max_tokens": 50},
}


def ask(protocol: str, model: str, messages: list[Any], key: str = token, **more: Any) -> Any:
    return litellm.completion(
        model=f"{protocol}/{model}", messages=messages, api_key=key, **protocols[protocol], **more
    )


def refused(kind: type[Exception], *arguments: Any) -> Any:
    """What it raises, whole and streamed."""
    for stream in (False, True):
        try:
            list(ask(*arguments, stream=stream))
        except kind as error:
            raised = error
        else:
            raise AssertionError(f"{kind.__name__} was expected")
    return raised


for protocol in protocols:
    whole = ask(protocol, "echo", hello)
    assert whole.choices[0].message.content == "Hello there"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == 2
    parts = list(ask(protocol, "echo", hello, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "Hello there"
    built = litellm.stream_chunk_builder(parts, messages=hello)
    assert built.choices[0].finish_reason == "stop"
    assert built.usage.completion_tokens == 2

    # A tool call, whole and streamed, and the turn after it.
    asked = [{"role": "user", "content": "Weather in Bonn?"}]
    called = ask(protocol, "tools", asked, tools=tools)
    streamed = litellm.stream_chunk_builder(list(ask(protocol, "tools", asked, tools=tools, stream=True)))
    for answer in (called, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls
        assert (call.id, call.function.name) == ("call_1", "weather")
        assert json.loads(call.function.arguments) == {"city": "Bonn"}
    after = [*asked, called.choices[0].message, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
    assert ask(protocol, "tools", after, tools=tools).choices[0].message.content == "It is rain."

    assert "there is no model" in str(refused(litellm.BadRequestError, protocol, "nope", hello))
    refused(litellm.AuthenticationError, protocol, "echo", hello, "nonsense")

ask("openai", "echo", hello, tight)
for protocol in protocols:
    assert refused(litellm.RateLimitError, protocol, "echo", hello, tight).status_code == 429
vectors = litellm.embedding(model="openai/echo", input=["one", "other"], api_key=token, api_base=url + "/v1")
assert [len(one["embedding"]) > 0 for one in vectors.data] == [True, True]
