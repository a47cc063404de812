"""The smallest gateway that operators can look at: no store, no credential, no limit."""

from pathlib import Path
from typing import Any

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build, configuration

_TOML = """
[gateway]
port = 0
pipeline = ["request_id", "access_log", "metrics", "security_headers"]
[plugins.access_log]
file = "gateway.log"
[plugins.metrics]
[plugins.health]
[plugins.openapi]
"""


def small_gateway(directory: Path, edit: dict[str, Any] | None = None) -> Gateway:
    return build(configuration(directory, toml=_TOML, edit=edit, tiers={"free": 'title = "Free"\n'}))
