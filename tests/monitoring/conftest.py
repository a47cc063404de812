"""A real Prometheus and its tools, from the PATH, a cache, or the distribution's packages unpacked into that cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The generator is a package of the tree and of no distribution.
sys.path.insert(0, str(ROOT))

_PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
}
_PATIENCE = 90


@pytest.fixture(scope="session")
def promtool() -> Path:
    return program("promtool")


@pytest.fixture(scope="session")
def amtool() -> Path:
    return program("amtool")


@pytest.fixture(scope="session")
def prometheus_binary() -> Path:
    return program("prometheus")


def program(name: str) -> Path:
    """Find the program, or skip and say what was tried."""
    if found := shutil.which(name):
        return Path(found)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "openclaw-gateway-tests" / _PACKAGES[name]
    binary = cache / "usr/bin" / name
    if not binary.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            pytest.skip(f"no {name} on the PATH, and no apt-get to fetch the package {_PACKAGES[name]}")
        try:
            _unpack(_PACKAGES[name], cache)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"no {name} on the PATH, and the package {_PACKAGES[name]} cannot be fetched: {error}")
    return binary


def _unpack(package: str, cache: Path) -> None:
    """Download the signed package and unpack it, with nothing installed and no rights needed."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        work = Path(folder)
        if not _downloaded(package, work):
            # Lists of our own: the machine's may be missing, and only root may fetch those.
            lists = work / "lists"
            (lists / "partial").mkdir(parents=True)
            own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work}"]
            subprocess.run(["apt-get", *own, "update"], check=True, capture_output=True, timeout=_PATIENCE)
            if not _downloaded(package, work, *own):
                raise OSError("apt-get download failed")
        (archive,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, work / "unpacked"], check=True, timeout=_PATIENCE)
        # Another process of the same run may have been quicker.
        with suppress(OSError):
            (work / "unpacked").rename(cache)


def _downloaded(package: str, work: Path, *options: str) -> bool:
    command = ["apt-get", *options, "download", package]
    return subprocess.run(command, cwd=work, capture_output=True, timeout=_PATIENCE, check=False).returncode == 0
