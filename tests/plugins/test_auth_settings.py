"""The settings of the family as a file writes them: what msgspec makes of them, and what an operator is told."""

from pathlib import Path

import msgspec
import pytest

from openclaw_gateway.config.units import decoder
from openclaw_gateway.structs import collect
from openclaw_plugins.auth.api_key import ApiKeys
from openclaw_plugins.auth.jwt import JsonWebTokens
from openclaw_plugins.auth.step import Auth
from openclaw_plugins.request_id import RequestId
from openclaw_plugins.security_headers import SecurityHeaders
from openclaw_plugins.tier import TierStep

HOOK = decoder(Path())


@pytest.mark.parametrize(
    ("plugin", "table"),
    [
        (Auth, {"methods": ["api_key", "jwt"]}),
        (ApiKeys, {"pepper": "p" * 32, "cache_ttl": "500ms", "development_key": False}),
        (JsonWebTokens, {}),
        (JsonWebTokens, {"issuer": "i", "audience": "a", "leeway": "5s", "claims": {"organization": "tenant"}}),
        (SecurityHeaders, {"hsts": "always", "hsts_max_age": "7d"}),
        (RequestId, {}),
        (TierStep, {}),
    ],
)
def test_a_written_table_becomes_settings(plugin, table):
    assert collect(table, plugin.Config, dec_hook=HOOK) == []
    config = msgspec.convert(table, plugin.Config, dec_hook=HOOK)
    for name in table:
        assert hasattr(config, name)


@pytest.mark.parametrize(
    ("plugin", "table", "path"),
    [
        (Auth, {}, "methods"),
        (JsonWebTokens, {"algorithms": ["none"]}, "algorithms"),
        (JsonWebTokens, {"algorithms": []}, "algorithms"),
        (JsonWebTokens, {"issuer": ""}, "issuer"),
        (JsonWebTokens, {"claims": {"usr": "x"}}, "claims.usr"),
        (ApiKeys, {"cache_ttl": 1}, "cache_ttl"),
        (RequestId, {"header": "x"}, "header"),
        (SecurityHeaders, {"policy": "a\nb"}, "policy"),
    ],
)
def test_a_wrong_one_is_named(plugin, table, path):
    assert path in [finding.path for finding in collect(table, plugin.Config, dec_hook=HOOK)]


@pytest.mark.parametrize("plugin", [Auth, ApiKeys, JsonWebTokens, SecurityHeaders])
def test_every_setting_is_described(plugin):
    for field in msgspec.structs.fields(plugin.Config):
        described = [
            m for m in getattr(field.type, "__metadata__", ()) if isinstance(m, msgspec.Meta) and m.description
        ]
        assert described, field.name
