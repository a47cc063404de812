"""Checks the parameters of a run against a skill's JSON Schema; reports every path, never a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MOST = 20
_WORDS = {
    "minimum": "expected at least {}",
    "maximum": "expected at most {}",
    "exclusiveMinimum": "expected more than {}",
    "exclusiveMaximum": "expected less than {}",
    "minLength": "expected at least {} characters",
    "maxLength": "expected at most {} characters",
    "minItems": "expected at least {} items",
    "maxItems": "expected at most {} items",
    "minProperties": "expected at least {} properties",
    "maxProperties": "expected at most {} properties",
    "multipleOf": "expected a multiple of {}",
    "pattern": "expected a text like {}",
    "const": "expected {}",
}

Problem = tuple[str, str]


class ParameterSchema:
    """The schema of one skill's parameters, ready to be asked. Raises ValueError where it is no good schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        # A gateway without skills does not pay for importing the validator.
        from jsonschema import Draft202012Validator, SchemaError
        from referencing import Registry, Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        own = Resource.from_contents(dict(schema), default_specification=DRAFT202012)
        resolver = Registry().with_resource("", own).resolver()
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise ValueError(f"a reference to {reference!r}: only those within the schema are followed")
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ValueError(f"a reference to {reference!r}, which is not there") from None
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"{_dotted(error.path) or 'the schema'}: {error.message}") from None
        self._properties: Mapping[str, Any] = schema.get("properties") or {}
        self._required = tuple(schema.get("required") or ())
        # The empty registry is a second wall: a reference elsewhere is never fetched.
        registry: Registry[Any] = Registry()
        self._validator = Draft202012Validator(schema, registry=registry)

    def problems(self, params: Mapping[str, Any]) -> list[Problem]:
        """Return what does not fit, each once, in the order of the parameters."""
        found: dict[Problem, None] = {}
        try:
            for error in self._validator.iter_errors(params):
                found.update(dict.fromkeys(_told(error)))
                if len(found) >= _MOST:
                    break
        except RecursionError:
            return [("params", "nested too deep")]
        return sorted(found)[:_MOST]

    def from_text(self, text: str) -> dict[str, Any]:
        """Make parameters of a user's message; ones that do not fit where the skill takes no such thing."""
        if "input" in self._properties:
            return {"input": text}
        if len(self._required) == 1 and _takes_text(self._properties.get(self._required[0])):
            return {self._required[0]: text}
        return {}


def _told(error: Any) -> Iterator[Problem]:
    path, keyword, value = ["params", *error.absolute_path], error.validator, error.validator_value
    if keyword == "required":
        for name in value:
            if name not in error.instance:
                yield _dotted([*path, name]), "missing"
    elif keyword in ("additionalProperties", "unevaluatedProperties"):
        known = error.schema.get("properties") or {}
        for name in error.instance:
            if name not in known:
                yield _dotted([*path, name]), "unknown parameter"
    elif keyword == "type":
        yield _dotted(path), "expected " + (value if isinstance(value, str) else " or ".join(map(str, value)))
    elif keyword == "enum":
        yield _dotted(path), "expected one of " + ", ".join(map(str, value[:_MOST]))
    elif keyword in _WORDS:
        yield _dotted(path), _WORDS[keyword].format(value)
    elif keyword in ("anyOf", "oneOf"):
        yield _dotted(path), "fits none of the allowed forms"
    else:
        yield _dotted(path), f"does not satisfy {keyword}"


def _takes_text(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef", "$id") and isinstance(item, str):
                yield item  # an `$id` would give every reference another meaning
            else:
                yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _dotted(path: Iterable[str | int]) -> str:
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text
