"""The decoding gate: whatever bytes come, the answer is a value or a 400 with a path, and never a value in it."""

from __future__ import annotations

import json
import tracemalloc
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stopwatch import seconds

from openclaw_gateway.decoding import MAX_DEPTH, MAX_VALUES, decode, guard
from openclaw_gateway.errors import Refused


class Part(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    size: int = 0


class Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    parts: list[Part]
    metadata: dict[str, str] = {}


class Choice(msgspec.Struct):
    one: Literal["a", "b"]


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


class Lists(msgspec.Struct):
    parts: Annotated[list[Part], msgspec.Meta(min_length=1, max_length=2)]
    inputs: Annotated[str, msgspec.Meta(min_length=1)] | Annotated[list[Any], msgspec.Meta(min_length=1)] = "a"
    labels: dict[str, str] = {}


PARTS = "parts: not a valid value; expected a list of an object, at least 1 of them, at most 2 of them"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[]", "the body: not an object; expected an object"),
        (b'{"parts": []}', PARTS),
        (b'{"parts": [{"role": "a"}, {"role": "a"}, {"role": "a"}]}', PARTS),
        (b'{"parts": ["a"]}', "parts[0]: not an object; expected an object"),
        (b'{"parts": [{"role": "a"}], "labels": 5}', "labels: not a valid value; expected an object"),
        (
            b'{"parts": [{"role": "a"}], "inputs": []}',
            "inputs: not a valid value; expected a list of any value, at least 1 of them",
        ),
        (
            b'{"parts": [{"role": "a"}], "inputs": 5}',
            "inputs: not a valid value; expected text, at least 1 long or a list of any value, at least 1 of them",
        ),
    ],
)
def test_a_client_is_told_in_words_of_json(body: bytes, told: str) -> None:
    with pytest.raises(Refused) as caught:
        decode(body, Lists)
    assert caught.value.refusal.message == told


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


_ESCAPES = [
    r"\u0000",
    r"\ud83d",
    r"\ude00",
    r"\ud83d\ude00",
    r"\\",
    r"\"",
    r"\n",
    r"\u0041",
    "u0000",
    "a",
    "é",
    r"\uD83D",
]


@given(st.lists(st.sampled_from(_ESCAPES), max_size=12), st.booleans())
def test_a_text_passes_exactly_where_it_can_be_stored(parts: list[str], large: bool) -> None:
    text = json.loads('"' + "".join(parts) + '"')
    fine = "\x00" not in text and text.encode("utf-8", "replace").decode() == text
    body = ('{"a": ["' + "".join(parts) + '"' + ', "pad"' * (10_000 if large else 0) + "]}").encode()
    if fine:
        guard(body)
    else:
        with pytest.raises(Refused):
            guard(body)


@pytest.mark.parametrize("escape", [rb"\\u0000", rb"\ud83d\ude00", rb"\u0000"], ids=["none", "a pair", "NUL"])
def test_an_escape_makes_no_body_dear(escape: bytes) -> None:
    body = b'{"a": "' + escape + b'", "x": [' + b'{"a":1},' * 400_000 + b"0]}"

    def judge() -> None:
        if escape != rb"\u0000":
            return guard(body)
        with pytest.raises(Refused, match="U\\+0000"):
            guard(body)

    assert seconds(judge) < seconds(lambda: msgspec.json.decode(body)) + 0.1


@pytest.mark.parametrize(
    "unit",
    [b"{},", b"0,", b'{"role":"a"},', b'{"role":"a","size":"x"},', b'{"role":0,"x":1,"y":[]},'],
    ids=["empty", "numbers", "good to the last", "wrong sizes", "wrong altogether"],
)
def test_what_is_wrong_a_thousand_times_is_told_briefly_and_at_once(unit: bytes) -> None:
    """The answer would else be fifty times the request, and take a hundred times as long as to decode it."""
    for count in (2_000, 100_000):
        body = b'{"model": "m", "parts": [' + unit * count + b"0]}"
        assert seconds(lambda: refused(body)) < 5 * seconds(lambda: msgspec.json.decode(body)) + 0.5  # noqa: B023
        refusal = refused(body).refusal
        assert refusal.param is not None and refusal.param.startswith("parts[")
        assert len(refusal.render("/x", None)[1]) < 30_000


