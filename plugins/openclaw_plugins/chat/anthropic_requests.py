"""Reads a request of Anthropic's Messages API as a chat completion request; refuses what has no counterpart there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Refused, bad_request, decode
from openclaw_plugins.chat.shapes import Completion, TokenBound

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Block(msgspec.Struct):
    """A block of content. Blocks of a kind that the gateway does not know are refused."""

    type: str
    text: str | None = None
    source: dict[str, Any] | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Turn(msgspec.Struct):
    """One message of a prompt."""

    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A tool of the client's own."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct):
    """Which tool is to be used."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Labels(msgspec.Struct, rename={"skill_name": "skillName"}):
    """The client's own name for its user, and the skill that it wants run."""

    user_id: str | None = None
    skill_name: Annotated[str | None, Meta(description="Run this skill.")] = None


class MessagesRequest(msgspec.Struct):
    """A request of the Messages API, as far as it has a counterpart; fields that are not named here are left out."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    max_tokens: TokenBound
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[Block] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    metadata: Labels | None = None


def read_messages(body: bytes) -> tuple[Completion, dict[str, Any], bytes]:
    """Return the request as a chat completion: what the gateway reads of it, all of it, its bytes. Raises Refused."""
    asked = decode(body, MessagesRequest)
    request: dict[str, Any] = {"model": asked.model, "max_tokens": asked.max_tokens}
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system, "system")})
    for i, turn in enumerate(asked.messages):
        messages += _said(turn, f"messages[{i}].content") if turn.role == "assistant" else _asked(turn, i)
    request["messages"] = messages
    if asked.stream:
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}
    given = {"stop": asked.stop_sequences, "temperature": asked.temperature, "top_p": asked.top_p}
    request.update({name: value for name, value in given.items() if value is not None})
    if asked.metadata is not None and asked.metadata.user_id is not None:
        request["user"] = asked.metadata.user_id
    if asked.metadata is not None and asked.metadata.skill_name is not None:
        request["metadata"] = {"skillName": asked.metadata.skill_name}
    if asked.tools:
        request["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(asked.tools)]
        choice = asked.tool_choice
        if choice is not None:
            request["tool_choice"] = _choice(choice)
            if choice.disable_parallel_tool_use:
                request["parallel_tool_calls"] = False
    return msgspec.convert(request, Completion), request, msgspec.json.encode(request)


def _asked(turn: Turn, number: int) -> Iterator[dict[str, Any]]:
    """A user's turn: first the results of tools that it brings, each a message of its own."""
    if isinstance(turn.content, str):
        yield {"role": "user", "content": turn.content}
        return
    if not turn.content:
        # It would become no message at all, and a prompt of such turns none; an assistant's may be empty, as there.
        raise _refused(f"messages[{number}].content", "expected at least one block")
    parts: list[dict[str, Any]] = []
    for i, block in enumerate(turn.content):
        path = f"messages[{number}].content[{i}]"
        if block.type == "tool_result":
            if block.tool_use_id is None:
                raise _refused(f"{path}.tool_use_id", "missing")
            text = _text(block.content or "", f"{path}.content")
            result = f"error: {text}" if block.is_error else text
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": result}
        elif block.type == "text":
            parts.append({"type": "text", "text": block.text or ""})
        elif block.type == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block.source or {}, f"{path}.source")}})
        else:
            raise _refused(f"{path}.type", f"no model here takes a block of type {block.type!r:.40}")
    if parts:
        text_only = all(part["type"] == "text" for part in parts)
        yield {"role": "user", "content": "\n".join(part["text"] for part in parts) if text_only else parts}


def _said(turn: Turn, path: str) -> Iterator[dict[str, Any]]:
    if isinstance(turn.content, str):
        yield {"role": "assistant", "content": turn.content}
        return
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(turn.content):
        if block.type == "text":
            texts.append(block.text or "")
        elif block.type == "tool_use":
            if block.id is None or block.name is None:
                raise _refused(f"{path}[{i}]", "a tool_use block needs an id and a name")
            arguments = msgspec.json.encode(block.input or {}).decode()
            function = {"name": block.name, "arguments": arguments}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type not in ("thinking", "redacted_thinking"):  # which only the model that thought it could read
            raise _refused(f"{path}[{i}].type", f"no model here takes a block of type {block.type!r:.40}")
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or (None if calls else "")}
    if calls:
        message["tool_calls"] = calls
    yield message


def _text(content: str | list[Block], path: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text":
            raise _refused(f"{path}[{i}].type", "only text is taken here")
    return "\n".join(block.text or "" for block in content)


def _image(source: dict[str, Any], path: str) -> str:
    kind = source.get("type")
    if kind == "url" and isinstance(source.get("url"), str):
        return str(source["url"])
    if kind == "base64" and isinstance(source.get("data"), str) and isinstance(source.get("media_type"), str):
        return f"data:{source['media_type']};base64,{source['data']}"
    raise _refused(path, "expected a source of type url or base64")


def _tool(tool: Tool, path: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise _refused(f"{path}.type", "only the client's own tools are taken")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema or {"type": "object"}}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> Any:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        raise _refused("tool_choice.name", "missing")
    return {"type": "function", "function": {"name": choice.name}}


def _refused(param: str, message: str) -> Refused:
    return Refused(bad_request(f"{param}: {message}", param=param))
