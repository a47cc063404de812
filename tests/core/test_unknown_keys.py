"""No table of any file takes a key that it does not know: what is misspelt would else be a setting that is not set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from msgspec import StructMeta

from openclaw_gateway.config.document import Document, PluginConfig
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.loader import installed
from openclaw_gateway.structs import bare
from openclaw_gateway.testing import build, configuration

#: every table that the host has of its own, and those within them
HOST = (
    "gateway", "gateway.edge", "gateway.tls", "gateway.operations", "steps.auth", "models.m", "models.m.timeouts",
    "models.m.price", "targets.t", "skills.s",
)  # fmt: skip


def test_every_table_that_has_a_key_too_many_is_named_and_nothing_starts(tmp_path: Path) -> None:
    plugins = {f"plugins.p{i}": name for i, name in enumerate(sorted(installed()))}
    assert len(plugins) > 40
    written = [f"[{table}]\nsurprise = 1\n" for table in HOST]
    written += [f'[{table}]\nuse = "{name}"\nsurprise = 1\n' for table, name in plugins.items()]
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml="surprise = 1\n" + "".join(written)))
    told = {problem.path: problem for problem in caught.value.problems if problem.message.startswith("unknown key")}
    assert set(told) == {"surprise"} | {f"{table}.surprise" for table in (*HOST, *plugins)}
    assert all(problem.origin.startswith("openclaw.toml:") for problem in told.values())


def test_every_limit_that_has_a_key_too_many_is_named_and_nothing_starts(tmp_path: Path) -> None:
    owners = [name for name, cls in classes() if hasattr(cls, "Limits")]
    assert set(owners) >= {"ratelimit", "quota", "concurrency"}
    tiers = {"teams": "".join(f"[{owner}.requests]\nsurprise = 1\n" for owner in owners)}
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, tiers=tiers))
    told = {problem.path for problem in caught.value.problems if problem.message == "unknown key"}
    assert told == {f"{owner}.requests.surprise" for owner in owners}


def test_tables_within_tables_are_as_strict() -> None:
    roots = [
        Document,
        *(getattr(cls, name) for _, cls in classes() for name in ("Config", "Limits") if hasattr(cls, name)),
    ]
    found = {struct for root in roots for struct in structs(root)}
    assert len(found) > 45
    assert [struct for struct in found if not issubclass(struct, PluginConfig)] == []
    assert [struct for struct in found if not struct.__struct_config__.forbid_unknown_fields] == []


def classes() -> list[tuple[str, Any]]:
    return [(name, points[0].load()) for name, points in sorted(installed().items())]


def structs(type: Any) -> Iterator[Any]:
    """A Struct and all that its fields may hold."""
    base = bare(type)
    for argument in get_args(base):
        yield from structs(argument)
    if isinstance(base, StructMeta):
        yield base
        for field in msgspec.structs.fields(base):
            yield from structs(field.type)
