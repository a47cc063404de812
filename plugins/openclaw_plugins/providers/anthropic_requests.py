"""Turns a chat completion request into one of Anthropic's Messages API; refuses what it cannot say there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from openclaw_gateway.api import UpstreamFailed

_DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,(.+)", re.DOTALL)
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
#: passed on as they are
_SAME = ("top_p",)


def messages_request(request: Mapping[str, Any], model: str, *, stream: bool, max_tokens: int) -> bytes:
    """Return the body for the upstream. Raises UpstreamFailed (400) with the path of what has no counterpart."""
    if request.get("n") not in (None, 1):
        raise _cannot("n", "only one answer can be asked of this model")
    shape = request.get("response_format")
    if shape is not None and _field(shape, "type", "response_format") != "text":
        raise _cannot("response_format", "this model takes no response format; ask for one by a tool")
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.get("max_completion_tokens") or request.get("max_tokens") or max_tokens,
        "messages": _messages(request["messages"]),
    }
    system = [
        {"type": "text", "text": text}
        for i, message in enumerate(request["messages"])
        if message["role"] in ("system", "developer")
        for text in _texts(message.get("content"), f"messages[{i}].content")
    ]
    if system:
        body["system"] = system
    if stream:
        body["stream"] = True
    body.update({name: request[name] for name in _SAME if request.get(name) is not None})
    if isinstance(temperature := request.get("temperature"), (int, float)):
        body["temperature"] = min(temperature, 1.0)  # the scale ends there
    stop = request.get("stop")
    if stop:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if isinstance(user := request.get("user"), str):
        body["metadata"] = {"user_id": user}
    if tools := request.get("tools"):
        body["tools"] = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
        choice = _choice(request.get("tool_choice"))
        if request.get("parallel_tool_calls") is False:
            choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
        if choice is not None:
            body["tool_choice"] = choice
    return msgspec.json.encode(body)


def _messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours of one role become one message: results of tools have to stand in the user's next turn."""
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        role, path = message["role"], f"messages[{i}]"
        if role in ("system", "developer"):
            continue
        if role == "tool":
            text = "\n".join(_texts(message.get("content"), f"{path}.content"))
            said, blocks = "user", [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": text}]
        elif role == "assistant":
            said, blocks = role, _said(message, path)
        else:
            said, blocks = role, list(_parts(message.get("content"), f"{path}.content"))
        if not blocks:
            continue
        if turns and turns[-1]["role"] == said:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": said, "content": blocks})
    return turns


def _said(message: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    # An empty text is an error there.
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": text} for text in _texts(message.get("content"), f"{path}.content") if text
    ]
    for i, call in enumerate(message.get("tool_calls") or ()):
        place = f"{path}.tool_calls[{i}]"
        function = _field(call, "function", place)
        arguments = function.get("arguments") or "{}" if isinstance(function, dict) else "{}"
        try:
            given = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.DecodeError, TypeError):
            raise _cannot(f"{place}.function.arguments", "expected the text of a JSON object") from None
        name = _field(function, "name", f"{place}.function")
        blocks.append({"type": "tool_use", "id": _field(call, "id", place), "name": name, "input": given})
    return blocks


def _parts(content: Any, path: str) -> Iterable[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    for i, part in enumerate(content or ()):
        kind = part.get("type")
        if kind == "text":
            yield {"type": "text", "text": part.get("text") or ""}
        elif kind == "image_url":
            url = _field(_field(part, "image_url", f"{path}[{i}]"), "url", f"{path}[{i}].image_url")
            yield {"type": "image", "source": _image(str(url), f"{path}[{i}].image_url.url")}
        else:
            raise _cannot(f"{path}[{i}].type", f"this model takes no part of type {kind!r:.40}")


def _image(url: str, path: str) -> dict[str, str]:
    inline = _DATA_URL.fullmatch(url)
    if inline is not None:
        return {"type": "base64", "media_type": inline[1], "data": inline[2]}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise _cannot(path, "expected a URL, or an image as a base64 data URL")


def _texts(content: Any, path: str) -> Iterable[str]:
    if isinstance(content, str):
        yield content
        return
    for i, part in enumerate(content or ()):
        if part.get("type") not in ("text", "refusal"):
            raise _cannot(f"{path}[{i}].type", "this model takes only text here")
        yield part.get("text") or part.get("refusal") or ""


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if _field(tool, "type", path) != "function":
        raise _cannot(f"{path}.type", "this model takes only functions")
    function = _field(tool, "function", path)
    made = {
        "name": _field(function, "name", f"{path}.function"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    if function.get("description"):
        made["description"] = function["description"]
    return made


def _choice(choice: Any) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = _field(choice, "function", "tool_choice")
        return {"type": "tool", "name": _field(function, "name", "tool_choice.function")}
    raise _cannot("tool_choice", "expected auto, required, none or a function")


def _field(value: Any, name: str, path: str) -> Any:
    if not isinstance(value, dict) or value.get(name) is None:
        raise _cannot(f"{path}.{name}", "missing")
    return value[name]


def _cannot(param: str, message: str) -> UpstreamFailed:
    return UpstreamFailed(
        f"{param}: {message}",
        status=400,
        code="BAD_REQUEST",
        type="invalid_request_error",
        param=param,
        reason="request",
    )
