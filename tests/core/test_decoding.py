"""The decoding gate: whatever bytes come, the answer is a value or a 400 with a path, and never a value in it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openclaw_gateway.decoding import decode, guard
from openclaw_gateway.errors import Refused


class Part(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    size: int = 0


class Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    parts: list[Part]
    metadata: dict[str, str] = {}


def refused(body: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(body, Body)
    assert caught.value.refusal.status == 400
    return caught.value


def test_all_problems_come_at_once_with_their_paths() -> None:
    error = refused(b'{"modle": "m", "parts": [{"role": 1}, {"role": "a", "size": "x"}], "metadata": {}}')
    problems = {p["param"]: p["message"] for p in error.refusal.extra["problems"]}
    assert set(problems) == {"modle", "model", "parts[0].role", "parts[1].size"}
    assert error.refusal.param in problems


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b'{"model": NaN}',
        b'{"model": "\xff\xfe"}',
        b'{"model": "a\\u0000b", "parts": []}',
        b'{"model": "\\ud800", "parts": []}',
        b'{"model": "m", "parts": [], "metadata": {"\\u0000": "x"}}',
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"[]",
        b"null",
        b'"text"',
    ],
)
def test_what_no_store_should_see_is_a_400(body: bytes) -> None:
    refused(body)


def test_depth_is_bounded_where_any_shape_would_do() -> None:
    assert decode(b"[" * 64 + b"]" * 64, list)
    with pytest.raises(Refused, match="nested deeper than 64 levels"):
        decode(b"[" * 65 + b"]" * 65, list)


def test_escapes_that_only_look_dangerous_pass() -> None:
    body = decode(rb'{"model": "\\u0000 \ud83d\ude00", "parts": []}', Body)
    assert body.model == "\\u0000 \U0001f600"


def test_brackets_inside_text_are_no_nesting() -> None:
    guard(b'{"a": "' + b"[" * 500 + b'"}')


def test_a_wrong_value_is_never_quoted() -> None:
    error = refused(b'{"model": "m", "parts": [{"role": {"secret": "hunter2"}}]}')
    assert "hunter2" not in error.refusal.message + str(error.refusal.extra)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_400(body: bytes) -> None:
    try:
        decode(body, Body)
    except Refused as error:
        assert error.refusal.status == 400
