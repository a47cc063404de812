"""What authors of plugins get wrong is told to operators as a finding with its place, never as a traceback."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from litestar import Response, get
from small import CONFIG, TIERS, Api, Capped, Known, Named, Offered

from openclaw_gateway.api import PRINCIPAL, Charge, Counters, HealthCheck, Limit, PluginConfig, declared, hookimpl
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.health.probe import Probe

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


async def probe(self: Any = None) -> dict[str, Any]:
    return {}


def failing(self: Any) -> Any:
    return {}["nobody"]


@dataclasses.dataclass
class DataClass:
    size: int = 1


class Unresolved(PluginConfig, frozen=True):
    size: Nowhere = 1  # type: ignore[name-defined]  # noqa: F821


class Checking(PluginConfig, frozen=True):
    size: int = 1

    def __post_init__(self) -> None:
        failing(self)


def lost(self: Any, config: Any, host: Any) -> None:
    failing(self)


def leaving(self: Any, config: Any, host: Any) -> None:
    sys.exit(3)


def speechless(self: Any, config: Any, host: Any) -> None:
    raise ValueError


def misspelt(self: Any) -> Any:
    return [get("/mine", **declared(access="authentcated"))]  # type: ignore[arg-type]


def metered(self: Any) -> Any:
    return [get("/mine", **declared(access="authenticated", meters=("requests",)))]  # type: ignore[arg-type]


FEW: Any = Limit(name="capped.requests", meter="requests", kind="rate", limit=3)


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
        (
            Api,
            "routes",
            hookimpl(lambda self: None),
            "plugins.api: its hook 'routes' returned what it must not; found nothing (None); expected a list of Litest",
        ),
        (
            Api,
            "routes",
            hookimpl(lambda self: ["/a"]),
            "its hook 'routes' returned what it must not; found a str in it",
        ),
        (Api, "routes", hookimpl(lambda self: [print]), "plugins: the routes of the plugins do not fit together: "),
        (Capped, "charges", hookimpl(lambda self, tier: None), "plugins.capped: its hook 'charges' returned what it "),
        (Capped, "charges", hookimpl(lambda self, tier: [7]), "found an int in it; expected a list of Charge, each "),
        (
            Capped,
            "charges",
            hookimpl(lambda self, tier: [Charge(FEW, None)]),
            "found a Charge in it; expected a list of ",
        ),
        (
            Capped,
            "charges",
            hookimpl(failing),
            "plugins.capped: its hook 'charges' failed: KeyError: 'nobody' (test_auth",
        ),
        (
            Named,
            "applies",
            hookimpl(failing),
            "plugins.named: its hook 'applies' failed: KeyError: 'nobody' (test_auth",
        ),
        (
            Api,
            "health",
            hookimpl(lambda self: "fine"),
            "plugins.api: its hook 'health' returned what it must not; found ",
        ),
        (
            Api,
            "health",
            hookimpl(lambda self: {"db": "fine"}),
            "found a dict; expected a list of HealthCheck, each with ",
        ),
        (
            Api,
            "health",
            hookimpl(lambda self: [HealthCheck("db", None)]),
            "found a HealthCheck in it; expected a list ",
        ),
        (
            Api,
            "health",
            hookimpl(lambda self: [HealthCheck("db", probe, "live")]),
            "found a HealthCheck in it; expected ",
        ),
        (
            Api,
            "health",
            hookimpl(lambda self: [HealthCheck("db", probe), HealthCheck("db", probe)]),
            "plugins.api: its hook 'health' gives two checks one name; found \"db\"; expected a name of its own for ",
        ),
        (
            Api,
            "migrations",
            hookimpl(lambda self: "revisions"),
            "plugins.api: its hook 'migrations' returned what it must not; found a str; expected the Path of a folder",
        ),
        (
            Api,
            "migrations",
            hookimpl(lambda self: Path("/nowhere/revisions")),
            "'migrations' returned what it must not; found /nowhere/revisions, which is no folder; expected the Path ",
        ),
        (
            Api,
            "migrations",
            hookimpl(failing),
            "plugins.api: its hook 'migrations' failed: KeyError: 'nobody' (test_auth",
        ),
        (
            Api,
            "health",
            hookimpl(probe),
            "plugins.api: its hook health is a coroutine function; expected a plain function",
        ),
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
        (
            Named,
            "Config",
            DataClass,
            'plugins.named: the Config of "named" is no PluginConfig: what is misspelt in it',
        ),
        (
            Named,
            "Config",
            Unresolved,
            "plugins.named: the Config of \"named\" is not usable: NameError: name 'Nowhere' is not defined",
        ),
        (
            Named,
            "Config",
            Checking,
            'plugins.named: the Config of "named" is not usable: KeyError: ',
        ),
        (
            Named,
            "requires",
            None,
            'plugins.named: the requires of "named" is no tuple: None; expected a tuple of Facts, (PRINCIPAL,) say',
        ),
        (Named, "provides", PRINCIPAL, "the provides of \"named\" is no tuple: Fact('principal'); expected a tuple of"),
        (Named, "__init__", lost, "plugins.named: its constructor failed: KeyError: 'nobody' (test_auth"),
        (Named, "__init__", leaving, "plugins.named: its constructor failed: SystemExit: 3 (test_auth"),
        (Named, "__init__", speechless, "plugins.named: its constructor failed: a ValueError without a text"),
        (
            Api,
            "routes",
            hookimpl(misspelt),
            "plugins.api: its hook 'routes' failed: ValueError: access of a route: found ",
        ),
        (Api, "routes", hookimpl(metered), "declaration of a route: Expected `object`, got `str` - at `$.meters[0]` ("),
        (Api, "routes", hookimpl(lambda self: [second, second]), " and http method GET (declared in "),
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


def test_two_plugins_whose_checks_have_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for plugin in (Named, Api):
        monkeypatch.setattr(plugin, "health", hookimpl(lambda self: [HealthCheck("db", probe)]), raising=False)
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    (problem,) = caught.value.problems
    for text in ("plugins.api: ", "'named'", 'found "db"', "expected a name of its own for each"):
        assert text in str(problem)


def test_limits_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capped, "Limits", Unresolved)
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    assert 'the Limits of "capped" is not usable: NameError: name ' in str(caught.value)


def test_a_module_that_leaves_the_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any) -> Any:
        sys.exit(3)

    monkeypatch.setattr(Offered, "load", load)
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    assert any('"named" cannot be imported from small:Named: SystemExit: 3' in str(p) for p in caught.value.problems)


# --- what is asked later, while the gateway serves --------------------------------------------------


def eventually(value: Any) -> Any:
    async def answer() -> Any:
        return value

    return answer


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (hookimpl(lambda self, x: {"no": "reply"}), "on_request returned a dict; expected None, a Refusal or a Reply"),
        (hookimpl(lambda self, x: probe()), "on_request returned a coroutine; expected None, a Refusal or a Reply"),
    ],
)
async def test_a_step_that_answers_with_what_is_no_answer_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hook: Any, told: str
) -> None:
    monkeypatch.setattr(Named, "on_request", hook)
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    async with serving(gateway) as url, aiohttp.ClientSession(url) as session, session.get("/open") as answer:
        assert answer.status == 503
    (record,) = [r for r in caplog.records if r.name == "openclaw.runner"]
    assert record.getMessage() == "step named failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == told


async def test_a_lifespan_that_is_no_context_manager_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lifespan(self: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(Named, "lifespan", hookimpl(lifespan), raising=False)
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    with pytest.raises(
        StartFailed, match=r"plugin 'named' could not be opened: .*returned an async_generator; expected "
    ):
        async with gateway.running():
            pass


async def test_a_drain_that_cannot_be_waited_for_keeps_nobody_from_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drained: list[str] = []

    async def ending() -> None:
        drained.append("known")

    monkeypatch.setattr(Named, "draining", hookimpl(lambda self, within: None), raising=False)
    monkeypatch.setattr(Known, "draining", hookimpl(lambda self, within: ending()), raising=False)
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    await gateway.drain(1.0)
    assert drained == ["known"]
    assert "plugin named failed to drain" in caplog.text
    assert "draining returned nothing (None); expected an awaitable" in caplog.text


async def test_a_notice_that_is_none_is_told_and_the_others_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Named, "notices", hookimpl(lambda self: "one text"), raising=False)
    monkeypatch.setattr(Known, "notices", hookimpl(lambda self: ["mind the gap"]), raising=False)
    gateway = build(configuration(tmp_path, toml=CONFIG, tiers=TIERS))
    assert gateway.notices() == ["mind the gap"]
    assert "plugins.named: its hook 'notices' returned what it must not; found a str; expected a list of" in caplog.text


def test_a_plugin_that_cannot_inherit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = configuration(tmp_path, toml=CONFIG, tiers=TIERS)
    before = build(place)
    monkeypatch.setattr(Named, "inherit", hookimpl(lambda self, previous: previous.nowhere), raising=False)
    with pytest.raises(ConfigError, match=r"plugins\.named: its hook 'inherit' failed: AttributeError: .*nowhere"):
        build(place).inherit(before)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("fine", "its probe returned str, and must return an awaitable"),
        (eventually("fine"), "its probe returned str, and must return a mapping of facts"),
        (eventually(None), "its probe returned NoneType, and must return a mapping of facts"),
        (eventually({"socket": object()}), "its probe returned facts that are no JSON"),
    ],
)
async def test_a_check_with_a_wrong_answer_has_failed(answer: Any, told: str, caplog: pytest.LogCaptureFixture) -> None:
    check = HealthCheck("foreign", lambda: answer() if callable(answer) else answer)
    one = Probe(check, timeout=1.0, ttl=1.0, fall=1, rise=1, logger=logging.getLogger("openclaw.health"))
    result = await one.result()
    assert (result.status, result.message) == ("unhealthy", told)
    msgspec.json.encode(result)
    assert [r.getMessage() for r in caplog.records] == [f"the check foreign fails: {told}"]
