"""The one gate through which bytes from outside become values; every decoding error is a 400 here.

It bounds size and depth, refuses what a store cannot hold (NUL, lone surrogates, integers over 64 bits),
and reports the path of every wrong value, never the value.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from openclaw_gateway.errors import Refused
from openclaw_gateway.refusals import Refusal, bad_request, payload_too_large
from openclaw_gateway.structs import collect

T = TypeVar("T")

MAX_DEPTH = 64
#: commas and opening brackets of a body: each may stand for a value, which is small as text and 60 bytes or more here
MAX_VALUES = 1_000_000
#: strings, and what is no bracket behind each: in one match as many as come before the next bracket
_STRINGS = re.compile(rb'(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\[\]{}]*+)++', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
#: text in which every escape is one that can be stored; a pair of surrogates is one
_storable_escapes = re.compile(
    rb"(?:[^\\]++|\\[^u]|\\u(?!0000|[dD][89a-fA-F])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*+",
    re.DOTALL,
).fullmatch
#: bytes of a body up to which all that is wrong is looked for, place by place: that costs far more than to decode it
_PLACED = 64_000
_MOST_PROBLEMS = 100
#: the word of findings, which is TOML's, and JSON's
_OBJECT = ("a table", "an object")
_untyped = msgspec.json.Decoder()


async def read_body(receive: Any, limit: int, headers: Any = ()) -> bytes:
    """Read a request body of at most `limit` bytes. Raises Refused (413), Disconnected."""
    length = dict(headers).get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise Refused(payload_too_large(limit))
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message.get("body", b"")
    if len(body) > limit:
        raise Refused(payload_too_large(limit))
    if not message.get("more_body", False):
        return body
    parts, size = [body], len(body)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise Refused(payload_too_large(limit))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


class Disconnected(Exception):
    """The client left before its request was whole."""


def decode(body: bytes, type: type[T], *, decoder: msgspec.json.Decoder[T] | None = None) -> T:
    """Decode a JSON body into `type`; raises Refused with the path of what is wrong, all problems at once."""
    guard(body)
    try:
        return decoder.decode(body) if decoder is not None else msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        raise Refused(_misfit(body, type, error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(bad_request("the request body is not valid JSON")) from None


def _misfit(body: bytes, type: Any, error: msgspec.ValidationError) -> Refusal:
    try:
        findings = collect(_untyped.decode(body), type, most=_MOST_PROBLEMS) if len(body) <= _PLACED else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return bad_request("the request body is not valid JSON")
    problems = [
        {"param": f.path, "message": (f.message + (f"; expected {f.expected}" if f.expected else "")).replace(*_OBJECT)}
        for f in findings
    ]
    if not problems:
        message = str(error).split(" - at `")[0]
        # msgspec's words for these quote the value
        message = "not a valid value" if message.startswith("Invalid enum") else message
        problems = [{"param": _path_of(error), "message": message}]
    first = problems[0]
    message = f"{first['param']}: {first['message']}" if first["param"] else f"the body: {first['message']}"
    return bad_request(message, param=first["param"] or None, problems=problems)


def guard(body: bytes) -> None:
    """Refuse a body that no decoder or store should see: bad UTF-8, NUL, lone surrogates, deep nesting, endless lists.

    It must cost less than the decoder, whatever stands in the body: everybody else waits for it.
    """
    opened = body.count(b"[") + body.count(b"{")
    if len(body) > MAX_VALUES and opened + body.count(b",") > MAX_VALUES:
        raise Refused(bad_request(f"the request body holds more than {MAX_VALUES} values"))
    # Brackets within strings count at first: they hardly ever matter, and to leave them out costs more.
    if opened > MAX_DEPTH and _depth(body) > MAX_DEPTH and _depth(_STRINGS.sub(b"", body)) > MAX_DEPTH:
        raise Refused(bad_request(f"the request body is nested deeper than {MAX_DEPTH} levels"))
    if body.find(b"\\u") >= 0 and _UNSTORABLE.search(body) and _storable_escapes(body) is None:
        _refuse_unstorable(body)
    if body.isascii():
        return
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(bad_request("the request body is not valid UTF-8")) from None


def refuse_doubled(body: bytes) -> None:
    """Refuse a decodable body with an object that names a key twice: whoever reads the first means something else."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise Refused(bad_request("the request body names a key twice", param=key[:64]))
            seen.add(key)

    json.loads(body, object_pairs_hook=unique)


def storable(text: str, param: str) -> str:
    """Return `text`, or refuse it where a database could not hold it."""
    if "\x00" in text:
        raise Refused(bad_request(f"{param}: the character U+0000 is not allowed", param=param))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(bad_request(f"{param}: lone surrogates are not allowed", param=param)) from None
    return text


def _refuse_unstorable(body: bytes) -> None:
    if len(body) > _PLACED:
        raise Refused(bad_request("the request body holds U+0000 or a lone surrogate, which are not allowed"))
    try:
        value = _untyped.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(bad_request("the request body is not valid JSON")) from None
    stack: list[tuple[Any, str]] = [(value, "")]
    while stack:
        item, path = stack.pop()
        if isinstance(item, str):
            storable(item, path or "body")
        elif isinstance(item, list):
            stack.extend((child, f"{path}[{i}]") for i, child in enumerate(item))
        elif isinstance(item, dict):
            for key, child in item.items():
                storable(key, path or "body")
                stack.append((child, f"{path}.{key}" if path else key))


def _depth(body: bytes) -> int:
    steps = body.translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def _path_of(error: msgspec.ValidationError) -> str:
    text = str(error)
    return text.rsplit(" - at `$.", 1)[1].rstrip("`") if " - at `$." in text else ""
