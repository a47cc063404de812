"""Finds the files that travel with the gateway, in a checkout as in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def asset(name: str) -> Path:
    """Return the path of a shipped file or folder: `openclaw.toml`, `tiers`, `migrations`, `monitoring`."""
    package = Path(__file__).parent
    installed = package / "_assets" / name
    return installed if installed.exists() else package.parents[1] / name
