"""Verifies the order that the operator wrote and compiles one flat pipeline a route; it never sorts.

This is where the gateway is proved at boot: every route's needs (access, scopes, meters) must be met by the
pipeline compiled for it, or the start is refused with the route's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import pluggy
from litestar.handlers import ASGIRouteHandler
from prometheus_client import CollectorRegistry, Histogram

from openclaw_gateway import hooks
from openclaw_gateway.answers import asked, listed
from openclaw_gateway.config.document import StepSettings
from openclaw_gateway.exchange import Fact
from openclaw_gateway.facts import PRINCIPAL, TIER
from openclaw_gateway.meters import BUILT_IN, Charge, Meter
from openclaw_gateway.plans import Plan
from openclaw_gateway.routes import UNMATCHED, Bound, Route
from openclaw_gateway.structs import Finding
from openclaw_gateway.tiers import Tier

#: exchange hooks that must be plain functions, since they run between two pieces of a response
_PLAIN = ("on_response", "on_chunk", "on_complete")
EXCHANGE = ("on_request", "on_message", *_PLAIN)


class Call:
    """One hook of one step, ready to be called."""

    __slots__ = ("awaits", "function", "index", "name", "step")

    def __init__(self, step: Step, name: str) -> None:
        self.step = step
        self.name = name
        self.index = step.index
        self.function = step.implementations[name]
        self.awaits = inspect.iscoroutinefunction(self.function)


class Step:
    """One plugin at its place in the pipeline."""

    __slots__ = ("id", "implementations", "index", "plugin", "settings")

    def __init__(
        self,
        index: int,
        id: str,
        plugin: Any,
        implementations: Mapping[str, Callable[..., Any]],
        settings: StepSettings,
    ) -> None:
        self.index = index
        self.id = id
        self.plugin = plugin
        self.implementations = implementations
        self.settings = settings

    @property
    def provides(self) -> tuple[Fact[Any], ...]:
        facts: tuple[Fact[Any], ...] = getattr(self.plugin, "provides", ())
        return facts

    def applies(self, route: Route) -> bool:
        applies = self.implementations.get("applies")
        return applies is None or bool(asked(self.id, "applies", applies, route))

    def reads_facts(self, route: Route) -> bool:
        """Whether what the step requires matters here: it acts on requests, or charges what the route meters."""
        metered = bool(route.meters or route.message_meters)
        acts = "on_request" in self.implementations or "on_message" in self.implementations
        return acts or (metered and "charges" in self.implementations)


class CompiledRoute:
    """All that the runner needs to know of one route."""

    __slots__ = (
        "chunk",
        "complete",
        "depth",
        "direct",
        "handler",
        "message",
        "message_plans",
        "plans",
        "request",
        "response",
        "route",
        "steps",
    )

    def __init__(self, route: Route, handler: Any, steps: Sequence[Step]) -> None:
        self.route = route
        self.handler = handler
        #: the function of an ASGI handler whose path has no parameter: Litestar would only look it up again
        self.direct = handler.fn if isinstance(handler, ASGIRouteHandler) and "{" not in route.path else None
        self.steps = tuple(step for step in steps if step.applies(route))
        self.request = self._calls("on_request", self.steps)
        self.message = self._calls("on_message", self.steps)
        backwards = self.steps[::-1]
        self.response = self._calls("on_response", backwards)
        self.chunk = self._calls("on_chunk", backwards)
        self.complete = self._calls("on_complete", backwards)
        #: how far a request gets when no step refuses
        self.depth = len(steps)
        #: tier name → what admission charges before the handler
        self.plans: dict[str, Plan] = {}
        #: tier name → what admission charges for each WebSocket message
        self.message_plans: dict[str, Plan] = {}

    @staticmethod
    def _calls(name: str, steps: Iterable[Step]) -> tuple[Call, ...]:
        return tuple(Call(step, name) for step in steps if name in step.implementations)


def implementations(manager: pluggy.PluginManager, plugin: Any) -> dict[str, Callable[..., Any]]:
    """Read a plugin's hook implementations once, each as a function of all the arguments of its hook."""
    found: dict[str, Callable[..., Any]] = {}
    for caller in manager.get_hookcallers(plugin) or []:
        for impl in caller.get_hookimpls():
            if impl.plugin is plugin:
                found[caller.name] = _with_all_arguments(impl.function, impl.argnames, _arguments(caller.name))
    return found


