"""What the tests of the session store share: a store with what it stands on, as a gateway opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Host, NewMessage, Principal, Secret, SystemClock
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_plugins.accounts.sql import SqlAccounts
from openclaw_plugins.database.pool import SqlDatabase
from openclaw_plugins.sessions.sql import SqlSessions


class Store:
    """A session store with what it stands on."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Any] = {}
        self._instances: dict[str, Any] = {}
        self._folder = folder
        if "url" in config:
            config["url"] = Secret(config["url"])
        self.database = SqlDatabase(SqlDatabase.Config(auto_upgrade=True, **config), self._host("database"))
        self._instances["database"] = self.database
        self.accounts = SqlAccounts(SqlAccounts.Config(), self._host("accounts"))
        self._instances["accounts"] = self.accounts
        self.sessions = SqlSessions(SqlSessions.Config(), self._host("sessions"))

    def transactions(self) -> float:
        labels = {"operation": "insert", "table": "openclaw_messages"}
        return self.registry.get_sample_value("database_query_duration_seconds_count", labels) or 0

    async def session(self, organization: str = "acme") -> str:
        who = Principal(organization=organization, user="ada", tier="teams", method="api_key", credential="k")
        made = await self.sessions.create(who, tier="teams", metadata={}, ttl=None, holds=())
        return made.session_id

    async def say(self, id: str, content: Any, organization: str = "acme", holds: Any = ()) -> None:
        await self.sessions.append(organization, id, [NewMessage(role="user", content=content)], holds=holds)

    def _host(self, id: str) -> Host:
        return Host(
            id,
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=self._folder,
            tiers={},
            instances=self._instances,
            registry=self.registry,
            metrics=self._metrics,
            clock=SystemClock(),
        )
