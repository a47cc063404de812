"""What browsers ask before a page may call, and what they read afterwards; nobody is let in by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration, serving

PAGE = "https://app.example.com"
PIPELINE = ["request_id", "cors", "metrics", "security_headers", "auth", "tier", "idempotency", "ratelimit"]
PIPELINE += ["quota", "concurrency"]
CHAT = "/v1/chat/completions"


def configured(folder: Path, pipeline: list[str] = PIPELINE, **cors: Any) -> Path:
    edit = {"gateway.port": 0, "gateway.pipeline": pipeline, "plugins.cors": {"origins": [PAGE], **cors}}
    return configuration(folder, edit=edit)


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with serving(build(configured(tmp_path))) as found:
        yield found


async def ask(url: str, method: str, path: str, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as client, client.request(method, url + path, headers=given) as answer:
        await answer.read()
        return answer


def preflight(method: str = "POST", headers: str = "authorization, content-type", origin: str = PAGE) -> dict[str, str]:
    return {
        "origin": origin,
        "access_control_request_method": method,
        "access_control_request_headers": headers,
    }


async def test_a_preflight_is_answered_without_a_credential(url: str) -> None:
    answer = await ask(url, "OPTIONS", CHAT, **preflight())
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    assert {"origin", "access-control-request-method"} <= set(answer.headers["vary"].split(", "))


@pytest.mark.parametrize(
    "given",
    [
        preflight(origin="https://app.example.com.evil.example"),
        preflight(origin="http://app.example.com"),
        preflight(origin="null"),
        preflight(method="TRACE"),
        preflight(headers="x-admin"),
        {"origin": PAGE},
    ],
    ids=["longer origin", "other scheme", "null", "method", "header", "no preflight"],
)
async def test_what_is_not_listed_does_not_pass(url: str, given: dict[str, str]) -> None:
    answer = await ask(url, "OPTIONS", CHAT, **given)
    # A browser takes any status that is not of the 200s for a no.
    assert answer.status == 405
    assert "access-control-allow-methods" not in answer.headers
    if given["origin"] != PAGE:
        assert "access-control-allow-origin" not in answer.headers


async def test_answers_and_refusals_can_be_read_by_the_page_and_by_no_other(url: str) -> None:
    refused = await ask(url, "GET", "/v1/models", origin=PAGE)
    assert refused.status == 401  # it opens no door
    assert refused.headers["access-control-allow-origin"] == PAGE
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    missing = await ask(url, "GET", "/nowhere", origin=PAGE)
    assert (missing.status, missing.headers["access-control-allow-origin"]) == (404, PAGE)
    for answer in (
        await ask(url, "GET", "/health/live", origin="https://evil.example"),
        await ask(url, "GET", "/health/live"),
    ):
        assert answer.status == 200 and "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "origin"  # or a cache would give it to the page


async def test_without_the_plugin_no_page_reads_anything(tmp_path: Path) -> None:
    async with serving(build(configuration(tmp_path, edit={"gateway.port": 0}))) as url:
        answer = await ask(url, "OPTIONS", CHAT, **preflight())
        assert answer.status == 405
        answer = await ask(url, "GET", "/health/live", origin=PAGE)
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


async def test_credentials_and_every_origin(tmp_path: Path) -> None:
    async with serving(build(configured(tmp_path / "1", credentials=True))) as url:
        answer = await ask(url, "OPTIONS", CHAT, **preflight())
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-origin"] == PAGE
    async with serving(build(configured(tmp_path / "2", origins=["*"]))) as url:
        answer = await ask(url, "GET", "/health/live", origin="https://anyone.example")
        assert (answer.headers["access-control-allow-origin"], "vary" in answer.headers) == ("*", False)


@pytest.mark.parametrize(
    ("cors", "pipeline", "says"),
    [
        ({"origins": ["*"], "credentials": True}, PIPELINE, "stands alone, and without credentials"),
        ({"origins": ["*", PAGE]}, PIPELINE, "stands alone, and without credentials"),
        ({"origins": ["app.example.com"]}, PIPELINE, "'app.example.com' is no origin"),
        ({"origins": [PAGE + "/"]}, PIPELINE, "is no origin"),
        ({"origins": []}, PIPELINE, "origins is empty"),
        ({}, [*[s for s in PIPELINE if s != "cors"], "cors"], "put 'cors' before 'auth' in gateway.pipeline"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_boot(tmp_path: Path, cors: Any, pipeline: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(configured(tmp_path, pipeline, **cors))
