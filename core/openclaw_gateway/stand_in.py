"""`insecure_dev`: whom the gateway takes everybody for where nothing authenticates. Never off a loopback address."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from openclaw_gateway.config.document import GatewaySettings
from openclaw_gateway.facts import PRINCIPAL, Principal
from openclaw_gateway.pipeline import Step
from openclaw_gateway.serving.addresses import loopback
from openclaw_gateway.structs import Finding
from openclaw_gateway.tiers import Tier


def stand_in_of(
    settings: GatewaySettings, steps: Iterable[Step], tiers: Mapping[str, Tier]
) -> tuple[tuple[Principal, Tier] | None, list[Finding]]:
    """Return who stands in, None where a step authenticates or nobody is wanted; and what forbids it."""
    if not settings.insecure_dev or any(PRINCIPAL in step.provides for step in steps):
        return None, []
    findings = []
    if not loopback(settings.host):
        message = f"serving without authentication is for a loopback address, not {settings.host}"
        expected = 'host = "127.0.0.1", or an auth step in the pipeline'
        findings.append(Finding(("gateway", "insecure_dev"), message, expected=expected))
    tier = next(iter(tiers.values()))
    nobody = Principal(organization="dev", user="dev", tier=tier.name, method="none", credential="none")
    return (nobody, tier), findings
