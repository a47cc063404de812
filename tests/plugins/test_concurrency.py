"""The concurrency plugin: leases of connections go to the fast account, of stored things to the durable one."""

from __future__ import annotations

import msgspec
import pytest
from plugins.limits_kit import Setting

from openclaw_gateway.api import REQUESTS, SESSIONS, WS_CONNECTIONS
from openclaw_plugins.concurrency import Concurrency

TABLES = {"teams": {"sessions": {"limit": 20}, "ws_connections": {"limit": 20, "scope": "user"}}}


@pytest.fixture
def setting() -> Setting:
    return Setting(Concurrency, "concurrency", TABLES)


def test_what_lives_as_long_as_a_connection_is_a_lease_in_the_counters(setting: Setting) -> None:
    (charge,) = setting.charges("teams", REQUESTS, WS_CONNECTIONS)
    assert charge.account is setting.counters
    assert (charge.limit.name, charge.limit.kind, charge.limit.limit, charge.limit.scope) == (
        "concurrency.ws_connections",
        "lease",
        20,
        "user",
    )


def test_what_lives_as_long_as_a_stored_thing_is_a_lease_in_the_durable_account(setting: Setting) -> None:
    (charge,) = setting.charges("teams", REQUESTS, SESSIONS)
    assert charge.account is setting.accounts
    assert (charge.limit.name, charge.limit.kind) == ("concurrency.sessions", "lease")


def test_it_is_asked_where_anything_is_metered(setting: Setting) -> None:
    setting.is_asked_where_anything_is_metered()


@pytest.mark.parametrize(
    "table", [{}, {"limit": -1}, {"limit": 5, "per": "month"}, {"limit": 5, "scope": "planet"}, {"limit": True}]
)
def test_a_wrong_table_is_refused(table: dict) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, Concurrency.Limits)


def test_a_limit_may_allow_nothing() -> None:
    assert msgspec.convert({"limit": 0}, Concurrency.Limits).limit == 0
