"""`db downgrade`: the way back to an older gateway, by the command alone, and forth again with what was stored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from servers import Postgres

from openclaw_gateway.api import NewMessage, Principal, StartFailed
from openclaw_gateway.testing import build, configuration
from openclaw_plugins.database.commands import db

ADA = Principal(organization="acme", user="ada", tier="teams", method="api_key", credential="k")


@pytest.fixture(params=["sqlite", "postgresql"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A configuration whose database is empty."""
    if request.param == "sqlite":
        yield configuration(tmp_path, edit={"plugins.database.url": f"sqlite:///{tmp_path}/x.db"})
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    name = postgres.create()
    yield configuration(tmp_path, edit={"plugins.database.url": postgres.url(name)})
    postgres.drop(name)


def run(file: Path, *args: str, answer: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(db, [*args, "--config", str(file)], input=answer)
    return result.exit_code, result.output


async def said(file: Path, content: str) -> None:
    async with (gateway := build(file)).running():
        made = await gateway.plugin("sessions").create(ADA, tier="teams", metadata={}, ttl=None, holds=())
        await gateway.plugin("sessions").append("acme", made.session_id, [NewMessage(role="user", content=content)])


async def found(file: Path, words: str) -> list[str]:
    async with (gateway := build(file)).running():
        messages = await gateway.plugin("sessions").search("acme", text=words, session_id=None, user="ada", limit=9)
        return [message.content for message in messages]


def test_down_by_one_and_up_again_keeps_what_was_stored(file: Path) -> None:
    assert run(file, "upgrade")[0] == 0
    asyncio.run(said(file, "The quick brown fox"))
    code, output = run(file, "downgrade", "0006", answer="n\n")
    assert code == 1 and "undoes 0008: Reservations that still count" in output and "Go on? [y/N]" in output
    assert run(file, "current") == (0, "0008\n")

    code, output = run(file, "downgrade", "0006", answer="y\n")
    assert code == 0 and output.endswith("the schema is at 0006\n")
    code, output = run(file, "check")
    assert code == 1 and "is at 0006, this gateway needs 0008: run `openclaw-gateway db upgrade`" in output
    with pytest.raises(StartFailed, match="needs 0008"):
        asyncio.run(found(file, "fox"))

    assert run(file, "upgrade")[0] == 0
    assert asyncio.run(found(file, "fox")) == ["The quick brown fox"]


def test_without_a_question_and_for_a_program(file: Path) -> None:
    assert run(file, "upgrade")[0] == 0
    result = CliRunner().invoke(db, ["downgrade", "0004", "--yes", "--json", "--config", str(file)])
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [f"undoes 000{n}" for n in (8, 7, 6, 5)]
    state = msgspec.json.decode(result.stdout)
    assert (state["current"], state["needed"], state["matches"]) == (["0004"], ["0008"], False)


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        ("0099", "there is no revision '0099'; there are 0001, 0002, 0003"),
        ("base", "there is no revision 'base'; there are 0001"),
        ("0006", "the database is at 0005, which comes before '0006'"),
    ],
)
def test_a_revision_that_is_no_way_back_changes_nothing(file: Path, revision: str, told: str) -> None:
    assert run(file, "upgrade")[0] == 0
    assert run(file, "downgrade", "0005", "--yes")[0] == 0
    code, output = run(file, "downgrade", revision, "--yes")
    assert code == 1 and output.startswith(told)
    assert run(file, "current") == (0, "0005\n")


def test_a_database_of_a_newer_gateway_is_left_to_that_one(file: Path, tmp_path: Path) -> None:
    assert run(file, "upgrade")[0] == 0

    async def newer() -> None:
        from sqlalchemy import text

        async with build(file).plugin("database").owner() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '0042'"))

    asyncio.run(newer())
    code, output = run(file, "downgrade", "0006", "--yes")
    assert code == 1 and "a newer gateway made it" in output


def test_an_empty_database_has_nothing_to_undo(file: Path) -> None:
    code, output = run(file, "downgrade", "0006", "--yes")
    assert code == 1 and output == "the database is at no revision, which comes before '0006'\n"
