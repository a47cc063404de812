"""What authors of plugins get wrong is told to operators as a finding with its place, never as a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Response, get
from small import CONFIG, TIERS, Api, Capped, Named

from openclaw_gateway.api import Counters, PluginConfig, declared, hookimpl
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

pytestmark = pytest.mark.usefixtures("small")

SIZED = CONFIG.replace("[plugins.named]", "[plugins.named]\nsize = 3")


@get("/open", **declared(access="public", summary="a second one"))
async def second() -> Response[bytes]:
    return Response(b"")


class NoStruct:
    size: int = 1


class OpenStruct(msgspec.Struct, frozen=True):
    """As a `Config` should be, but for a key that it does not know."""

    size: int = 1
    limit: int = 1


class Unusable(PluginConfig, frozen=True):
    size: NoStruct | None = None


def asking(self: Any, config: Any, host: Any) -> None:
    host.get("nowhere", Counters)


@pytest.mark.parametrize(
    ("plugin", "name", "value", "told"),
    [
        (
            Named,
            "on_requst",
            hookimpl(lambda self, x: None),
            "plugins.named: it has the hook 'on_requst', and there is none; expected one of: applies, ",
        ),
        (Named, "on_requst", hookimpl(lambda self, x: None), 'did you mean "on_request"?'),
        (Api, "routes", hookimpl(lambda self: None), "plugins.api: its hook 'routes' failed: TypeError: 'NoneType' "),
        (Api, "routes", hookimpl(lambda self: [second, second]), "plugins: the routes of the plugins do not fit "),
        (Named, "Config", Unusable, "plugins.named: the plugin's Config is not usable: no configuration type: "),
        (
            Named,
            "Config",
            OpenStruct,
            'plugins.named: the Config of "named" is no PluginConfig: what is misspelt in it',
        ),
        (
            Capped,
            "Limits",
            OpenStruct,
            "would be passed over; expected a subclass of openclaw_gateway.api.PluginConfig",
        ),
        (Named, "requires", ("principal",), "requires or provides what is no fact: 'principal'; expected a Fact"),
        (Named, "__init__", asking, "plugins.named: it asks for the plugin 'nowhere', which the configuration does "),
    ],
)
def test_it_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: type, name: str, value: Any, told: str
) -> None:
    monkeypatch.setattr(plugin, name, value, raising=False)
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=SIZED, tiers=TIERS))
    (problem,) = caught.value.problems
    assert told in str(problem)
