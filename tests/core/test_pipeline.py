"""The order of the pipeline: every step finds what it needs, and what is wrong is told with its place."""

from __future__ import annotations

from types import SimpleNamespace

import pluggy
import pytest
from litestar import asgi

from openclaw_gateway import hooks
from openclaw_gateway.api import Fact, Meter, Route, hookimpl
from openclaw_gateway.config.document import StepSettings
from openclaw_gateway.meters import BUILT_IN
from openclaw_gateway.pipeline import (
    CompiledRoute,
    Step,
    compile_routes,
    implementations,
    known_meters,
    misfits,
    misordered,
)
from openclaw_gateway.routes import Bound

WHO: Fact[str] = Fact("who")
WHAT: Fact[str] = Fact("what")


def step(*, provides: tuple[Fact[str], ...] = (), requires: tuple[Fact[str], ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(provides=provides, requires=requires)


def told(*steps: tuple[str, object], given: tuple[Fact[str], ...] = ()) -> list[tuple[object, str, str | None]]:
    return [(found.keys, found.message, found.expected) for found in misordered(steps, given=given)]


def test_steps_in_order_and_facts_of_the_host_are_no_finding() -> None:
    steps = (("auth", step(provides=(WHO,))), ("plain", object()), ("limits", step(requires=(WHO, WHAT))))
    assert told(*steps, given=(WHAT,)) == []


def test_a_step_above_the_one_it_needs_names_both_and_the_right_order() -> None:
    assert told(("limits", step(requires=(WHO,))), ("cors", step()), ("auth", step(provides=(WHO,)))) == [
        (
            ("gateway", "pipeline", 0),
            "step 'limits' requires 'who', which 'auth' provides only at place 3",
            "'auth' before 'limits'",
        )
    ]


def test_a_step_does_not_serve_itself_and_nobody_may_serve_it() -> None:
    assert [message for _, message, _ in told(("odd", step(provides=(WHO,), requires=(WHO, WHAT))))] == [
        "step 'odd' requires 'who', which 'odd' provides only at place 1",
        "step 'odd' requires 'what', which no step of the pipeline provides",
    ]


def test_a_fact_has_one_source() -> None:
    assert told(("one", step(provides=(WHO,))), ("two", step(provides=(WHO, WHAT))), given=(WHAT,)) == [
        (("gateway", "pipeline", 1), "step 'two' provides 'who', which 'one' provides already", None),
        (("gateway", "pipeline", 1), "step 'two' provides 'what', which 'the host' provides already", None),
    ]


def test_a_hook_that_is_called_and_not_awaited_must_be_a_plain_function() -> None:
    async def waits() -> None: ...

    def plain() -> None: ...

    def problems(**found: object) -> list[tuple[object, str]]:
        return [(one.keys, one.message) for one in misfits("mine", found)]  # type: ignore[arg-type]

    assert problems(on_response=plain, on_request=waits, applies=plain) == []
    for name in ("on_response", "applies", "charges"):
        assert problems(**{name: waits}) == [(("plugins", "mine"), f"its hook {name} is a coroutine function")]


def test_a_handler_that_declares_nothing_is_a_gap_and_is_not_served() -> None:
    compiled, (proof, unmatched) = compile_routes(
        [Bound(SimpleNamespace(handler_name="mine.forgotten"), "/forgotten", ("GET",), None)],
        (),
        {},
        unmetered=(),
        open_access=False,
    )
    assert [one.route.path for one in compiled] == [unmatched.route.path]
    assert (proof.route.path, proof.route.methods) == ("/forgotten", ("GET",))
    assert proof.gaps == ("its handler mine.forgotten declares no needs; expected **declared(access=...)",)
    assert unmatched.gaps == ()


def test_only_a_path_without_a_parameter_passes_by_the_router() -> None:
    @asgi("/x", copy_scope=True)
    async def handler(scope: object, receive: object, send: object) -> None: ...

    for path, direct in (("/x", True), ("/x/{id}", False)):
        one = CompiledRoute(Route(access="public", path=path), handler, ())
        assert (one.direct is not None) is direct
    assert CompiledRoute(Route(access="public", path="/x"), object(), ()).direct is None


@pytest.mark.parametrize("on_request", [True, False], ids=["acts", "charges"])
def test_a_route_says_which_of_its_steps_lack_a_fact(on_request: bool) -> None:
    """A step that only looks on needs nothing; one that charges needs what it does where something is metered."""
    acts = {"on_request" if on_request else "charges": lambda *_: []}
    steps = [
        Step(0, "limits", step(requires=(WHO,)), acts, StepSettings()),
        Step(1, "looks", step(requires=(WHAT,)), {"on_complete": lambda *_: None}, StepSettings()),
    ]

    def gaps(*meters: Meter) -> tuple[str, ...]:
        route = Route(access="public", path="/x", methods=("GET",), meters=meters)
        bound = Bound(object(), "/x", ("GET",), route)
        _, (proof, _) = compile_routes([bound], steps, {}, unmetered=(), open_access=True)
        return proof.gaps

    lacks = ("step 'limits' requires 'who', which no step of the pipeline provides",)
    assert gaps(Meter("a", "one of mine")) == lacks
    assert gaps() == (lacks if on_request else ())


async def test_an_implementation_is_given_the_arguments_that_it_has() -> None:
    class Short:
        @hookimpl
        async def on_request(self, x: str) -> str:
            return f"waited for {x}"

        @hookimpl
        def on_response(self, head: str) -> str:
            return f"saw {head}"

        @hookimpl
        def on_complete(self, outcome: str, x: str) -> str:
            return f"{x} ended {outcome}"

    manager = pluggy.PluginManager("openclaw")
    manager.add_hookspecs(hooks)
    plugin = Short()
    manager.register(plugin, "mine")
    found = implementations(manager, plugin)
    assert await found["on_request"]("x") == "waited for x"
    assert found["on_response"]("x", "head") == "saw head"
    assert found["on_complete"]("x", "well") == "x ended well"
    assert misfits("mine", found) == []


def test_a_meter_that_only_a_route_knows_is_known() -> None:
    mine = [Meter(name, "one of mine") for name in ("a", "b", "c")]
    route = Route(access="authenticated", meters=(mine[0],), message_meters=(mine[1],), charges_later=(mine[2],))
    assert known_meters([route]) == {**BUILT_IN, **{meter.name: meter for meter in mine}}
