"""Whatever is wrong with tier files is told at once, each mistake with its place, and nothing starts."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration
from openclaw_gateway.tiers import TierFiles
from openclaw_plugins.quota import Quota

SHIPPED = {path.stem: path.read_text() for path in asset("tiers").glob("*.toml")}

BAD = """title = "Bad"
ratelimit.requests = { limit = -1, per = "minute", surprise = true }
ratelimit.ws_messages = { limit = 1.5, per = "fortnight" }
quota.sessions = { limit = 10, per = "minute" }
quota.messages = { limit = 10 }
quota.skills = { limit = 200, per = "session", algorithm = "sliding" }
concurrency.sessions = { limit = 5 }
concurrency.ws_connections = { limit = "5" }
ratelimits.requests = { limit = 5 }
"""


def problems(folder: Path, tiers: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(configuration(folder, tiers=tiers))
    return [str(problem) for problem in caught.value.problems]


def test_every_mistake_is_told_at_once_with_its_place(tmp_path: Path) -> None:
    told = problems(tmp_path, {**SHIPPED, "bad": BAD})
    expected = [
        (2, "ratelimit.requests.limit: not a valid value; found -1; expected a whole number, at least 0"),
        (2, "ratelimit.requests.surprise: unknown key"),
        (3, "ratelimit.ws_messages.limit: not a valid value; found 1.5"),
        (3, 'ratelimit.ws_messages.per: not a valid value; found "fortnight"'),
        (4, 'quota.sessions.per: not a valid value; found "minute"; expected one of "day", "month", "session"'),
        (5, "quota.messages.per: missing"),
        (6, "quota.skills.algorithm: unknown key"),
        (8, 'concurrency.ws_connections.limit: not a valid value; found "5"'),
        (9, "ratelimits: unknown table: no plugin of the configuration with this id has limits"),
    ]
    assert len(told) == len(expected)
    for line, (place, message) in zip(told, expected, strict=True):
        assert line.startswith(f"tiers/bad.toml:{place}:") and message in line, line
    assert told[-1].endswith('did you mean "ratelimit"?')


def test_a_name_that_stands_twice_and_a_second_file_of_a_tier_are_refused(tmp_path: Path) -> None:
    twice = SHIPPED["teams"] + '\n[quota.messages]\nlimit = 5\nper = "month"\n'
    told = problems(tmp_path, {**SHIPPED, "teams": twice, "Teams": SHIPPED["teams"]})
    assert any("twice" in line and line.startswith("tiers/teams.toml:") for line in told)
    assert "tiers/teams.toml: a second file for the tier 'teams'" in told


def test_a_limit_that_nothing_meters_is_named_with_the_nearest(tmp_path: Path) -> None:
    idle = SHIPPED["teams"] + '\n[ratelimit.reqests]\nlimit = 5\nper = "minute"\n'
    (line,) = problems(tmp_path, {**SHIPPED, "teams": idle})
    assert "ratelimit.reqests: counts nothing: no route meters 'reqests'" in line
    assert line.endswith('did you mean "requests"?')


def test_a_name_that_no_folder_can_have_is_told(tmp_path: Path) -> None:
    _, (found,) = TierFiles(tmp_path / ("1" * 300), "tiers").build({"quota": Quota.Limits})
    # From Python 3.14 on such a name is only not there.
    assert found.origin == "tiers" and found.message.startswith(("cannot be read: ", "no such folder"))


@pytest.mark.parametrize(("there", "told"), [(False, "tiers: no such folder"), (True, "tiers: no tier file")])
def test_a_folder_without_tiers_is_told_once(tmp_path: Path, there: bool, told: str) -> None:
    folder = tmp_path / "tiers"
    if there:
        folder.mkdir()
    tiers, found = TierFiles(folder, "tiers").build({"quota": Quota.Limits})
    (problem,) = found
    assert tiers == {} and str(problem).startswith(told)


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Any) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Not by its mode: root reads every folder. Both ways to list one end here.
    monkeypatch.setattr(os, "listdir", refused)
    monkeypatch.setattr(os, "scandir", refused)
    _, found = TierFiles(tmp_path, "tiers").build({"quota": Quota.Limits})
    assert [str(problem) for problem in found] == ["tiers: cannot be read: permission denied"]


def test_the_keys_of_the_host_have_types_and_no_table_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text('title = 5\nmodels = "echo"\nskills = [1]\nscopes = ["a"]\n')
    tiers, found = TierFiles(tmp_path, "tiers").build({"quota": Quota.Limits})
    assert tiers == {}
    lines = [str(problem) for problem in found]
    assert [line.split(":")[1] for line in lines[:3]] == ["1", "2", "3"]
    assert len(lines) == 4 and "quota: missing table; expected [quota.<limit>]" in lines[3]


def test_what_a_tier_opens_is_what_its_file_names_and_all_where_it_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('title = "A"\nmodels = ["echo"]\nskills = []\n[quota]\n')
    (tmp_path / "b.toml").write_text('scopes = ["admin"]\n[quota.messages]\nlimit = 5\nper = "day"\n')
    tiers, found = TierFiles(tmp_path, "tiers").build({"quota": Quota.Limits})
    assert found == []
    a, b = tiers["a"], tiers["b"]
    assert (a.title, a.models, a.skills, a.scopes) == ("A", {"echo"}, frozenset(), None)
    assert (b.title, b.models, b.skills, b.scopes) == ("b", None, None, {"admin"})
    assert a.tables == {"quota": {}}
    assert b.tables == {"quota": {"messages": Quota.Limits(limit=5, per="day")}}


def test_a_model_that_is_none_is_named_at_its_own_place_in_the_tier_file(tmp_path: Path) -> None:
    opening = 'title = "Teams"\nmodels = ["ech", "echo",\n  "smal"]\n'
    first, second = problems(tmp_path, {**SHIPPED, "teams": SHIPPED["teams"].replace('title = "Teams"\n', opening, 1)})
    assert re.match(
        r"tiers/teams\.toml:\d+:\d+: models\[0\]: there is no such model; found \"ech\"; expected one of: ", first
    )
    assert first.endswith('did you mean "echo"?')
    assert re.match(r"tiers/teams\.toml:\d+:\d+: models\[2\]: there is no such model; found \"smal\"; ", second)


def test_a_limit_higher_than_a_header_can_say_is_refused(tmp_path: Path) -> None:
    high = SHIPPED["teams"].replace("limit = 500\n", "limit = 1_000_000_000_000_000\n")
    (line,) = problems(tmp_path, {**SHIPPED, "teams": high})
    assert "ratelimit.requests.limit: not a valid value; found 1000000000000000" in line
    assert line.endswith("at least 0, at most 999999999999999")
