"""Mutated configuration: `Gateway` is built, or says with places what is wrong; never does anything else come out.

Long form: `pytest tests/fire -m long` (8,000 files; `FIRE_SEED` chooses others).
"""

from __future__ import annotations

import random
import re
import shutil
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build

from .mutation import altered
from .watch import SEED, Recorder, counts, say

#: what may stand where a value stood
VALUES = (
    '""',
    '"x"',
    "0",
    "-1",
    "1",
    "9223372036854775808",
    "1" + "0" * 400,
    "0.1",
    "nan",
    "-inf",
    "true",
    "[]",
    "[[]]",
    "[1, 'a', {}]",
    "{}",
    "{ a = 1 }",
    "{ dynaconf_merge = true }",
    '"dynaconf_merge"',
    '["auth", "auth"]',
    "1979-05-27",
    "07:32:00",
    "1979-05-27T07:32:00Z",
    '"0s"',
    '"-1s"',
    '"1e999s"',
    '"99999999999999999999999999d"',
    '"1 MB"',
    '"999999999999999TB"',
    '"env:"',
    '"env:NO_SUCH_VARIABLE"',
    '"file:no/such/file"',
    '"file:."',
    '"@format {env[HOME]}"',
    '"@none"',
    '"\\u0000"',
    '"\\uFFFF"',
    '"a\\nb"',
    '"month"',
    '"fortnight"',
    '"http://[::1"',
    '"http://a:99999999"',
    '"postgresql://"',
    '"redis://:@:/x"',
    '"0.0.0.0/33"',
    '"::1"',
    '"chat"',
    '"auth"',
    '"database"',
    '"counters.redis"',
    '"events.redis"',
    '"redis"',
    '"providers.openai"',
    '"providers.local"',
    '"skills.http"',
    '"openclaw_gateway.gateway:Gateway"',
    "'''a\nb'''",
)
KEYS = (
    "use",
    "url",
    "limit",
    "per",
    "meter",
    "x",
    '""',
    '"a.b"',
    '"\\u0000"',
    "__class__",
    "dynaconf_merge",
    "to_dict",
    "gateway",
    "plugins",
    "get",
    "items",
    "keys",
    "models",
    "title",
    "scopes",
    "skills",
    "timeout",
    "secret",
    "fallbacks",
    "burst",
    "timeouts",
    "LOAD_DOTENV",
    "_bypass_evaluation",
)
TABLES = ("[gateway]", "[gateway.edge]", "[gateway.tls]", "[plugins]", "[plugins.x]", "[plugins.auth.failures]",
          "[plugins.jwt.claims]", "[plugins.jwt.jwks]", "[models]", "[models.x]", "[models.x.timeouts]", "[[models.y]]",
          "[steps.auth]", "[steps.x]", "[skills]", "[skills.x]", "[skills.x.params]", "[a.b.c]", '[plugins."a.b"]',
          "[ratelimit.x]", "[quota]", "[quota.messages.deep]", "[concurrency.x]", '[""]')  # fmt: skip
LINE = re.compile(r"^(\s*)([^=\[#]+?)(\s*=\s*)(.+?)(\s*#.*)?$")


def mutated(rng: random.Random, text: str) -> bytes:
    """One to four edits of lines, and now and then of bytes."""
    lines = text.split("\n")
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        kind = rng.randrange(9)
        match = LINE.match(lines[at])
        if kind < 4 and match:
            lines[at] = f"{match[1]}{match[2]}{match[3]}{rng.choice(VALUES)}"
        elif kind == 4:
            lines.insert(at, f"{rng.choice(KEYS)} = {rng.choice(VALUES)}")
        elif kind == 5:
            lines.insert(at, rng.choice(TABLES))
        elif kind == 6:
            del lines[at : at + rng.choice((1, 1, 3))]
            lines = lines or [""]
        elif kind == 7:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif match:
            lines[at] = f"{match[1]}{rng.choice(KEYS)}{match[3]}{match[4]}"
    data = "\n".join(lines).encode()
    return altered(rng, data, 2) if rng.random() < 0.3 else data


