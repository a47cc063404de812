"""What a report of a problem should hold, as one zip file: no secret, no key, nothing that a client sent."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from openclaw_gateway import __version__

if TYPE_CHECKING:
    from openclaw_gateway.gateway import Gateway

README = """\
configuration.json  every effective value with its origin; of a secret only where it is read from
findings.json       what `doctor` found
limits.json         the limits of each tier
pipeline.json       the order of the steps, and for each route what meets its needs
versions.json       the gateway, Python, this machine's kind, and every installed distribution
"""


def write_bundle(file: Path, gateway: Gateway | None, findings: Sequence[Any]) -> None:
    """Write the bundle, readable by its owner alone. Raises OSError, where the file is there already too.

    Without a gateway, since its configuration has mistakes, it holds the findings and the versions.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as written, zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", README)
        for name, value in {"findings": findings, "versions": _versions(), **_built(gateway)}.items():
            archive.writestr(f"{name}.json", msgspec.json.format(msgspec.json.encode(value), indent=2))


def _versions() -> Mapping[str, Any]:
    import platform

    return {
        "gateway": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "distributions": dict(sorted((d.name, d.version) for d in distributions())),
    }


def _built(gateway: Gateway | None) -> Mapping[str, Any]:
    from openclaw_gateway.config.effective import values

    if gateway is None:
        return {}
    plans = gateway.admission.whole.items()
    return {
        "configuration": values(gateway),
        "limits": {tier: [msgspec.to_builtins(limit) for limit in plan.limits] for tier, plan in plans},
        "pipeline": {
            "steps": [step.id for step in gateway.steps],
            "routes": [
                {
                    "methods": proof.route.methods,
                    "path": proof.route.path,
                    "access": proof.route.access,
                    "authenticatedBy": proof.authenticated_by,
                    "meteredBy": proof.metered_by,
                    "steps": proof.steps,
                }
                for proof in gateway.proofs
            ],
        },
    }