def misfits(id: str, found: Mapping[str, Callable[..., Any]]) -> list[Finding]:
    """Find hooks that are coroutine functions where only plain ones can be called, and the other way round."""
    problems = []
    for name, function in found.items():
        if inspect.iscoroutinefunction(function) and (name in _PLAIN or name not in EXCHANGE):
            problems.append(
                Finding(("plugins", id), f"its hook {name} is a coroutine function", expected="a plain function")
            )
    return problems


def misordered(steps: Sequence[tuple[str, Any]], *, given: Iterable[Fact[Any]] = ()) -> list[Finding]:
    """Find steps that need a fact which no earlier step provides; `steps` are ids and plugin classes."""
    problems: list[Finding] = []
    providers = {fact: i for i, (_, plugin) in enumerate(steps) for fact in getattr(plugin, "provides", ())}
    known: dict[Fact[Any], str] = dict.fromkeys(given, "the host")
    for i, (id, plugin) in enumerate(steps):
        for fact in getattr(plugin, "requires", ()):
            if fact in known:
                continue
            later = providers.get(fact)
            if later is None:
                message = f"step {id!r} requires {fact.name!r}, which no step of the pipeline provides"
                problems.append(Finding(("gateway", "pipeline", i), message))
            else:
                message = (
                    f"step {id!r} requires {fact.name!r}, which {steps[later][0]!r} provides only at place {later + 1}"
                )
                problems.append(
                    Finding(("gateway", "pipeline", i), message, expected=f"{steps[later][0]!r} before {id!r}")
                )
        for fact in getattr(plugin, "provides", ()):
            if fact in known:
                message = f"step {id!r} provides {fact.name!r}, which {known[fact]!r} provides already"
                problems.append(Finding(("gateway", "pipeline", i), message))
            known[fact] = id
    return problems


class Proof(msgspec.Struct, frozen=True):
    """What one route needs, and what meets it; `gaps` are the needs that nothing meets."""

    route: Route
    authenticated_by: str | None
    metered_by: Mapping[str, tuple[str, ...]]
    steps: tuple[str, ...]
    gaps: tuple[str, ...]