def test_a_large_body_quotes_no_value_either() -> None:
    with pytest.raises(Refused) as caught:
        decode(b'{"pad": "' + b"x" * 100_000 + b'", "one": "hunter2"}', Choice)
    assert caught.value.refusal.param == "one" and "hunter2" not in str(caught.value.refusal)


def test_brackets_inside_text_are_no_nesting() -> None:
    guard(b'{"a": "' + b"[" * 500 + b'"}')


@given(
    st.recursive(
        st.one_of(st.none(), st.text(alphabet='[]{}",\\a', max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(alphabet='[{"\\', max_size=3), inner)
        ),
        max_leaves=80,
    ),
    st.integers(50, 70),
)
def test_depth_is_that_of_the_value_whatever_its_strings_hold(inner: object, around: int) -> None:
    def depth(value: object) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    value: object = [inner, "[" * 70, "]" * 70, '{"' * 70]
    for _ in range(around):
        value = [value]
    body = json.dumps(value).encode()
    if depth(value) <= MAX_DEPTH:
        guard(body)
        return
    with pytest.raises(Refused, match="nested deeper"):
        guard(body)


#: what is short as text and long as values, up to the largest body that is read by default
DENSE = {
    "empty objects": b"{},",
    "empty lists": b"[],",
    "numbers": b"0,",
    "strings": b'"a",',
    "objects of one": b'{"a":1},',
    "members": b'{"a":"b","c":"d"},',
    "lists of strings": b'["a"],',
    "texts with brackets": b'"' + b"[{" * 50 + b'",',
    "escapes": b'"' + b'\\"[\\\\' * 50 + b'",',
}


def dense(unit: bytes, size: int) -> bytes:
    """A body of at most `size` bytes in such units, and what makes the guard look closely at its brackets."""
    return b'{"model": "' + b"[" * 65 + b'", "x": [' + (unit * (size // len(unit)))[:-1] + b"]}"


def at_the_limit(unit: bytes) -> bytes:
    """The longest body in such units that is let through."""
    marks = sum(unit.count(mark) for mark in (b",", b"[", b"{"))
    return dense(unit, min(20_000_000, (MAX_VALUES - 100) // marks * len(unit)))


@pytest.mark.parametrize("unit", DENSE.values(), ids=DENSE)
def test_to_judge_a_body_costs_no_more_than_to_decode_it(unit: bytes) -> None:
    body = at_the_limit(unit)
    assert seconds(lambda: guard(body)) < 3 * seconds(lambda: msgspec.json.decode(body)) + 0.2
    with pytest.raises(Refused, match="more than 1000000 values"):
        guard(body + b"," * 1_000)


@pytest.mark.parametrize("unit", ["objects of one", "lists of strings"])
def test_what_a_body_takes_in_memory_is_bounded(unit: str) -> None:
    """By eight times the largest body, where 24 times would be possible. A tenth of it is weighed: that is slow."""
    body = dense(DENSE[unit], len(at_the_limit(DENSE[unit])) // 10)
    tracemalloc.start()
    value = decode(body, dict)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(value["x"]) > 30_000
    assert peak < 8 * 20_000_000 / 10


def test_a_wrong_value_is_never_quoted() -> None:
    error = refused(b'{"model": "m", "parts": [{"role": {"secret": "hunter2"}}]}')
    assert "hunter2" not in error.refusal.message + str(error.refusal.extra)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_400(body: bytes) -> None:
    try:
        decode(body, Body)
    except Refused as error:
        assert error.refusal.status == 400
