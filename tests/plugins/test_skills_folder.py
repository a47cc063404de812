"""Folders with a SKILL.md as people really write them are read; nothing of them is run or followed out of its root."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from skill_kit import execute
from socket_kit import Place, place

from openclaw_plugins.skills.folder import load, missing_of
from openclaw_plugins.skills.manifest import Manifest, Requirements, Unreadable, read_manifest

GOOD = "---\nname: weather\ndescription: Tells the weather.\n---\n# Weather\n\nLook out of the window.\n"


def read(text: str | bytes, folder: str = "weather") -> Manifest:
    return read_manifest(text if isinstance(text, bytes) else text.encode(), folder)


def test_a_plain_one() -> None:
    found = read(GOOD)
    assert (found.name, found.description, found.version) == ("weather", "Tells the weather.", "1")
    assert found.instructions == "# Weather\n\nLook out of the window."
    assert found.notes == () and found.requirements == Requirements()


FRONT = "name: weather\ndescription: Tells the weather."


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\ufeff" + GOOD, id="byte order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="CRLF"),
        pytest.param("\ufeff" + GOOD.replace("\n", "\r\n"), id="byte order mark and CRLF"),
        pytest.param(GOOD.replace("\n", "\r"), id="CR"),
        pytest.param(GOOD.encode("utf-16"), id="UTF-16"),
        pytest.param("\n\n" + GOOD, id="blank lines first"),
        pytest.param("<!-- a comment -->\n" + GOOD, id="a comment first"),
        pytest.param(GOOD.replace("---", "---   "), id="spaces after the fences"),
        pytest.param(GOOD.replace("---", "-----"), id="long fences"),
        pytest.param(f"---\n{FRONT}\n...\nbody", id="dots for the closing fence"),
        pytest.param(f"```yaml\n{FRONT}\n```\nbody", id="a code block"),
        pytest.param(f"{FRONT}\n---\nbody", id="no opening fence"),
        pytest.param(f"---\n{FRONT}\n\nbody of it", id="no closing fence"),
        pytest.param(f"---\n{FRONT}\n# Weather\nbody", id="no closing fence before a heading"),
        pytest.param(f"---\n{FRONT}", id="nothing but keys"),
        pytest.param("---\nName: weather\nDescription: Tells the weather.\n---\nx", id="capital keys"),
        pytest.param('---\n"name": "weather"\n"description": "Tells the weather."\n---\nx', id="quoted keys"),
        pytest.param("---\nname : weather\ndescription : Tells the weather.\n---\nx", id="spaces before colons"),
        pytest.param("---\nname:weather\ndescription:Tells the weather.\n---\nx", id="no space after colons"),
        pytest.param("---\nname:\tweather\ndescription:\tTells the weather.\n---\nx", id="tabs after colons"),
        pytest.param("---\n\tname: weather\n\tdescription: Tells the weather.\n---\nx", id="tabs for indentation"),
        pytest.param("---\n  name: weather\n  description: Tells the weather.\n---\nx", id="indented"),
        pytest.param('{"a": 1}'.join(["---\nmetadata: ", f"\n{FRONT}\n---\nx"]), id="JSON metadata"),
        pytest.param("---\nname: weather\ndescription: >\n  Tells\n  the weather.\n---\nx", id="folded"),
        pytest.param("---\nname: weather\ndescription: |\n  Tells\n  the weather.\n---\nx", id="literal"),
        pytest.param("---\nname: weather\ndescription: Tells\n  the weather.\n---\nx", id="continued"),
        pytest.param("---\nname: weather\ndescription:\n  - Tells\n  - the weather.\n---\nx", id="a list"),
        pytest.param("---\n- name: weather\n- description: Tells the weather.\n---\nx", id="a list of keys"),
        pytest.param("---\n{name: weather, description: Tells the weather.}\n---\nx", id="a flow map"),
        pytest.param(f"---\ndescription: Older.\n{FRONT}\n---\nx", id="a key twice"),
        pytest.param(f"---\n{FRONT}\nbroken: [1, 2\n---\nx", id="a list that is not closed"),
        pytest.param(f"---\n{FRONT}\nbroken: 'x\n---\nx", id="a quote that is not closed"),
        pytest.param(f"---\n{FRONT}\nbroken: @x\n---\nx", id="an at sign"),
        pytest.param(f"---\n{FRONT}\nbroken: %x\n---\nx", id="a percent sign"),
        pytest.param(f"---\n{FRONT}\nbroken: *x\n---\nx", id="an alias"),
        pytest.param(f"---\n{FRONT}\nallowed-tools: Bash(git:*), Read\n---\nx", id="a list of tools"),
        pytest.param(f"---\n{FRONT}\nx: !!python/object/apply:os.system ['true']\n---\nx", id="a tag"),
        pytest.param(f"---\n{FRONT}\n{{{{ template }}}}\n---\nx", id="a template"),
        pytest.param("---\nname: weather\x00\ndescription: Tells the weather.\x00\n---\nx", id="NUL"),
    ],
)
def test_odd_forms_are_read(text: str | bytes) -> None:
    found = read(text)
    assert (found.name, found.description) == ("weather", "Tells the weather."), found


@pytest.mark.parametrize(
    ("line", "description"),
    [
        ("description: Use when: the user asks", "Use when: the user asks"),
        ("description: Weather: today, tomorrow: all", "Weather: today, tomorrow: all"),
        ('description: "Quoted" and then: more', '"Quoted" and then: more'),
        ("description: - starts like a list: x", "- starts like a list: x"),
        ("description: [brackets] and: colons", "[brackets] and: colons"),
        ("description: a # comment: y", "a"),
        ("description: {x}: y", "{x}: y"),
        ("description: true", "true"),
        ("description: 2024-01-01", "2024-01-01"),
        ("description: 1e5", "1e5"),
        ("description: ~", "~"),
        ("description: 天気を教える", "天気を教える"),
        ("description: 'It''s here'", "It's here"),
    ],
)
def test_descriptions_stay_what_was_written(line: str, description: str) -> None:
    assert read(f"---\nname: weather\n{line}\n---\nx").description == description


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("# Weather\n\nLook out.", "it has no front matter"),
        ("Just words.", "it has no front matter"),
        ("Note: this is prose\nand no front matter", "it has no front matter"),
        ("---\n---\nbody", "it has no description"),
        ("---\nname: weather\n---\nbody", "it has no description"),
        ("---\nname: weather\ndescription:\n---\nbody", "it has no description"),
        ('---\nname: weather\ndescription: ""\n---\nbody', "it has no description"),
        ("---\n42\n---\nbody", "it has no description"),
        (b"\xff\xfe\x00", "it has no front matter"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "it has no front matter"),
    ],
)
def test_what_is_no_skill_is_told_why(text: str | bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(text)


@pytest.mark.parametrize(
    ("given", "folder", "name"),
    [
        ("Weather Report!", "weather", "weather-report"),
        ("", "My Weather", "my-weather"),
        ("../../etc/passwd", "w", "etc-passwd"),
        ("天気", "weather", "weather"),
        ("other-name", "weather", "other-name"),
        ("x" * 100, "w", "x" * 64),
        ("v1.2_a", "w", "v1.2_a"),
    ],
)
def test_names_become_usable(given: str, folder: str, name: str) -> None:
    assert read(f"---\nname: {given}\ndescription: d\n---\n", folder).name == name


@pytest.mark.parametrize(("line", "visible"), [("", True), ("disable-model-invocation: true", False), ("x: y", True)])
def test_one_may_be_kept_from_models(line: str, visible: bool) -> None:
    assert read(f"---\n{FRONT}\n{line}\n---\nx").model_visible is visible


@pytest.mark.parametrize(
    ("line", "invocable"), [("", True), ("user-invocable: false", False), ("user-invocable: 'no'", False)]
)
def test_one_may_be_kept_from_callers(line: str, invocable: bool) -> None:
    assert read(f"---\n{FRONT}\n{line}\n---\nx").user_invocable is invocable


def test_aliases_and_depth_do_not_grow() -> None:
    bomb = "a: &a [x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)},*{chr(97 + i)}]\n" for i in range(20)
    )
    assert read(f"---\n{bomb}description: d\n---\nx").description == "d"
    assert read("---\nx: " + "[" * 5_000 + "\ndescription: d\n---\nx").description == "d"
    assert len(read("---\ndescription: " + "d" * 5_000 + "\n---\nx").description) == 1_024


@pytest.mark.parametrize("family", ["openclaw", "clawdbot", "moltbot", "clawdis"])
def test_requirements_of_the_whole_family_are_read(family: str) -> None:
    requires = {"bins": ["no-such-binary"], "env": ["NO_SUCH_VARIABLE"]}
    block = json.dumps({family: {"os": ["linux"], "requires": requires}})
    in_yaml = f"{family}:\n    requires:\n      bins: [no-such-binary]\n      env: NO_SUCH_VARIABLE\n    os: [linux]"
    for text in (f"metadata: {block}", f"metadata: '{block}'", f"metadata:\n  {in_yaml}"):
        wanted = read(f"---\n{FRONT}\n{text}\n---\nx").requirements
        assert (wanted.bins, wanted.env, wanted.os) == (("no-such-binary",), ("NO_SUCH_VARIABLE",), ("linux",)), text


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "1")
    monkeypatch.setattr("sys.platform", "linux")
    wanted = Requirements(
        bins=("sh", "no-such-binary"),
        any_bins=("nope", "neither"),
        env=("THERE", "NOT_THERE"),
        config=("browser.enabled",),
        os=("darwin",),
    )
    assert missing_of(wanted) == (
        "os:darwin",
        "bin:no-such-binary",
        "anyBin:nope|neither",
        "env:NOT_THERE",
        "config:browser.enabled",
    )
    assert missing_of(Requirements(bins=("no-such-binary",), any_bins=("sh", "nope"), always=True)) == ()


def write(folder: Path, text: str = GOOD, name: str = "SKILL.md") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def skill(name: str) -> str:
    return f"---\nname: {name}\ndescription: {name}\n---\n{name}"


def names(*roots: Path) -> list[str]:
    return [each.info.name for each in load(list(roots))[0]]


def test_folders_are_found_in_order_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write(tmp_path / "b", skill("b"))
    write(tmp_path / "a", skill("a"), "skill.md")
    write(tmp_path / "deep/er/still", skill("deep"))
    write(tmp_path / "1/2/3/4/5/6", skill("six"))
    write(tmp_path / "1/2/3/4/5/6/7", skill("seven"))
    write(tmp_path / "x/2/3/4/5/6/7", skill("too-deep"))
    write(tmp_path / ".hidden/h", skill("hidden"))
    write(tmp_path / "node_modules/n", skill("n"))
    write(tmp_path / "b/examples/inner", skill("inner"))
    assert names(tmp_path) == ["six", "a", "b", "deep"]
    assert names(tmp_path / "nothing") == []


def test_the_earlier_root_wins_and_the_other_is_told(tmp_path: Path) -> None:
    write(tmp_path / "one/weather", GOOD.replace("Tells", "One tells"))
    write(tmp_path / "two/weather", GOOD)
    found, diagnostics = load([tmp_path / "one", tmp_path / "two"])
    assert [each.info.description for each in found] == ["One tells the weather."]
    assert [(d.folder, d.skipped) for d in diagnostics] == [("two/weather", True)]


def test_what_leads_out_or_would_block_is_skipped(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path / "outside", skill("outside"))
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root)
    (root / "file").mkdir()
    (root / "file/SKILL.md").symlink_to(tmp_path / "outside/SKILL.md")
    (root / "dangling").mkdir()
    (root / "dangling/SKILL.md").symlink_to(tmp_path / "nothing")
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe/SKILL.md")
    write(root / "huge", GOOD + "x" * 300_000)
    write(root / "good", skill("good"))
    (root / "folder/SKILL.md").mkdir(parents=True)
    found, diagnostics = load([root])
    assert [each.info.name for each in found] == ["good"]
    told = {d.folder: d.message for d in diagnostics if d.skipped}
    assert told["root/pipe"] == "SKILL.md is no file"
    assert told["root/file"] == told["root/link"] == "it leads out of its root"
    assert told["root/huge"].startswith("SKILL.md is larger") and told["root/dangling"] == "it cannot be read"


def test_a_root_has_so_many_skills(tmp_path: Path) -> None:
    for i in range(220):
        write(tmp_path / f"s{i:03}", skill(f"s{i:03}"))
    found, diagnostics = load([tmp_path])
    assert len(found) == 200 and "more skills" in diagnostics[-1].message


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Place]:
    folder = write(tmp_path / "skills/weather", GOOD)
    (folder / "run.sh").write_text("#!/bin/sh\ntouch ran\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "references").mkdir()
    (folder / "references/clouds.md").write_text("clouds")
    lacking = GOOD.replace("weather", "lacking").replace(
        "---\n#", 'metadata: {"openclaw": {"requires": {"bins": ["no-such-binary"]}}}\n---\n#'
    )
    write(tmp_path / "skills/lacking", lacking)
    write(tmp_path / "skills/prose", "no front matter")
    async with place(tmp_path) as found:
        yield found


async def test_running_one_gives_its_instructions(here: Place, tmp_path: Path) -> None:
    session = await here.session()
    status, body = await execute(here, "weather", session, input="and tomorrow?")
    assert (status, body["status"]) == (200, "completed")
    assert body["result"] == {
        "text": "# Weather\n\nLook out of the window.",
        "resources": ["run.sh", "references/clouds.md"],
    }
    assert not list(tmp_path.rglob("ran"))
    ask: Any = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "metadata": {"skillName": "weather"}}
    status, answer = await here.ask("POST", "/v1/chat/completions", ask)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "# Weather\n\nLook out of the window.")


async def test_one_that_lacks_something_says_so_and_is_not_run(here: Place) -> None:
    status, body = await here.ask("GET", "/api/v1/skills/lacking")
    assert (status, body["eligible"], body["missing"], body["kind"]) == (200, False, ["bin:no-such-binary"], "folder")
    status, body = await execute(here, "lacking", await here.session())
    assert (status, body["error"]["code"]) == (409, "CONFLICT") and "no-such-binary" in body["error"]["message"]
    (probe,) = [c for c in here.gateway.health_checks if c.name == "folder_skills"]
    assert await probe.probe() == {"loaded": 2, "skipped": ["skills/prose: it has no front matter"]}
