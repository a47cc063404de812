#!/usr/bin/env python3
"""Writes the bill of materials of what runs (CycloneDX 1.6), from the lock and the metadata of what is installed.

`python3 .ci/dev.py run python .ci/sbom.py` writes `docs/reference/sbom.cdx.json`; `--why` prints who brings what.
Nothing in it depends on the day or on the machine, so that the same lock gives the same file.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / ".ci" / "requirements.lock"
SBOM = ROOT / "docs" / "reference" / "sbom.cdx.json"
ENTRY = re.compile(r"^([a-z0-9-]+)==(\S+)(.*?)(?: \\)?$")
NAME = re.compile(r"^[A-Za-z0-9._-]+")
OWN = "openclaw-gateway"
#: the licences of what only some machines install, so that all of them write the same
ELSEWHERE = {"async-timeout": "Apache Software License", "colorama": "BSD License"}


def main() -> int:
    if "--why" in sys.argv[1:]:
        for name, bringers in why().items():
            sys.stdout.write(f"{name}: {', '.join(bringers)}\n")
        return 0
    SBOM.write_text(text())
    sys.stdout.write(f"written: {SBOM}\n")
    return 0


def text() -> str:
    """The file as it should be."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def document() -> dict[str, Any]:
    packages = locked()
    edges = {name: requires(name) & packages.keys() for name in packages}
    own = {normal(NAME.match(line)[0]) for line in declared()}  # type: ignore[index]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {"type": "application", "bom-ref": OWN, "name": OWN, "licenses": licence("MIT")},
        },
        "components": [component(name, *found) for name, found in packages.items()],
        "dependencies": [
            {"ref": OWN, "dependsOn": sorted(ref(name, packages) for name in own)},
            *(
                {"ref": ref(name, packages), "dependsOn": sorted(ref(other, packages) for other in edges[name])}
                for name in packages
            ),
        ],
    }


def locked() -> dict[str, tuple[str, str]]:
    """Name to version and marker. A lock allows any file of a release, by its hash; those stay in the lock."""
    entries = (ENTRY.match(line) for line in LOCK.read_text().splitlines())
    return {entry[1]: (entry[2], entry[3].strip(" ;")) for entry in entries if entry}


def component(name: str, version: str, marker: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if said := ELSEWHERE.get(name) or licence_of(name):
        found["licenses"] = licence(said)
    if marker:
        found["properties"] = [{"name": "openclaw:marker", "value": marker}]
    return found


def ref(name: str, packages: dict[str, tuple[str, str]]) -> str:
    return f"pkg:pypi/{name}@{packages[name][0]}"


def requires(name: str) -> set[str]:
    """What a package says that it needs, its extras aside; empty where it is not installed here."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    return {normal(NAME.match(line)[0]) for line in lines if "extra ==" not in line}  # type: ignore[index]


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [str(line) for line in project["dependencies"]]


def why() -> dict[str, list[str]]:
    """Each package with who asks for it; `openclaw-gateway` where we do ourselves."""
    names = {str(one["bom-ref"]): str(one["name"]) for one in document()["components"]} | {OWN: OWN}
    found: dict[str, list[str]] = {name: [] for name in sorted(names.values()) if name != OWN}
    for edge in document()["dependencies"]:
        for other in edge["dependsOn"]:
            found[names[other]].append(names[edge["ref"]])
    return {name: sorted(bringers) or ["an extra of another"] for name, bringers in found.items()}


def licence_of(name: str) -> str:
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = metadata.get_all("Classifier") or []
    said = [one.rsplit(" :: ", 1)[1] for one in classifiers if one.startswith("License ::") and one.count("::") > 1]
    return " / ".join(said) or (metadata.get("License") or "").split("\n")[0][:80]


def licence(said: str) -> list[dict[str, Any]]:
    return [{"expression": said}] if " AND " in said or " OR " in said else [{"license": {"name": said}}]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
