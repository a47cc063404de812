"""Declared skills call their service as they were declared, whatever their parameters hold, and within their bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from skill_kit import execute, rows
from socket_kit import Place, place
from upstreams import Pause, ScriptedUpstream, scripted

from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

CITY: dict[str, Any] = {
    "properties": {"city": {"type": "string", "maxLength": 40}, "units": {"enum": ["metric", "imperial"]}},
    "required": ["city"],
}


def declared(name: str, **fields: Any) -> dict[str, Any]:
    given = {"provider": "http_skills", "description": "d", "target": "inside", "url": "/w/{city}", "parameters": CITY}
    return {f"skills.{name}.{key}": value for key, value in {**given, **fields}.items() if value is not None}


@asynccontextmanager
async def serving(directory: Path, service: ScriptedUpstream, edit: dict[str, Any]) -> AsyncIterator[Place]:
    base = service.url.removesuffix("/v1")
    edit = {"targets.inside.url": base, "targets.inside.private": True, "targets.inside.health_path": "/", **edit}
    async with place(directory, edit=edit) as found:
        yield found


@pytest.fixture
async def service() -> AsyncIterator[ScriptedUpstream]:
    async with scripted() as found:
        found.headers = {"Content-Type": "application/json"}
        found.script = [b'{"sky": "blue"}']
        yield found


@pytest.fixture
async def here(tmp_path: Path, service: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setenv("WEATHER_KEY", "canary-key")
    edit = {
        **declared("weather", headers={"X-Api-Key": "env:WEATHER_KEY"}),
        **declared("tell", method="POST"),
        **declared("fixed", url="/fixed?a=b", parameters=None),
        **declared("slow", timeout="300ms"),
        **declared("small", max_output="1KB"),
        **declared("public", target=None, url=service.url.replace("/v1", "/{city}")),
    }
    async with serving(tmp_path, service, edit) as found:
        yield found


async def test_it_is_shown_as_it_was_declared(here: Place) -> None:
    status, body = await here.ask("GET", "/api/v1/skills/weather")
    assert status == 200
    assert (body["kind"], body["version"], body["eligible"]) == ("http", "1", True)
    assert body["parameters"] == {"type": "object", "additionalProperties": False, **CITY}
    assert "canary" not in str(body)


async def test_parameters_go_into_path_and_query_and_the_secret_into_a_header(
    here: Place, service: ScriptedUpstream
) -> None:
    status, body = await execute(here, "weather", await here.session(), city="Köln/Süd ?#&%2e", units="metric")
    assert (status, body["status"], body["result"]) == (200, "completed", {"sky": "blue"})
    (received,) = service.received
    assert received.path == "/w/K%C3%B6ln%2FS%C3%BCd%20%3F%23%26%252e?units=metric"
    assert received.headers["x-api-key"] == "canary-key"
    assert received.headers["idempotency-key"] == body["executionId"]
    # What a caller sent to us is not for the service.
    assert here.key not in str(received.headers) and "cookie" not in received.headers
    assert "canary" not in str(await rows(here)) + str(body)
    assert here.metric("external_service_duration_seconds_count", target="inside", operation="skill") == 1


async def test_a_scrape_shows_a_target_as_skills_and_probes_met_it(here: Place, service: ScriptedUpstream) -> None:
    assert (await execute(here, "weather", await here.session(), city="Bonn"))[1]["status"] == "completed"
    probed = [received.path for received in service.received].count("/")
    service.status = 503
    assert (await execute(here, "weather", await here.session(), city="Bonn"))[1]["status"] == "failed"
    assert (await here.ask("GET", "/health"))[0] == 200
    assert [received.path for received in service.received].count("/") > probed
    async with here.http.get(here.url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()

    def counted(name: str, operation: str, error_type: str = "") -> float:
        labels = (f'operation="{operation}"', 'target="inside"', f'error_type="{error_type}"' if error_type else "")
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and all(x in line for x in labels)
        )

    assert counted("external_service_duration_seconds_count", "skill") == 2
    assert counted("external_service_errors_total", "skill", "status_5xx") == 1
    assert counted("external_service_duration_seconds_count", "probe") >= 1
    assert counted("external_service_errors_total", "probe", "status_5xx") >= 1


async def test_the_rest_of_a_post_is_its_body(here: Place, service: ScriptedUpstream) -> None:
    status, _ = await execute(here, "tell", await here.session(), city="Bonn", units="imperial")
    assert status == 200
    (received,) = service.received
    assert (received.method, received.path, received.json) == ("POST", "/w/Bonn", {"units": "imperial"})


async def test_one_without_parameters(here: Place, service: ScriptedUpstream) -> None:
    assert (await execute(here, "fixed", await here.session()))[0] == 200
    assert service.received[0].path == "/fixed?a=b"
    status, body = await execute(here, "fixed", await here.session(), x=1)
    assert (status, body["error"]["param"]) == (400, "params.x")


@pytest.mark.parametrize("city", ["", ".", ".."])
async def test_a_parameter_cannot_leave_its_place_in_the_path(
    here: Place, service: ScriptedUpstream, city: str
) -> None:
    status, body = await execute(here, "weather", await here.session(), city=city)
    assert (status, body["error"]["param"]) == (400, "params.city")
    assert service.received == [] and await rows(here) == []


@pytest.mark.parametrize(
    "city",
    ["/../admin", "x?y=z", "x#y", "@evil.test", "\\..\\x", "%2e%2e", "a\r\nX-Evil: 1", "a b", "//evil.test", "é;x=1"],
)
async def test_whatever_a_parameter_holds_the_path_has_one_more_part(
    here: Place, service: ScriptedUpstream, city: str
) -> None:
    status, _ = await execute(here, "weather", await here.session(), city=city)
    assert status == 200
    (received,) = service.received
    assert received.path.startswith("/w/") and received.path.count("/") == 2
    assert "?" not in received.path and "x-evil" not in received.headers


@pytest.mark.parametrize(
    ("status", "type", "script", "error", "error_type"),
    [
        (500, "application/json", [b"{}"], "the service answered 500", "status_5xx"),
        (401, "application/json", [b"canary"], "the service answered 401", "status_4xx"),
        (302, "text/plain", [b"x"], "the service redirects, which is not followed", "redirect"),
        (200, "image/png", [b"x"], "the service answered 200 with something that is no text", "content_type"),
        (200, "application/json", [b"{"], "the service's answer is not valid JSON", "malformed"),
        (200, "application/json", [b"[" * 100_000], "the service's answer is not valid JSON", "malformed"),
        (200, "text/plain", [b"x" * 600_000] * 3, "the service sent more than 1000000 bytes", "output_too_large"),
    ],
)
async def test_an_answer_that_is_none_fails_the_run(
    here: Place, service: ScriptedUpstream, status: int, type: str, script: Any, error: str, error_type: str
) -> None:
    service.status, service.script, service.headers = status, script, {"Content-Type": type, "Location": "http://x/"}
    code, body = await execute(here, "weather", await here.session(), city="x")
    assert (code, body["status"], body["error"]) == (200, "failed", error)
    assert "canary" not in json.dumps(body)
    assert len(service.received) == 1
    labels = {"target": "inside", "operation": "skill", "error_type": error_type}
    assert here.metric("external_service_errors_total", **labels) == 1
    assert here.metric("skill_execution_errors_total", skill_name="weather", error_type=error_type) == 1


async def test_text_is_given_as_text_and_bounded(here: Place, service: ScriptedUpstream) -> None:
    service.headers = {"Content-Type": "text/plain; charset=latin-1"}
    service.script = ["süß\x00".encode("latin-1")]
    status, body = await execute(here, "weather", await here.session(), city="x")
    assert (status, body["result"]) == (200, "süß")
    service.script = [b"x" * 1_001]
    status, body = await execute(here, "small", await here.session(), city="x")
    assert body["error"] == "the service sent more than 1000 bytes"


async def test_time_that_is_up_cuts_the_connection(here: Place, service: ScriptedUpstream) -> None:
    service.script = [Pause(20)]
    status, body = await execute(here, "slow", await here.session(), city="x")
    assert (status, body["error"]["code"]) == (504, "UPSTREAM_TIMEOUT")
    async with asyncio.timeout(2):
        await service.left.wait()


async def test_a_service_that_is_not_there(here: Place, service: ScriptedUpstream, tmp_path: Path) -> None:
    edit = {"targets.gone.url": "http://127.0.0.1:9", "targets.gone.private": True, **declared("w", target="gone")}
    async with place(tmp_path / "gone", edit=edit) as found:
        status, body = await execute(found, "w", await found.session(), city="x")
        assert (status, body["status"], body["error"]) == (200, "failed", "the service cannot be reached")
        assert "127.0.0.1" not in str(body)


async def test_without_private_a_place_inside_is_refused(here: Place, service: ScriptedUpstream) -> None:
    status, body = await execute(here, "public", await here.session(), city="x")
    assert (status, body["status"]) == (200, "failed")
    assert body["error"] == "the host has no address that may be reached"
    assert service.received == [] and service.connections == 0


async def test_fetch_reads_allowed_hosts_alone(tmp_path: Path, service: ScriptedUpstream) -> None:
    port = service.url.split(":")[2].removesuffix("/v1")
    edit = {"plugins.http_skills.fetch_hosts": ["docs.example.com", f"http://localhost:{port}"]}
    async with place(tmp_path, edit=edit) as here:
        session = await here.session()
        for url in (
            "https://example.com/",
            "http://docs.example.com/",
            "https://docs.example.com:444/",
            "x",
            "file:///etc",
        ):
            status, body = await execute(here, "http_fetch", session, url=url)
            assert (status, body["error"]["param"]) == (400, "params.url"), url
        assert await rows(here) == []
        # Allowed by its name, and still inside.
        status, body = await execute(here, "http_fetch", session, url=f"http://localhost:{port}/v1")
        assert (status, body["status"]) == (200, "failed")
        assert body["error"] == "the host has no address that may be reached"
        assert service.received == []


async def test_fetch_gives_the_text_of_a_page(
    tmp_path: Path, service: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of a public network, this machine's own addresses are taken for public ones."""
    monkeypatch.setattr("openclaw_plugins.skills.egress.is_public", lambda address: address in ("127.0.0.1", "::1"))
    port = service.url.split(":")[2].removesuffix("/v1")
    edit = {"plugins.http_skills.fetch_hosts": [f"http://localhost:{port}"], "plugins.http_skills.fetch_bytes": "1KB"}
    async with place(tmp_path, edit=edit) as here:
        session = await here.session()
        service.headers = {"Content-Type": "text/html; charset=iso-8859-1"}
        service.script = ["<p>Gr\u00fc\u00dfe</p>".encode("latin-1")]
        url = f"http://localhost:{port}/a%20page?q=1#part"
        status, body = await execute(here, "http_fetch", session, url=url)
        assert (status, body["status"]) == (200, "completed")
        assert body["result"] == {"status": 200, "contentType": "text/html", "text": "<p>Gr\u00fc\u00dfe</p>"}
        (received,) = service.received
        assert (received.method, received.path, received.body) == ("GET", "/a%20page?q=1", b"")
        assert not {"authorization", "cookie", "x-api-key"} & received.headers.keys()
        for status, said, why in (
            (404, b"gone", "the service answered 404"),
            (200, b"x" * 1100, "the service sent more than 1000 bytes"),
        ):
            service.status, service.script = status, [said]
            _, body = await execute(here, "http_fetch", session, url=url)
            assert body["status"] == "failed" and why in body["error"]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (declared("w", target="nothing"), r"there is no \[targets.nothing\]"),
        (declared("w", provider="nothing"), "no plugin has this id"),
        (declared("w", provider="echo"), 'plugin "echo" .* is no SkillSource'),
        (declared("w", url="w/{city}"), "expected a path that starts with /"),
        (declared("w", target=None, url="https://{city}.example.com/"), "with parameters after the host alone"),
        (declared("w", target=None, url="https://u:p@example.com/{city}"), "credentials are not taken from a URL"),
        (declared("w", target=None, url="ftp://example.com/{city}"), "expected https://host/"),
        (declared("w", target=None, url="https://127.1/{city}"), "no IPv4 address in its usual form"),
        (declared("w", url="/w/{town}"), r"\{town\} is no required parameter"),
        (declared("w", url="/w/{units}"), r"\{units\} is no required parameter"),
        (declared("w", parameters={"type": "array"}), "expected the schema of an object"),
        (declared("w", parameters={"properties": {"city": {"type": "no"}}, "required": ["city"]}), "no good schema"),
        (
            declared("w", parameters={"properties": {"city": {"$ref": "https://x.test/s"}}, "required": ["city"]}),
            "no good",
        ),
        ({"plugins.http_skills.fetch_hosts": ["a b"]}, "fetch_hosts"),
        ({"plugins.skills.sources": ["http_skills", "echo"]}, "is no SkillSource"),
        ({"plugins.python_skills.only": ["nothing"]}, "no installed skill has the name 'nothing'"),
        ({"plugins.skills.sources": ["python_skills"], **declared("w")}, "is not among the sources"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_at_boot(
    tmp_path: Path, edit: dict[str, Any], problem: str
) -> None:
    edit = {"targets.inside.url": "http://127.0.0.1:9", "targets.inside.private": True, **edit}
    with pytest.raises(ConfigError, match=problem):
        build(configuration(tmp_path, edit=edit))
