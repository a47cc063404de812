"""The document is valid, says what the routes declare, and the page needs nothing from elsewhere."""

import gzip
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from openclaw_gateway.api import REQUESTS, WS_MESSAGES, Route
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.openapi.document import document

from .operators_kit import small_gateway


class Turn(msgspec.Struct):
    """One turn."""

    content: str
    stream: bool = False


class Answer(msgspec.Struct):
    id: str
    turn: Turn | None = None


def written(*routes: Route) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(msgspec.json.encode(document(routes, "1.2.3")))
    OpenAPIV31SpecValidator(found).validate()
    return found


def test_a_route_is_written_as_it_declares_itself() -> None:
    found = written(
        Route(
            access="authenticated",
            path="/api/v1/turns/{id}",
            methods=("POST",),
            summary="Say something",
            meters=(REQUESTS,),
            scopes=("write",),
            query={"limit": Annotated[int, msgspec.Meta(ge=1, le=200, description="How many.")], "cursor": str},
            body=Turn,
            answer=Answer,
            status=201,
            errors=(400, 404, 503),
        )
    )
    operation = found["paths"]["/api/v1/turns/{id}"]["post"]
    assert [(p["name"], p["in"]) for p in operation["parameters"]] == [
        ("id", "path"),
        ("limit", "query"),
        ("cursor", "query"),
    ]
    assert operation["parameters"][1]["schema"] == {"type": "integer", "minimum": 1, "maximum": 200}
    assert set(operation["responses"]) == {"201", "400", "401", "403", "404", "429", "503", "default"}
    assert set(operation["responses"]["201"]["content"]) == {"application/json", "text/event-stream"}
    assert "Retry-After" in operation["responses"]["429"]["headers"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Turn"}
    assert operation["security"] == [{"bearer": []}, {"apiKey": []}]
    assert "`write`" in operation["description"]
    error = operation["responses"]["404"]["content"]["application/problem+json"]["schema"]
    assert error == {"$ref": "#/components/schemas/Problem"}
    assert "requestId" in found["components"]["schemas"]["ErrorDetail"]["properties"]


def test_of_an_alias_one_path_is_documented_and_names_the_other() -> None:
    given = [
        Route(access="authenticated", path=path, methods=("GET",), surface="openai", answer=Answer)
        for path in ("/v1/models", "/api/v1/models", "/v1/alone")
    ]
    found = written(*given)
    assert set(found["paths"]) == {"/api/v1/models", "/v1/alone"}
    assert "Also at `/v1/models`." in found["paths"]["/api/v1/models"]["get"]["description"]


def test_access_shows_in_the_security_and_the_refusals() -> None:
    found = written(
        Route(access="public", path="/a", methods=("GET", "HEAD"), surface="operations"),
        Route(access="optional", path="/b", methods=("GET",)),
    )
    assert found["paths"]["/a"]["get"]["security"] == []
    assert set(found["paths"]["/a"]["get"]["responses"]) == {"200", "default"}
    assert "head" not in found["paths"]["/a"] and found["paths"]["/a"]["get"]["description"] == "HEAD too."
    assert {} in found["paths"]["/b"]["get"]["security"]
    assert set(found["paths"]["/b"]["get"]["responses"]) == {"200", "401", "default"}


def test_a_websocket_is_a_get_that_switches_protocols() -> None:
    found = written(
        Route(
            access="authenticated",
            path="/ws",
            methods=("WEBSOCKET",),
            surface="websocket",
            message_meters=(WS_MESSAGES,),
        )
    )
    operation = found["paths"]["/ws"]["get"]
    assert "101" in operation["responses"]
    assert "`ws_messages`" in operation["description"]


def test_a_type_without_a_schema_is_an_error_that_names_it() -> None:
    class Opaque:
        pass

    with pytest.raises(TypeError, match="Opaque"):
        document([Route(access="public", path="/x", methods=("GET",), answer=Opaque)], "1")


async def test_the_shipped_gateway_documents_every_route(tmp_path: Path) -> None:
    gateway = build(configuration(tmp_path))
    async with serving(gateway) as url, aiohttp.request("GET", f"{url}/api/openapi.json") as response:
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        found = json.loads(await response.read())
    OpenAPIV31SpecValidator(found).validate()
    served = {
        (re.sub(r":\w+\}", "}", route.path), "get" if method == "WEBSOCKET" else method.lower())
        for route in gateway.routes
        for method in route.methods
        if method != "HEAD" or "GET" not in route.methods
    }
    shown = {(path, method) for path, operations in found["paths"].items() for method in operations}
    missing = {(path, method) for path, method in served - shown if (f"/api{path}", method) not in shown}
    assert missing == set() and shown <= served
    ids = [operation["operationId"] for operations in found["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids))
    bodies = {path for path, ops in found["paths"].items() if "post" in ops and "requestBody" in ops["post"]}
    assert "/api/v1/chat/completions" in bodies


async def test_page_and_files_come_from_the_package(tmp_path: Path) -> None:
    async with serving(small_gateway(tmp_path)) as url, aiohttp.ClientSession(auto_decompress=False) as client:
        async with client.get(f"{url}/api/docs") as response:
            page = await response.text()
            policy = response.headers["content-security-policy"]
            assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in policy and "unsafe" not in policy
        assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
        named = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(named) == 5 and all(link.startswith("/api/") for link in named)
        for link in named:
            async with client.get(url + link, headers={"Accept-Encoding": "gzip"}) as response:
                assert response.status == 200, link
                packed = await response.read()
                is_packed = response.headers.get("content-encoding") == "gzip"
            async with client.get(url + link, headers={"Accept-Encoding": "identity"}) as response:
                assert "content-encoding" not in response.headers
                assert await response.read() == (gzip.decompress(packed) if is_packed else packed)
            async with client.head(url + link) as response:
                assert response.status == 200


@pytest.mark.parametrize("name", ["VENDORED.json", "index.html", "..%2f__init__.py", "swagger-ui.css.gz", "%00"])
async def test_no_other_file_is_served(tmp_path: Path, name: str) -> None:
    async with serving(small_gateway(tmp_path)) as url, aiohttp.request("GET", f"{url}/api/docs/{name}") as response:
        assert response.status == 404
        assert response.headers["content-type"] == "application/problem+json"


def test_vendored_files_are_what_their_record_says() -> None:
    folder = files("openclaw_plugins.openapi").joinpath("ui")
    record = json.loads(folder.joinpath("VENDORED.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest, name
    for name, digest in record["sha256_unpacked"].items():
        assert hashlib.sha256(gzip.decompress(folder.joinpath(f"{name}.gz").read_bytes())).hexdigest() == digest, name
    assert {"LICENSE", "NOTICE"} <= set(record["sha256"])
