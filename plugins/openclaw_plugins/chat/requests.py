"""Reads a body of the OpenAI surface and writes the one that goes to the upstream; changes no byte without need."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from openclaw_gateway.api import NewMessage, Refused, bad_request, decode
from openclaw_plugins.chat.shapes import ChatMessage, Completion, EmbeddingRequest

T = TypeVar("T", Completion, EmbeddingRequest)

_MOST_PROBLEMS = 100
#: texts of one request for vectors, as OpenAI has it
_MOST_INPUTS = 2048

_MODEL = b'"model"'
_object = msgspec.json.Decoder(dict[str, Any])
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode
#: a letter of a key written as an escape
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


def read_completion(body: bytes) -> tuple[Completion, dict[str, Any]]:
    """Return what the gateway reads of a completion request, and all of it. Raises Refused (400)."""
    completion, request = _read(body, Completion)
    for message in completion.messages:
        if message.content is None or message.role == "tool":
            _check(completion)
            break
    return completion, request


def read_embedding(body: bytes) -> tuple[EmbeddingRequest, dict[str, Any]]:
    """Return what the gateway reads of an embeddings request, and all of it. Raises Refused (400)."""
    embedding, request = _read(body, EmbeddingRequest)
    given = embedding.input
    if isinstance(given, list) and len(given) > _MOST_INPUTS and not _tokens(given):
        raise Refused(bad_request(f"input: expected at most {_MOST_INPUTS} texts", param="input"))
    if isinstance(given, list) and not (_texts(given) or _tokens(given) or all(_tokens(item) for item in given)):
        message = "expected a text, a list of texts, a list of tokens or a list of these"
        raise Refused(bad_request(f"input: {message}", param="input"))
    return embedding, request


def forwarded(body: bytes, request: dict[str, Any], upstream_model: str) -> bytes:
    """Return the body for the upstream: the very bytes, or with the model's name and our own field changed.

    A key that stands twice, or in two spellings, could be read one way here and another way upstream, and the
    model is what a tier is checked against: such a body is written anew, so that both read the same.
    """
    same = request["model"] == upstream_model and "sessionId" not in request
    if same and body.count(_MODEL) == 1 and _ESCAPED_LETTER.search(body) is None:
        return body
    fields = _raw_object.decode(body)
    fields.pop("sessionId", None)
    fields["model"] = msgspec.Raw(_encode(upstream_model))
    return _encode(fields)


def asks_for_usage(request: dict[str, Any]) -> bool:
    """Whether the client wants the usage of its stream told."""
    options = request.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def asking_for_usage(body: bytes, request: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Return a request for a stream with the wish that its usage is told at the end; all else as it was."""
    options = {**(request.get("stream_options") or {}), "include_usage": True}
    fields = _raw_object.decode(body)
    fields["stream_options"] = msgspec.Raw(_encode(options))
    return _encode(fields), {**request, "stream_options": options}


class Alias:
    """Puts the name under which clients know a model into what its upstream says: whole answers, chunks of streams.

    What an upstream calls its model may be a path on its machine. An answer that has the right name already passes
    as it is, and so does all but the name of one that names it as the last one did.
    """

    __slots__ = ("_last", "_loose", "_name", "_same", "_tight")

    def __init__(self, alias: str) -> None:
        self._name, self._tight, self._loose = _fields(alias)
        #: the field as the upstream wrote it last, and whether it has the right name there
        self._last = self._tight
        self._same = True

    def put(self, answer: bytes) -> bytes:
        field = self._last
        at = answer.find(field)
        # A quote within a text is escaped: what stands there in quotes once is the key.
        if at < 0 or answer.find(_MODEL, at + 1) >= 0 or answer.find(_MODEL, 0, at) >= 0:
            return self._look(answer)
        return answer if self._same else b"".join((answer[:at], self._tight, answer[at + len(field) :]))

    def _look(self, answer: bytes) -> bytes:
        """Put the name into an answer unlike the last one."""
        once = answer.count(_MODEL) == 1
        if once and (self._tight in answer or self._loose in answer):
            self._last, self._same = (self._tight if self._tight in answer else self._loose), True
            return answer
        fields = _raw_object.decode(answer)
        named = bytes(fields.get("model", b""))
        theirs = next((f for f in (b'"model":' + named, b'"model": ' + named) if f in answer), None)
        if theirs is not None and named.startswith(b'"'):
            self._last, self._same = theirs, False
        fields["model"] = msgspec.Raw(self._name)
        return _encode(fields)


def new_turn(messages: list[ChatMessage]) -> list[NewMessage]:
    """Return what of a prompt is new and belongs into a history: the last user message, or results of tools.

    Everything before it the client resends, and the history holds it already.
    """
    results: list[NewMessage] = []
    for message in reversed(messages):
        if message.role != "tool":
            break
        results.append(
            NewMessage(role="tool", content=_content(message), metadata={"toolCallId": message.tool_call_id})
        )
    if results:
        return results[::-1]
    for message in reversed(messages):
        if message.role == "user":
            return [NewMessage(role="user", content=_content(message))]
    return []


def last_said(messages: list[ChatMessage]) -> str:
    """Return the text of what is new, for a skill; of several the last."""
    asked = new_turn(messages)
    return str(asked[-1].content) if asked else ""


def _check(completion: Completion) -> None:
    """Refuse messages without what their roles need."""
    problems = [
        {"param": f"messages[{i}].content", "message": f"a message of role {message.role} needs content"}
        for i, message in enumerate(completion.messages)
        if message.content is None and message.role != "assistant"
    ]
    problems += [
        {"param": f"messages[{i}].tool_call_id", "message": "a message of role tool needs the call that it answers"}
        for i, message in enumerate(completion.messages)
        if message.role == "tool" and message.tool_call_id is None
    ]
    if problems:
        first = problems[0]
        told = problems[:_MOST_PROBLEMS]
        raise Refused(bad_request(f"{first['param']}: {first['message']}", param=first["param"], problems=told))


def _content(message: ChatMessage) -> Any:
    """Parts are stored by their text; an image of many megabytes is no history."""
    if isinstance(message.content, list):
        return "\n".join(part.text if part.text is not None else f"[{part.type}]" for part in message.content)
    return message.content


def _read(body: bytes, shape: type[T]) -> tuple[T, dict[str, Any]]:
    request = decode(body, dict[str, Any], decoder=_object)
    for key in request:
        # Go's decoder, for one, would take it for the model; a tier is checked against what we read.
        if len(key) == 5 and key != "model" and key.lower() == "model":
            raise Refused(bad_request(f"{key}: the field is written `model`", param=key))
    try:
        return msgspec.convert(request, shape), request
    except msgspec.ValidationError:
        decode(body, shape)  # refuses, with every problem and its path
        raise


@lru_cache(maxsize=10_000)
def _fields(alias: str) -> tuple[bytes, bytes, bytes]:
    """The alias as JSON, and the field that holds it as most write it and as Python's encoder does."""
    name = _encode(alias)
    return name, b'"model":' + name, b'"model": ' + name


def _texts(given: list[Any]) -> bool:
    return all(isinstance(item, str) for item in given)


def _tokens(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(item) is int for item in given)
