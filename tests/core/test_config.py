"""Units, secrets, positions, layers: each value as written, each origin as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from openclaw_gateway.config.layers import Layers, TomlFile
from openclaw_gateway.config.positions import positions
from openclaw_gateway.config.units import Duration, Secret, Size


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("30s", 30), ("1.5m", 90), ("24h", 86400), ("7d", 604800), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("text", ["30", "s", "30 sec", "-1s", "1e3s", "", "30S", 30, None, "1h30m"])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        Duration.parse(text)


@pytest.mark.parametrize(("text", "size"), [("20MB", 20_000_000), ("1MiB", 1_048_576), ("512B", 512), ("1.5KB", 1500)])
def test_sizes(text: str, size: int) -> None:
    assert Size.parse(text) == size


def test_a_secret_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    (tmp_path / "key").write_text("hunter2\n")
    for text in ("hunter2", "env:SOME_SECRET", "file:key"):
        secret = Secret.parse(text, tmp_path)
        assert secret.reveal() == "hunter2"
        assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    for text in ("env:NOT_SET_ANYWHERE", "file:nowhere", "", 5):
        with pytest.raises(ValueError):
            Secret.parse(text, tmp_path)


def test_positions_of_every_form_of_key() -> None:
    text = """a = 1
"quoted key" = 2
b.c = { d = [1, { e = 2 }] }

[t.'x.y']
k = 1
[[list]]
n = 1
[[list]]
n = 2
[list.sub]
m = "é"
"""
    found = positions(text)
    assert found["a",] == (1, 1)
    assert found["quoted key",] == (2, 1)
    assert found["b", "c", "d", 1, "e"] == (3, 19)
    assert found["t", "x.y", "k"] == (6, 1)
    assert found["list", 0, "n"] == (8, 1)
    assert found["list", 1, "n"] == (10, 1)
    assert found["list", 1, "sub", "m"] == (12, 1)


def layers(tmp_path: Path, text: str, **environ: str) -> Layers:
    path = tmp_path / "openclaw.toml"
    path.write_text(text)
    return Layers(TomlFile(path, path.name), environ)


def test_a_variable_shadows_one_value_and_no_other(tmp_path: Path) -> None:
    found = layers(
        tmp_path,
        '[gateway]\nport = 1\nhost = "h"\n[plugins.a]\nx = [1, 2]\ny = { z = 3 }\n',
        OPENCLAW_GATEWAY__PORT="2",
        OPENCLAW_PLUGINS__A__NEW="text",
    )
    assert found.tree["gateway"]["host"] == "h"
    assert found.tree["gateway"]["port"].parsed == 2
    assert found.tree["plugins"]["a"]["x"] == [1, 2]
    assert found.tree["plugins"]["a"]["y"] == {"z": 3}
    assert found.tree["plugins"]["a"]["new"].raw == "text"
    assert found.origin(("gateway", "port")) == "OPENCLAW_GATEWAY__PORT"
    assert found.origin(("gateway", "host")) == "openclaw.toml:3:1"


def test_foreign_variables_are_tolerated_and_near_misses_named(tmp_path: Path) -> None:
    found = layers(
        tmp_path,
        "[gateway]\nport = 1\n",
        OPENCLAW_STATE_DIR="of another program",
        OPENCLAW_GATEWAY_PORT="2",
        OPENCLAW_GATWAY__PORT="3",
        DYNACONF_GATEWAY__PORT="4",
        INCLUDES_FOR_DYNACONF="evil.py",
    )
    assert found.tree == {"gateway": {"port": 1}}
    assert found.warnings == [
        "OPENCLAW_GATEWAY_PORT: ignored; did you mean OPENCLAW_GATEWAY__PORT?",
        "OPENCLAW_GATWAY__PORT: no such section, ignored; did you mean OPENCLAW_GATEWAY__...?",
    ]


def test_configuration_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "dynaconf_hooks.py").write_text(
        f"open({str(ran)!r}, 'w')\ndef post(settings): open({str(ran)!r}, 'w')\n"
    )
    (tmp_path / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INCLUDES_FOR_DYNACONF", str(tmp_path / "evil.py"))
    monkeypatch.setenv("PRELOAD_FOR_DYNACONF", str(tmp_path / "evil.py"))
    monkeypatch.setenv("SETTINGS_FILE_FOR_DYNACONF", str(tmp_path / "evil.py"))
    found = layers(
        tmp_path,
        "[gateway]\nport = 1\n",
        OPENCLAW_GATEWAY__HOST="@read_file /etc/hostname",
        OPENCLAW_GATEWAY__PORT="3",
    )
    assert found.tree["gateway"]["host"].raw == "@read_file /etc/hostname"
    assert found.tree["gateway"]["port"].parsed == 3
    refused = layers(tmp_path, '[gateway]\nport = 1\ndynaconf_include = ["evil.py"]\n', OPENCLAW_GATEWAY__PORT="3")
    assert [(p.origin, p.message) for p in refused.problems] == [("openclaw.toml:3:1", "unknown key")]
    assert not ran.exists()


@pytest.mark.parametrize("order", ["_dynaconf_merge", "dynaconf_merge", "_dynaconf_reset", "_dynaconf_del"])
def test_an_order_to_the_library_is_an_unknown_key(tmp_path: Path, order: str) -> None:
    found = layers(tmp_path, f"[plugins.x]\na = 1\n[plugins.x.y]\n{order} = true\n", OPENCLAW_PLUGINS__X__A="2")
    assert [(p.origin, p.path) for p in found.problems] == [("openclaw.toml:4:1", f"plugins.x.y.{order}")]
    name = f"OPENCLAW_PLUGINS__X__{order.upper()}"
    found = layers(tmp_path, "[plugins.x]\na = 1\n", **{name: "true", "OPENCLAW_PLUGINS__X__A": "2"})
    assert [(p.origin, p.path) for p in found.problems] == [(name, f"plugins.x.{order}")]


def test_a_mark_at_the_beginning_of_a_file_is_no_text_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf[gateway]\nport = 1\n")
    file = TomlFile(path, "a.toml")
    assert (file.problems, file.data) == ([], {"gateway": {"port": 1}})
    assert file.origin(("gateway", "port")) == "a.toml:2:1"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"#" * 4_000_001, "a.toml: larger than 4MB"),
        (b"a = " + b"[" * 5_000 + b"]" * 5_000, "a.toml: not valid TOML: lists or tables nest too deep"),
    ],
)
def test_a_file_that_nobody_wrote_by_hand_is_a_problem_like_others(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    assert [str(problem) for problem in TomlFile(path, "a.toml").problems] == [told]


def test_a_device_in_the_place_of_a_file_is_not_read_to_its_end() -> None:
    (problem,) = TomlFile(Path("/dev/zero"), "a.toml").problems
    assert str(problem) == "a.toml: larger than 4MB"
