"""An operator makes one organisation or one route talk for a while, beside a gateway that serves and stays quiet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner, Result

from openclaw_gateway.cli import main
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.access_log.levels import FILE, MOST, read


class Quiet:
    """A gateway that writes warnings and errors only, and two organisations that call it."""

    def __init__(self, url: str, path: Path, keys: dict[str, str]) -> None:
        self.url, self.path, self.keys = url, path, keys

    async def call(self, organization: str, path: str = "/v1/models") -> None:
        headers = {"Authorization": f"Bearer {self.keys[organization]}"}
        async with aiohttp.ClientSession() as http, http.get(self.url + path, headers=headers) as answer:
            assert answer.status == 200

    def lines(self) -> list[dict[str, Any]]:
        file = self.path.parent / "gateway.log"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def requests(self) -> list[tuple[str, str]]:
        return [(x["organizationId"], x["route"]) for x in self.lines() if x["event"] == "request"]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.05)

    async def changed(self, times: int) -> None:
        await self.until(lambda: sum(x["event"] == "log_level" for x in self.lines()) >= times)


@pytest.fixture
async def quiet(tmp_path: Path) -> AsyncIterator[Quiet]:
    path = configuration(
        tmp_path, edit={"plugins.access_log.level": "warning", "plugins.access_log.file": "gateway.log"}
    )
    gateway = build(path)
    async with serving(gateway) as url:
        create = gateway.plugin("api_key").create
        keys = {o: (await create(organization=o, user="u", tier="teams")).key for o in ("acme", "other")}
        yield Quiet(url, path, keys)


def run(path: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["log", *words, "--config", str(path)], catch_exceptions=False)


async def test_one_organisation_talks_for_a_while(quiet: Quiet) -> None:
    await quiet.call("acme")
    said = run(quiet.path, "level", "info", "--org", "acme", "--for", "3s")
    assert said.output.startswith("from info on, for organisation acme, until 20")
    await quiet.changed(1)
    await quiet.call("acme")
    await quiet.call("other")
    await quiet.until(lambda: bool(quiet.requests()))
    await quiet.changed(2)  # it ended by itself
    await quiet.call("acme")
    await asyncio.sleep(0.2)
    assert quiet.requests() == [("acme", "/v1/models")]


async def test_one_route_talks_until_it_is_told_to_stop(quiet: Quiet) -> None:
    assert run(quiet.path, "level", "info", "--route", "/api/v1/usage").exit_code == 0
    await quiet.changed(1)
    await quiet.call("other", "/api/v1/usage")
    await quiet.call("other")
    shown = json.loads(run(quiet.path, "show", "--json").output)["overrides"]
    assert [(x["level"], x["route"], x["organizationId"]) for x in shown] == [("info", "/api/v1/usage", None)]
    assert run(quiet.path, "reset").output == "ended 1\n"
    await quiet.changed(2)
    await quiet.call("other", "/api/v1/usage")
    await asyncio.sleep(0.2)
    assert quiet.requests() == [("other", "/api/v1/usage")]


async def test_less_can_be_asked_for_too(quiet: Quiet) -> None:
    run(quiet.path, "level", "error", "--org", "acme")
    run(quiet.path, "level", "info")
    await quiet.changed(1)
    await quiet.call("other")
    await quiet.until(lambda: ("other", "/v1/models") in quiet.requests())


def test_a_route_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    result = run(path, "level", "debug", "--route", "/api/v1/session")
    assert result.exit_code == 2
    assert "did you mean /api/v1/sessions?" in result.output
    assert run(path, "level", "debug", "--for", "soon").exit_code == 2
    assert not (tmp_path / ".openclaw" / FILE).exists()


def test_no_override_outlives_a_day(tmp_path: Path) -> None:
    path, file = configuration(tmp_path), tmp_path / ".openclaw" / FILE
    refused = run(path, "level", "debug", "--for", "25h")
    assert refused.exit_code == 2 and "at most 24h" in refused.output and not file.exists()
    assert run(path, "level", "debug", "--for", "24h").exit_code == 0
    one = json.loads(file.read_text())[0]
    file.write_text(json.dumps([{**one, "until": one["until"] + 10**9}]))  # by hand
    now = one["until"] - 86_400
    assert [each.until for each in read(file, now)] == [pytest.approx(one["until"])]
    assert read(file, one["until"] + 10**9) == []


def test_there_is_a_most_of_overrides_and_the_file_is_private(tmp_path: Path) -> None:
    path = configuration(tmp_path)
    for number in range(3):
        assert run(path, "level", "debug", "--org", f"o{number}").exit_code == 0
    file = tmp_path / ".openclaw" / FILE
    assert file.stat().st_mode & 0o777 == 0o600
    one = json.loads(file.read_text())[0]
    file.write_text(json.dumps([{**one, "organizationId": f"x{number}"} for number in range(MOST)]))
    assert "log reset" in run(path, "level", "debug", "--org", "more").output


async def test_a_file_that_cannot_be_read_changes_nothing_and_is_told_once(quiet: Quiet) -> None:
    (quiet.path.parent / ".openclaw" / FILE).write_text("{")
    await quiet.until(lambda: any("cannot be read" in x.get("message", "") for x in quiet.lines()))
    await asyncio.sleep(1.2)
    await quiet.call("acme")
    told = [x for x in quiet.lines() if "cannot be read" in x.get("message", "")]
    assert len(told) == 1
    assert not quiet.requests()
    assert run(quiet.path, "show").exit_code == 1
