"""What the OpenAI surface takes and gives, as far as the gateway reads it; all else passes through unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Part(msgspec.Struct):
    """A part of a message's content; `text` where it is one of type text."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    """One message of a prompt."""

    role: Role
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct):
    """How a stream is to be given."""

    include_usage: bool | None = None


class Metadata(msgspec.Struct, rename={"skill_name": "skillName"}):
    """The client's own labels, and the skill that it wants run."""

    skill_name: Annotated[str | None, Meta(description="Run this skill.")] = None


class Completion(msgspec.Struct, rename={"session_id": "sessionId"}):
    """A chat completion request. Fields that are not named here go to the model's upstream unchanged."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
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
    dimensions: Annotated[int, Meta(ge=1)] | None = None


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
