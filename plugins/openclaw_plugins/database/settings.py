"""What `[plugins.database]` says."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from openclaw_gateway.api import Duration, PluginConfig, Secret


class Settings(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.database]`"""

    url: Annotated[
        Secret | None,
        Meta(description="postgresql://user:password@host/name or sqlite:///file; by default a file in data_dir."),
    ] = None
    pool_size: Annotated[
        int,
        Meta(
            ge=1,
            le=500,
            description="Connections of this process for requests. On PostgreSQL it may open four more: two for probes "
            "and upkeep, two for statements of the account.",
        ),
    ] = 10
    pool_timeout: Annotated[
        Duration, Meta(description="How long a request may wait for a connection before it gets a 503.")
    ] = Duration(1)
    connect_timeout: Annotated[Duration, Meta(description="To open a connection (PostgreSQL).")] = Duration(3)
    statement_timeout: Annotated[Duration, Meta(description="For one statement (PostgreSQL).")] = Duration(5)
    lock_timeout: Annotated[Duration, Meta(description="For one lock, on either store.")] = Duration(2)
    idle_in_transaction_timeout: Annotated[
        Duration, Meta(description="After which the server ends a silent transaction (PostgreSQL).")
    ] = Duration(10)
    synchronous: Annotated[
        Literal["normal", "full"],
        Meta(
            description="SQLite: normal keeps what was acknowledged when the process is killed, "
            "full also when the machine loses power."
        ),
    ] = "normal"
    auto_upgrade: Annotated[
        bool | None,
        Meta(
            description="Upgrade the schema at start. By default only for the SQLite file in data_dir; "
            "elsewhere `openclaw-gateway db upgrade` does it."
        ),
    ] = None
    application_role: Annotated[
        Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None,
        Meta(
            description="PostgreSQL: the role in which requests run; it should own nothing and not bypass "
            "row security. `db upgrade` grants it what it needs.",
        ),
    ] = None
    retention: Annotated[
        Duration | None,
        Meta(
            description="PostgreSQL: how long messages are kept; a month is dropped when all of it is older. "
            "By default they are kept as long as their session. It needs a user that owns the tables."
        ),
    ] = None
