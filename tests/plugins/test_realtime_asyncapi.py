"""The AsyncAPI document: valid by the standard's own schema, and what it shows is what the frames' Structs read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import aiohttp
import jsonschema
import msgspec
import pytest
from socket_kit import place, said, say

from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.realtime.asyncapi import document
from openclaw_plugins.realtime.frames import Inbound, Outbound, Unreadable, read

SCHEMA = json.loads(gzip.decompress((Path(__file__).parent / "schemas" / "asyncapi-3.0.0.json.gz").read_bytes()))
SHAPES = {shape.__name__: shape for shape in (*get_args(Inbound), *get_args(Outbound))}


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(document("1.2.3")))
    return found


def payload(written: dict[str, Any], name: str) -> jsonschema.Draft202012Validator:
    schema = {"$ref": f"#/components/schemas/{name}", "components": written["components"]}
    return jsonschema.Draft202012Validator(schema)


def test_it_is_valid(written: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(written)


def test_the_schema_can_fail(written: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate({**written, "operations": {"x": {"action": "publish"}}})


def test_every_frame_is_in_it_on_its_side(written: dict[str, Any]) -> None:
    sides = {
        name: {ref["$ref"].rsplit("/", 1)[1] for ref in operation["messages"]}
        for name, operation in written["operations"].items()
    }
    assert sides == {
        "fromClient": {shape.__name__ for shape in get_args(Inbound)},
        "toClient": {shape.__name__ for shape in get_args(Outbound)},
    }
    assert written["operations"]["fromClient"]["action"] == "receive"


@pytest.mark.parametrize("name", SHAPES)
def test_an_example_is_one_of_its_frame(written: dict[str, Any], name: str) -> None:
    (example,) = written["components"]["messages"][name]["examples"]
    payload(written, name).validate(example["payload"])
    decoded = msgspec.json.decode(json.dumps(example["payload"]), type=SHAPES[name])
    assert isinstance(decoded, SHAPES[name])
    if SHAPES[name] in get_args(Inbound):
        assert not isinstance(read(json.dumps(example["payload"])), Unreadable)


async def test_what_is_sent_is_what_it_says(tmp_path: Path, written: dict[str, Any]) -> None:
    by_type = {written["components"]["messages"][s.__name__]["name"]: s.__name__ for s in get_args(Outbound)}
    seen = set()
    async with place(tmp_path, tier="teams") as here, here.connect(await here.session()) as socket:
        await say(socket, "ping")
        await say(socket, "message", content="Good morning", id="m1", stream=True)
        await say(socket, "message", content="report", id="m2", metadata={"skillName": "search"})
        await say(socket, "cancel", ref="unknown")
        while seen != {"pong", "stream", "message", "skill", "error"}:
            frame = await said(socket, *by_type)
            payload(written, by_type[frame["type"]]).validate(frame)
            seen.add(frame["type"])


async def test_it_is_served_to_everyone(tmp_path: Path, written: dict[str, Any]) -> None:
    async with serving(build(configuration(tmp_path))) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/api/asyncapi.json") as answer:
            assert answer.status == 200
            assert answer.content_type == "application/json"
            served = await answer.json()
        async with http.head(url + "/api/asyncapi.json") as answer:
            assert answer.status == 200
    assert served["channels"] == written["channels"]
    assert served["components"] == written["components"]
