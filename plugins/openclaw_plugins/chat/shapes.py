"""What the OpenAI surface takes and gives, as far as the gateway reads it; all else passes through unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Role = Literal["system", "developer", "user", "assistant", "tool"]

#: more tokens than any model takes; a 32-bit count, so that sums of them stay whole numbers in every store
TokenBound = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Part(msgspec.Struct):
    """A part of a message's content; `text` where it is one of type text."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One message of a prompt."""

    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    """How a stream is to be given."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Metadata(msgspec.Struct, rename={"skill_name": "skillName"}):
    """The client's own labels, and the skill that it wants run."""

    skill_name: Annotated[str | None, Meta(description="Run this skill.")] = None


class ToolFunction(msgspec.Struct):
    """What a model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(msgspec.Struct):
    """A tool that is offered to the model; vendors have kinds of their own beside functions."""

    type: str | None = None
    function: ToolFunction | None = None


class ResponseFormat(msgspec.Struct):
    """The form that the answer is to have."""

    type: str
    json_schema: dict[str, Any] | None = None


class Completion(msgspec.Struct, rename={"session_id": "sessionId"}):
    """A chat completion request. What is named here is checked; all of it goes to the upstream unchanged."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenBound | None = None
    max_completion_tokens: TokenBound | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    # Which values make sense is each upstream's affair: those of llama.cpp and vLLM go beyond OpenAI's.
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    #: a whole number, which some clients write as 1e2
    seed: Annotated[float, Meta(ge=-(2.0**63), le=2.0**64)] | None = None
    user: str | None = None
    tools: list[ChatTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[ToolFunction] | None = None
    function_call: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    session_id: Annotated[
        str | None, Meta(description="Append the user's turn and the answer to this session's history.")
    ] = None


class AnswerMessage(msgspec.Struct):
    """The message of an answer."""

    role: Literal["assistant"]
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    """One answer of a completion."""

    index: int
    message: AnswerMessage
    finish_reason: str | None


class Usage(msgspec.Struct):
    """Tokens as the model counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionAnswer(msgspec.Struct):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(msgspec.Struct, frozen=True):
    """A model under the name that clients use."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The models that the caller's tier may use."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


class EmbeddingRequest(msgspec.Struct):
    """An embeddings request."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    input: Annotated[
        Annotated[str, Meta(min_length=1)] | Annotated[list[Any], Meta(min_length=1)],
        Meta(description="A text, texts, tokens, or lists of tokens."),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    user: str | None = None


class Embedding(msgspec.Struct):
    """The vector of one input; text where base64 was asked for."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct):
    """Tokens as the model counted them."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """The vectors, in the order of the inputs."""

    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
