"""Writes what the manifests for Kubernetes repeat of other files: kustomize reads nothing outside its own folder.

`python docs/deploy/generate.py` writes, with `--check` it fails where a file is out of date. It never changes a source.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BASE = HERE / "kubernetes" / "base"
HEADER = "# Written by docs/deploy/generate.py from {source}; change it there.\n"
NAME = "openclaw-gateway"


def main() -> int:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check = command.parse_args().check
    stale = []
    for path, text in files().items():
        if check and (not path.exists() or path.read_text() != text):
            stale.append(f"{path.relative_to(ROOT)} is out of date")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for problem in stale:
        sys.stderr.write(f"{problem}\n")
    return 1 if stale else 0


def files() -> dict[Path, str]:
    """The generated files and their texts."""
    written = {BASE / "configuration" / "openclaw.toml": (HERE / "openclaw.toml", "docs/deploy/openclaw.toml")}
    for tier in sorted((ROOT / "tiers").glob("*.toml")):
        written[BASE / "configuration" / "tiers" / tier.name] = (tier, f"tiers/{tier.name}")
    found = {path: HEADER.format(source=name) + source.read_text() for path, (source, name) in written.items()}
    for name in ("alerts", "recording-rules"):
        source = ROOT / "monitoring" / f"{name}.yaml"
        rule = yaml.dump(prometheus_rule(name, yaml.safe_load(source.read_text())), sort_keys=False, width=1000)
        found[BASE / f"prometheus-rule-{name}.yaml"] = HEADER.format(source=f"monitoring/{name}.yaml") + rule
    return found


def prometheus_rule(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    """The rules as the operator of Prometheus takes them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"{NAME}-{name}"},
        "spec": {"groups": rules["groups"]},
    }


if __name__ == "__main__":
    sys.exit(main())
