"""A copy of the checkout whose tests run against its own code, so that the checkout itself is never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: what the tests need of the checkout
_COPIED = ("core", "plugins", "migrations", "tiers", "tests", "openclaw.toml", "pyproject.toml")


def copied(tree: Path) -> Path:
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


def environment(tree: Path) -> dict[str, str]:
    """What a process of the copy needs to find the code of the copy, never a compiled form of what it was before."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / "core"), str(tree / "plugins")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
