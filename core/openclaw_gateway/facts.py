"""The shared vocabulary of the pipeline: facts that more than one plugin speaks of, and who a caller is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from openclaw_gateway.exchange import Fact

if TYPE_CHECKING:
    from openclaw_gateway.tiers import Tier


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who a credential proves. `expires_at` is in Unix seconds; `tier` is the name that the credential states."""

    organization: str
    user: str
    tier: str
    scopes: frozenset[str] = frozenset()
    method: str
    credential: str
    expires_at: float | None = None


REQUEST_ID: Fact[str] = Fact("request_id")
TRACE_ID: Fact[str] = Fact("trace_id")
PRINCIPAL: Fact[Principal] = Fact("principal")
TIER: Fact[Tier] = Fact("tier")
#: stated by the handler that found it, for logs and traces
SESSION_ID: Fact[str] = Fact("session_id")