def compile_routes(
    bound: Iterable[Bound],
    steps: Sequence[Step],
    tiers: Mapping[str, Tier],
    *,
    unmetered: Iterable[str],
    open_access: bool,
) -> tuple[list[CompiledRoute], list[Proof]]:
    """Compile every route and prove that its needs are met; `open_access` stands in for authentication."""
    compiled: list[CompiledRoute] = []
    proofs: list[Proof] = []
    exempt = frozenset(unmetered)
    for entry in (*bound, Bound(None, UNMATCHED.path, (), UNMATCHED)):
        if entry.declaration is None:
            nothing = Route(access="public", path=entry.path, methods=entry.methods)
            name = getattr(entry.handler, "handler_name", str(entry.handler))
            gap = f"its handler {name} declares no needs; expected **declared(access=...)"
            proofs.append(Proof(nothing, None, {}, (), (gap,)))
            continue
        route = entry.route
        one = CompiledRoute(route, entry.handler, steps)
        gaps = []
        authenticated_by = next((step.id for step in one.steps if PRINCIPAL in step.provides), None)
        if open_access and authenticated_by is None:
            authenticated_by = "(insecure_dev)"
        protected = route.access == "authenticated" or route.scopes or route.tiers or route.meters
        if protected and authenticated_by is None:
            gaps.append("it must know its caller, and no step of its pipeline provides 'principal'")
        given = (PRINCIPAL, TIER) if open_access else ()
        bearing = [(s.id, s.plugin) for s in one.steps if s.reads_facts(route)]
        gaps += [f.message for f in misordered(bearing, given=given)]
        metered_by: dict[str, tuple[str, ...]] = {}
        later: dict[str, Plan] = {}  # what handlers charge themselves must be limited too; Admission has its plans
        emitted = ((route.meters, one.plans), (route.message_meters, one.message_plans), (route.charges_later, later))
        for meters, plans in emitted:
            if not meters:
                continue
            for tier in tiers.values():
                plan = plan_of(one.steps, route, meters, tier)
                plans[tier.name] = plan
                for meter in meters:
                    names = tuple(limit.name for limit in plan.limits if limit.meter == meter.name)
                    metered_by[meter.name] = tuple(dict.fromkeys((*metered_by.get(meter.name, ()), *names)))
                    if not names and meter.required and meter.name not in exempt:
                        gaps.append(
                            f"tier {tier.name!r} sets no limit on its meter {meter.name!r} "
                            f"(a limit, or gateway.unmetered = [{meter.name!r}])"
                        )
        if one.plans and not open_access and not any(TIER in s.provides for s in one.steps):
            gaps.append("its meters need the caller's tier, and no step of its pipeline provides 'tier'")
        compiled.append(one)
        proofs.append(Proof(route, authenticated_by, metered_by, tuple(s.id for s in one.steps), tuple(gaps)))
    return compiled, proofs


def plan_of(steps: Iterable[Step], route: Route, meters: tuple[Meter, ...], tier: Tier) -> Plan:
    """Ask every step for its charges on these meters, and keep those that count one of them. Raises HookFailed."""
    asked = msgspec.structs.replace(route, meters=meters)
    names = {meter.name for meter in meters}
    charges: list[Charge] = []
    for step in steps:
        contribute = step.implementations.get("charges")
        if contribute is not None:
            charges += [c for c in listed(step.id, "charges", contribute, asked, tier) if c.limit.meter in names]
    return Plan(charges)


def plans_by_meter(
    steps: Sequence[Step], tiers: Mapping[str, Tier], meters: Mapping[str, Meter]
) -> tuple[dict[str, dict[str, Plan]], dict[str, Plan]]:
    """Return tier → meter → plan, for what handlers meter themselves, and tier → the plan of every limit."""
    any_route = Route(access="authenticated", path="(any)")
    single = {
        tier.name: {name: plan_of(steps, any_route, (meter,), tier) for name, meter in meters.items()}
        for tier in tiers.values()
    }
    whole = {tier.name: plan_of(steps, any_route, tuple(meters.values()), tier) for tier in tiers.values()}
    return single, whole


def known_meters(routes: Iterable[Route]) -> dict[str, Meter]:
    """Return the built-in meters and those that only a route of a plugin knows."""
    meters = dict(BUILT_IN)
    for route in routes:
        meters.update({m.name: m for m in (*route.meters, *route.message_meters, *route.charges_later)})
    return meters


def _arguments(hook: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(hooks, hook)).parameters)


def _with_all_arguments(
    function: Callable[..., Any], accepted: Sequence[str], arguments: tuple[str, ...]
) -> Callable[..., Any]:
    """pluggy lets an implementation leave arguments out; the runner calls by position, so fill them in."""
    if tuple(accepted) == arguments:
        return function
    keep = [arguments.index(name) for name in accepted]
    if inspect.iscoroutinefunction(function):

        async def called(*given: Any) -> Any:
            return await function(*(given[i] for i in keep))

        return called
    return lambda *given: function(*(given[i] for i in keep))


def stage_seconds(registry: CollectorRegistry) -> Histogram:
    """Make the metric of what each step costs."""
    return Histogram(
        "plugin_stage_duration_seconds",
        "Time that one step of the pipeline took, of the requests that are sampled",
        ("plugin", "stage"),
        buckets=(0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0),
        registry=registry,
    )
