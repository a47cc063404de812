"""What plugins find wrong in tables, their own and those that all share, points at the key that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

MODELS = """
[plugins.claw]
use = "providers.openclaw"
url = "https://claw.example:18789/v1"
organization = "acme"

[models."large.one"]
provider = "echo"
"""


@pytest.mark.parametrize(
    ("more", "at", "told"),
    [
        (
            'fallbacks = ["ecko"]',
            "fallbacks",
            "models.large.one.fallbacks: there is no model 'ecko'; did you mean 'echo'?",
        ),
        ('tiers = ["team"]', "tiers", "models.large.one.tiers: no file makes the tier 'team'; did you mean 'teams'?"),
        ('[models.agent]\nprovider = "claw"\nname = "gpt"', "name", "models.agent.name: 'gpt' is no agent; expected "),
        ('[models.gpt]\nprovider = "claw"', "[models.gpt]", "models.gpt.name: 'gpt' is no agent; expected openclaw or"),
        (
            '[plugins.other]\nuse = "auth.api_key"\ncache_ttl = "5s"',
            "cache_ttl",
            "plugins.other.cache_ttl: longer than ",
        ),
        (
            '[plugins.keys]\nuse = "auth.jwt"\nalgorithms = ["RS256"]',
            "[plugins.keys]",
            "plugins.keys.public_key_file: mis",
        ),
        (
            '[skills.w]\nprovider = "http_skills"\nurl = "/w"\ndescription = "w"',
            "url",
            "skills.w.url: expected https://",
        ),
    ],
)
def test_a_problem_stands_at_its_key(tmp_path: Path, more: str, at: str, told: str) -> None:
    text = asset("openclaw.toml").read_text() + MODELS + more + "\n"
    line = max(i for i, found in enumerate(text.splitlines(), 1) if found.startswith(at))
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=text))
    (problem,) = caught.value.problems
    column = 2 if at.startswith("[") else 1
    assert re.match(rf"openclaw\.toml:{line}:{column}: {re.escape(told)}", str(problem))
