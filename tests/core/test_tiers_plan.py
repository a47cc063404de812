"""`tiers plan`: what an edit of the tier files means, for tiers and for those who have used something."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from openclaw_gateway.api import Take
from openclaw_gateway.cli import main
from openclaw_gateway.testing import build, configuration

TEAMS = """
title = "Teams"
models = ["echo", "old"]
[ratelimit.requests]
limit = 500
per = "minute"
[ratelimit.ws_messages]
limit = 1000
per = "minute"
[quota.sessions]
limit = 1_000
per = "month"
[quota.messages]
limit = 100
per = "month"
[concurrency.sessions]
limit = 20
[concurrency.ws_connections]
limit = 20
"""
NEW = (
    TEAMS.replace("limit = 500", "limit = 600")
    .replace('limit = 100\nper = "month"', 'limit = 50\nper = "month"\nwarn_at = 0.9')
    .replace('"old"', '"new"')
    .replace("[concurrency.sessions]\nlimit = 20", '[concurrency.sessions]\nlimit = 20\nmode = "shadow"')
    + '[quota.skills]\nlimit = 5\nper = "session"\n'
)

CHANGES = """\
tier   what                       old      new     its organizations
basic  (the tier)                 tier     -       loses
gold   (the tier)                 -        tier    gains
teams  concurrency.sessions.mode  enforce  shadow  gains
teams  quota.messages.limit       100      50      loses
teams  quota.messages.warn_at     0.8      0.9     changes
teams  quota.skills               -        5       loses
teams  ratelimit.requests.limit   500      600     gains
teams  models.new                 -        new     gains
teams  models.old                 old      -       loses
"""

AFFECTED = """\
organization  subject  tier   limit           used  old    new  effect
acme          -        teams  quota.messages  60    100    50   refused from now on
full          -        teams  quota.messages  100   100    50   refused as before
small         -        basic  quota.sessions  3     1,000  -    tier gone
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    configuration(tmp_path, tiers={"teams": TEAMS, "basic": TEAMS}, edit={"models.old.provider": "echo"})
    for name, files in {"old": {"teams": TEAMS, "basic": TEAMS}, "new": {"teams": NEW, "gold": NEW}}.items():
        (tmp_path / name).mkdir()
        for tier, text in files.items():
            (tmp_path / name / f"{tier}.toml").write_text(text)
    return tmp_path


def run(place: Path, *arguments: str) -> tuple[int, str, str]:
    config = ["--config", str(place / "openclaw.toml")]
    done = CliRunner().invoke(main, ["tiers", "plan", *config, *arguments])
    return done.exit_code, done.stdout, done.stderr


def use(place: Path) -> None:
    gateway = build(place / "openclaw.toml")

    async def charge() -> None:
        async with gateway.opened("accounts") as accounts:
            for organization, tier, name, amount in (
                ("acme", "teams", "quota.messages", 60),
                ("full", "teams", "quota.messages", 100),
                ("calm", "teams", "quota.messages", 49),
                ("small", "basic", "quota.sessions", 3),
                ("lease", "teams", "concurrency.sessions", 20),
            ):
                limit = next(x for x in gateway.admission.whole[tier].limits if x.name == name)
                lease = "s" if limit.kind == "lease" else None
                _, holds = await accounts.reserve(organization, [Take(limit, "-", amount, lease)])
                await accounts.commit(holds)

    asyncio.run(charge())


def test_it_tells_who_gains_and_loses_what(place: Path) -> None:
    code, out, _ = run(place, "--offline", str(place / "old"), str(place / "new"))
    assert (code, out) == (0, CHANGES)


def test_it_tells_which_organizations_are_over_the_new_limits(place: Path) -> None:
    use(place)
    code, out, _ = run(place, str(place / "old"), str(place / "new"))
    assert code == 0
    changes, affected = out.split("\n\n")
    assert changes + "\n" == CHANGES
    lines = affected.splitlines(keepends=True)
    # a lease that is full is admitted again where its limit only watches from now on
    freed = [line for line in lines if line.startswith("lease")]
    assert [line.split()[-2:] for line in freed] == [["admitted", "again"]]
    assert [line.split() for line in lines if line not in freed] == [line.split() for line in AFFECTED.splitlines()]


def test_json_has_the_same(place: Path) -> None:
    use(place)
    code, out, _ = run(place, "--json", str(place / "old"), str(place / "new"))
    told = json.loads(out)
    assert code == 0 and len(told["changes"]) == 9 and len(told["organizations"]) == 4
    assert {
        "tier": "teams",
        "limit": "quota.messages",
        "field": "limit",
        "old": 100,
        "new": 50,
        "verdict": "loses",
    } in (told["changes"])
    code, out, _ = run(place, "--json", "--offline", str(place / "old"), str(place / "new"))
    assert json.loads(out)["organizations"] is None


def test_nothing_is_said_to_change_where_nothing_does(place: Path) -> None:
    code, out, _ = run(place, str(place / "old"), str(place / "old"))
    assert code == 0 and out.splitlines()[0] == "no tier changes"


def test_files_that_are_wrong_are_named(place: Path) -> None:
    (place / "new/gold.toml").write_text(NEW.replace("limit = 5\n", "limit = -5\n"))
    code, _, err = run(place, str(place / "old"), str(place / "new"))
    assert code == 2 and "gold.toml:" in err
    code, _, err = run(place, str(place / "old"), str(place / "none"))
    assert code == 2 and "no such folder" in err
