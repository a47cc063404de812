"""LangChain as a judge: run with the URL of the gateway, an API key, and one of a tier of one call a minute."""

import sys

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

url, token, tight = sys.argv[1:]
given = {"base_url": url + "/v1", "max_retries": 0}

chat = ChatOpenAI(model="echo", api_key=token, **given)
whole = chat.invoke("Hello there")
assert whole.content == "Hello there"
assert whole.usage_metadata["output_tokens"] == 2
assert whole.response_metadata["model_name"] == "echo"
parts = list(chat.stream("Hello there", stream_usage=True))
assert "".join(part.content for part in parts) == "Hello there"
assert [part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata] == [2]

# it asks for vectors in base64, and counts tokens with tables that it would fetch unless told not to
vectors = OpenAIEmbeddings(model="echo", api_key=token, check_embedding_ctx_length=False, **given)
one, other, again = vectors.embed_documents(["one", "other", "one"])
assert len(one) == len(other) > 0
assert one == again != other

# A tool call, whole and streamed, and the turn after it.
weather = {"title": "weather", "description": "?", "type": "object", "properties": {"city": {"type": "string"}}}
tools = ChatOpenAI(model="tools", api_key=token, **given).bind_tools([weather])
asked = [{"role": "user", "content": "Weather in Bonn?"}]
called = tools.invoke(asked)
first, *rest = tools.stream(asked)
for part in rest:
    first += part
for message in (called, first):
    (call,) = message.tool_calls
    assert (call["id"], call["name"], call["args"]) == ("call_1", "weather", {"city": "Bonn"}), call
    assert message.response_metadata["finish_reason"] == "tool_calls"
told = {"role": "tool", "content": "rain", "tool_call_id": "call_1"}
assert tools.invoke([*asked, called, told]).content == "It is rain."


def refused(kind: type[openai.APIStatusError], client: ChatOpenAI) -> openai.APIStatusError:
    """What it raises, whole and streamed."""
    for ask in (client.invoke, lambda asked: list(client.stream(asked))):
        try:
            ask("Hello there")
        except kind as error:
            raised = error
        else:
            raise AssertionError(f"{kind.__name__} was expected")
    return raised


assert refused(openai.BadRequestError, ChatOpenAI(model="nope", api_key=token, **given)).param == "model"
refused(openai.AuthenticationError, ChatOpenAI(model="echo", api_key="nonsense", **given))
limited = ChatOpenAI(model="echo", api_key=tight, **given)
limited.invoke("Hello there")
assert 1 <= int(refused(openai.RateLimitError, limited).response.headers["retry-after"]) <= 61