def outcome(path: Path, environ: dict[str, str]) -> str:
    """Return what became of it: built, refused, or the fault that this test is after."""
    try:
        build(path, environ=environ)
    except ConfigError as error:
        if not error.problems:
            return "ConfigError without a problem"
        if any(not p.origin or not p.message for p in error.problems):
            return f"a problem without its place or its words: {error}"
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "built"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(asset("tiers"), tmp_path / "tiers")
    return tmp_path / "openclaw.toml"


def shipped() -> str:
    return asset("openclaw.toml").read_text().replace("port = 9090", "port = 0")


@pytest.mark.timeout(3_600)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("count", counts(120, 8_000))
def test_any_file_is_built_or_refused_with_its_place(count: int, place: Path, record_property: Recorder) -> None:
    rng = random.Random(f"{SEED}/toml")
    outcomes: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    good = shipped()
    tier = place.parent / "tiers" / "teams.toml"
    good_tier = tier.read_text()
    for _ in range(count):
        in_tier = rng.random() < 0.35
        data, kept = mutated(rng, good_tier if in_tier else good), good_tier if in_tier else good
        place.write_bytes(good.encode() if in_tier else data)
        tier.write_bytes(data if in_tier else good_tier.encode())
        found = outcome(place, {})
        outcomes[found if found in ("built", "refused") else "fault"] += 1
        if found not in ("built", "refused"):
            wrong.setdefault(found, _difference(kept, data))
    say(f"seed {SEED}: {count} files, {dict(outcomes)}")
    record_property("files", count)
    record_property("faults", len(wrong))
    assert not wrong, f"seed {SEED}: {len(wrong)} kinds\n" + "\n".join(f"{k}\n{v}" for k, v in list(wrong.items())[:10])
    assert outcomes["built"] and outcomes["refused"] > count / 2


@pytest.mark.timeout(3_600)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("count", counts(60, 2_000))
def test_any_environment_is_built_or_refused_with_its_place(count: int, place: Path, record_property: Recorder) -> None:
    rng = random.Random(f"{SEED}/environment")
    good = shipped()
    place.write_text(good)
    paths = list(_paths(tomllib.loads(good)))
    outcomes: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for _ in range(count):
        environ = {}
        for _ in range(rng.choice((1, 1, 2, 4))):
            path = list(rng.choice(paths))
            if rng.random() < 0.4:
                path[rng.randrange(len(path))] = rng.choice(KEYS).strip('"').upper()
            if rng.random() < 0.15:
                path.append(rng.choice(("X", "", "0", "URL")))
            raw = rng.choice(VALUES)
            name = "OPENCLAW_" + rng.choice(("__", "__", "__", "_", "___")).join(path).upper()
            environ[name] = raw.strip("\"'") if rng.random() < 0.6 else raw
        found = outcome(place, environ)
        outcomes[found if found in ("built", "refused") else "fault"] += 1
        if found not in ("built", "refused"):
            wrong.setdefault(found, str(environ))
    say(f"seed {SEED}: {count} environments, {dict(outcomes)}")
    record_property("environments", count)
    record_property("faults", len(wrong))
    assert not wrong, f"seed {SEED}: {len(wrong)} kinds\n" + "\n".join(f"{k}\n{v}" for k, v in list(wrong.items())[:10])
    assert outcomes["built"] and outcomes["refused"]


def _paths(data: dict[str, Any], above: tuple[str, ...] = ()) -> Any:
    for key, value in data.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _paths(value, (*above, key))


def _difference(good: str, data: bytes) -> str:
    lines = set(good.split("\n"))
    return "\n".join(f"    {line}" for line in data.decode("utf-8", "replace").split("\n") if line not in lines)[:800]
