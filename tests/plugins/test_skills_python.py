"""The shape of a Python skill is checked at boot; its schema is its Struct's; summaries are what was said."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from openclaw_gateway.api import SkillParamsRefused
from openclaw_plugins.skills.bundled import summary
from openclaw_plugins.skills.parameters import ParameterSchema
from openclaw_plugins.skills.python import PythonSkill


class Inner(msgspec.Struct):
    a: int


class Params(msgspec.Struct, frozen=True, kw_only=True):
    city: Annotated[str, Meta(min_length=1, description="Where.")]
    days: Annotated[int, Meta(ge=1, le=7)] = 1
    inner: Inner | None = None
    small: Annotated[int, Meta(lt=2**40)] = 0


class Good:
    """Says what it does,
    in two lines.

    And more for whoever reads the code.
    """

    Params = Params

    async def run(self, params: Params, call: Any) -> Any:
        return params


def test_the_schema_is_that_of_the_struct() -> None:
    skill = PythonSkill("good", Good, None)
    assert skill.info.description == "Says what it does, in two lines."
    schema = skill.info.parameters
    assert schema["type"] == "object" and schema["required"] == ["city"] and schema["additionalProperties"] is False
    assert schema["properties"]["city"] == {"type": "string", "minLength": 1, "description": "Where."}
    assert "title" not in schema and schema["$defs"]["Inner"]["properties"] == {"a": {"type": "integer"}}
    assert ParameterSchema(schema).problems({"city": "x", "inner": {"a": "b"}}) == [
        ("params.inner", "fits none of the allowed forms")
    ]
    assert ParameterSchema(schema).problems({"city": "x", "inner": {"a": 1}}) == []
    skill.check({"city": "x"})
    with pytest.raises(SkillParamsRefused) as refused:
        skill.check({"city": "x", "days": "canary"})
    assert refused.value.problems == (("days", "Expected `int`, got `str`"),)


class Undocumented:
    Params = Params

    async def run(self, params: Any, call: Any) -> Any: ...


class NoParams:
    """Has none."""

    async def run(self, params: Any, call: Any) -> Any: ...


class NoRun:
    """Cannot."""

    Params = Params


@pytest.mark.parametrize("cls", [Undocumented, NoParams, NoRun, len, "text"])
def test_what_has_not_the_shape_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match="the skill 'x'"):
        PythonSkill("x", cls, None)


@pytest.mark.parametrize(
    ("schema", "text", "params"),
    [
        ({"properties": {"input": {"type": "string"}}}, "hi", {"input": "hi"}),
        ({"properties": {"input": {}, "q": {"type": "string"}}, "required": ["q"]}, "hi", {"input": "hi"}),
        ({"properties": {"q": {"type": "string"}, "n": {"type": "integer"}}, "required": ["q"]}, "hi", {"q": "hi"}),
        ({"properties": {"n": {"type": "integer"}}, "required": ["n"]}, "hi", {}),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["a", "b"]}, "hi", {}),
        ({"properties": {"n": {"type": "integer"}}}, "hi", {}),
        ({}, "hi", {}),
    ],
)
def test_a_message_becomes_parameters(schema: dict[str, Any], text: str, params: dict[str, Any]) -> None:
    assert ParameterSchema({"type": "object", **schema}).from_text(text) == params


def test_problems_are_bounded_told_once_and_quote_no_value() -> None:
    schema = ParameterSchema(
        {
            "type": "object",
            "properties": {"l": {"type": "array", "items": {"type": "integer"}}, "e": {"enum": ["a", "b"]}},
            "additionalProperties": False,
        }
    )
    problems = schema.problems({"l": ["canary"] * 1_000, "e": "canary"})
    assert len(problems) == 20 and "canary" not in str(problems)
    assert ("params.e", "expected one of a, b") in problems or problems[0] == ("params.l[0]", "expected integer")


@pytest.mark.parametrize("reference", ["https://x.test/s", "file:///etc/passwd", "other.json#/a", "urn:x"])
def test_a_schema_elsewhere_is_never_fetched(reference: str) -> None:
    with pytest.raises(ValueError, match="only those within the schema"):
        ParameterSchema({"type": "object", "properties": {"a": {"$ref": reference}}})


@pytest.mark.parametrize("part", [{"$ref": "#/nowhere"}, {"$ref": "#anchor"}, {"$dynamicRef": "#x"}])
def test_a_reference_to_nothing_is_found_at_boot(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="which is not there"):
        ParameterSchema({"type": "object", "properties": {"a": part}})
    with pytest.raises(ValueError, match="only those within"):
        ParameterSchema({"$id": "https://x.test/", "type": "object", "properties": {"a": {"$ref": "#"}}})


def test_a_schema_that_never_ends_is_no_way_to_stop_us() -> None:
    schema = ParameterSchema({"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False})
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}
    assert schema.problems(deep) == []
    looping = ParameterSchema({"allOf": [{"$ref": "#"}]})
    assert looping.problems({}) == [("params", "nested too deep")]


def test_a_summary_is_made_of_what_was_said_in_its_order() -> None:
    said = [
        ("user", "We must ship the release on Friday. Hello there."),
        ("assistant", "The release needs the changelog.\nIt rains."),
        ("user", "Who writes the changelog of the release?"),
    ]
    chosen = summary(said, 3)
    assert chosen == [
        ("user", "We must ship the release on Friday."),
        ("assistant", "The release needs the changelog."),
        ("user", "Who writes the changelog of the release?"),
    ]
    assert summary(said, 3) == chosen and summary([], 3) == [] and summary([("user", "…")], 3) == [("user", "…")]
    assert len(summary(said, 50)) == 5
