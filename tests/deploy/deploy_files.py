"""What the tests of the deployment files share: where these are and how they are read. It judges nothing."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import yaml

from openclaw_gateway.gateway import Gateway
from openclaw_gateway.testing import build

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
CONFIGURATION = DEPLOY / "openclaw.toml"
FOLDER, STATE, UID = "/etc/openclaw-gateway", "/var/lib/openclaw-gateway", 10001
SECRETS = {
    "DATABASE_URL": "postgresql://gateway:secret@127.0.0.1/gateway",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    "KEY_PEPPER": "p" * 48,
    "TOKEN_SECRET": "t" * 48,
}


def production(monkeypatch: Any, tmp_path: Path, **secrets: str) -> Gateway:
    """The gateway of docs/deploy/openclaw.toml; only the two folders are those of this checkout."""
    for name, value in {**SECRETS, **secrets}.items():
        monkeypatch.setenv(name, value)
    environ = {
        "OPENCLAW_GATEWAY__TIERS": str(ROOT / "tiers"),
        "OPENCLAW_GATEWAY__DATA_DIR": str(tmp_path),
        "OPENCLAW_GATEWAY__HOST": "127.0.0.1",
        "OPENCLAW_GATEWAY__PORT": "0",
    }
    return build(CONFIGURATION, environ=environ)


def referenced() -> set[str]:
    """The variables that the configuration takes its secrets from."""
    return set(re.findall(r'^\w+ = "env:(\w+)"', CONFIGURATION.read_text(), re.M))


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions and what follows each, with continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(name, rest.strip()) for name, rest in re.findall(r"^([A-Z]+)\s+(.*)$", text, re.M)]


def argument_list(instruction: str) -> list[str]:
    found: list[str] = json.loads(next(rest for name, rest in reversed(dockerfile()) if name == instruction))
    return found


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def manifests() -> dict[str, dict[str, Any]]:
    """The resources of the base by kind, the rules of Prometheus left out."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    found = {}
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((BASE / name).read_text()):
            if document["kind"] != "PrometheusRule":
                assert document["kind"] not in found
                found[document["kind"]] = document
    return found


def stop_time(gateway: Gateway) -> float:
    """How long a stop takes at most by the configuration."""
    settings = gateway.document.gateway
    return settings.lame_duck + settings.drain_timeout


def script(path: Path) -> Any:
    """Import a file that is no module of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
