"""The gateway: Litestar, plugins and pipelines assembled from one configuration. A value, not a global."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from prometheus_client import CollectorRegistry

from openclaw_gateway import __version__, hooks
from openclaw_gateway.admission import Admission
from openclaw_gateway.answers import HookFailed, asked, awaited, entered, gathered, misplaced, named_alike, raised
from openclaw_gateway.carried import Carried
from openclaw_gateway.clock import Clock, SystemClock
from openclaw_gateway.config.document import StepSettings
from openclaw_gateway.config.layers import Layers, TomlFile
from openclaw_gateway.config.problems import Problem
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.gaps import misset, refused_routes, unknown_hooks, unknown_meters
from openclaw_gateway.hooks import HealthCheck
from openclaw_gateway.host import Host
from openclaw_gateway.loader import Loaded, load
from openclaw_gateway.pipeline import (
    Proof,
    Step,
    compile_routes,
    implementations,
    known_meters,
    misfits,
    plans_by_meter,
    stage_seconds,
)
from openclaw_gateway.routes import Route, application, bound_routes
from openclaw_gateway.runner import Runner
from openclaw_gateway.serving import listeners
from openclaw_gateway.serving.addresses import Peers, networks_of
from openclaw_gateway.stand_in import stand_in_of
from openclaw_gateway.structs import Finding
from openclaw_gateway.tiers import idle_limits

if TYPE_CHECKING:
    from openclaw_gateway.serving.workers import Workers

T = TypeVar("T")

logger = logging.getLogger("openclaw.gateway")


class Gateway:
    """One gateway. Building it opens nothing; `running()` opens every plugin and closes it again.

    Raises ConfigError with every problem of the configuration.
    """

    def __init__(
        self, layers: Layers, *, clock: Clock | None = None, generation: int = 1, workers: Workers | None = None
    ) -> None:
        loaded, problems = load(layers)
        if loaded is None:
            raise ConfigError(problems)
        self.layers = layers
        self.document = loaded.document
        self.definitions = loaded.definitions
        self.tiers = loaded.tiers
        self.tier_files = loaded.tier_files
        self.config_dir = layers.file.path.parent
        self.generation = generation
        self.workers = workers
        self.version = __version__
        self.started_at = time.time()
        #: whether a stop was asked for: readiness says no
        self.draining = False
        #: where clients and operators reach us; set by the server once it listens
        self.url = f"http://{self.document.gateway.host}:{self.document.gateway.port}"
        self.operations_url: str | None = None
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.registry = CollectorRegistry()
        self._metrics: dict[str, tuple[Any, str | None]] = {}
        self.admission = Admission(self.clock)
        self.instances: dict[str, Any] = {}
        self._hooks = pluggy.PluginManager(hooks.PROJECT)
        self._hooks.add_hookspecs(hooks)
        self._build(loaded)
        self._implementations = {id: implementations(self._hooks, p) for id, p in self.instances.items()}
        self._refuse([f for id, found in self._implementations.items() for f in misfits(id, found)])
        self.steps = self._steps()
        self._refuse(misplaced(self.instances))
        self.app = application([route for _, route in self._each("routes")])
        #: what its runners carry
        self.carried = Carried()
        #: one runner for the public listener, one for that of operations; without the latter they are the same
        self.routes, self.proofs, self.runner, self.operations = self._compile()
        checks = self._each("health")
        self._refuse(named_alike(checks))
        self.health_checks: list[HealthCheck] = [check for _, check in checks]

    @classmethod
    def from_file(
        cls, path: Path, *, environ: Mapping[str, str] | None = None, clock: Clock | None = None, generation: int = 1
    ) -> Gateway:
        """Build a gateway from a file and the environment."""
        return cls(Layers(TomlFile(path, path.name), environ), clock=clock, generation=generation)

    def begin_drain(self) -> None:
        """Turn readiness. New work is still taken until `refuse_new_work`."""
        self.draining = True

    def refuse_new_work(self) -> None:
        """Answer new requests with 503 from now on; running ones go on."""
        self.draining = self.runner.draining = True

    async def drain(self, within: float) -> None:
        """Let every plugin end what outlives a request; what takes longer than `within` seconds is cancelled."""
        found = {id: hooks["draining"] for id, hooks in self._implementations.items() if "draining" in hooks}
        if not found or within <= 0:
            return
        tasks = {asyncio.ensure_future(awaited("draining", draining, within)): id for id, draining in found.items()}
        done, late = await asyncio.wait(tasks, timeout=within)
        for task in late:
            logger.warning("plugin %s was not done in time", tasks[task])
            task.cancel()
        for task in done:
            if (error := task.exception()) is not None:
                logger.error("plugin %s failed to drain", tasks[task], exc_info=error)

    def inherit(self, previous: Gateway) -> None:
        """Let every plugin take over what its predecessor of the same id keeps in memory."""
        for id, found in self._implementations.items():
            before = previous.instances.get(id)
            if "inherit" in found and type(before) is type(self.instances[id]):
                try:
                    asked(id, "inherit", found["inherit"], before)
                except HookFailed as error:
                    self._refuse([error.finding])

    def plugin(self, id: str) -> Any:
        """Return the plugin instance of this id."""
        return self.instances[id]

    def satisfying(self, kind: type[T]) -> T | None:
        """Return the first plugin that is of this class or satisfies this Protocol."""
        return next((p for p in self.instances.values() if isinstance(p, kind)), None)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Enter every plugin's lifespan, in order of construction; leave in reverse.

        Raises StartFailed naming the plugin that could not be opened.
        """
        async with AsyncExitStack() as stack:
            for id in self.instances:
                await self._open(stack, id)
            yield

    @asynccontextmanager
    async def opened(self, id: str) -> AsyncIterator[Any]:
        """Enter the lifespans of one plugin and of those that it names, for a command that does not serve."""
        references = {d.id: d.references for d in self.definitions}
        wanted: dict[str, None] = {}

        def want(id: str) -> None:
            for other in references[id]:
                want(other)
            wanted[id] = None

        want(id)
        async with AsyncExitStack() as stack:
            for each in wanted:
                await self._open(stack, each)
            yield self.instances[id]

    def notices(self) -> list[str]:
        """Lines for the operator, once everything is open."""
        lines, findings = gathered(self._implementations, "notices")
        for finding in findings:
            logger.error("%s", Problem.of(finding, self.layers.origin))
        return [line for _, line in lines]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.runner(scope, receive, send)

    # --- assembly -------------------------------------------------------------------------------

    def _build(self, loaded: Loaded) -> None:
        findings: list[Finding] = []
        problems: list[Problem] = []
        for definition in loaded.definitions:
            host = Host(
                definition.id,
                document=loaded.document,
                config_dir=self.config_dir,
                tiers=loaded.tiers,
                instances=self.instances,
                registry=self.registry,
                clock=self.clock,
                metrics=self._metrics,
                workers=self.workers,
            )
            host.gateway = self
            given = (host,) if definition.config is None else (definition.config, host)
            try:
                instance = definition.cls(*given)
                self._hooks.register(instance, name=definition.id)
            except ConfigError as error:
                problems += error.problems
            except (ValueError, pluggy.PluginValidationError) as error:
                findings.append(misset(definition.id, definition.config, self.layers.tree, str(error)))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is its author's mistake, not ours
                # A KeyError after other findings names a plugin that could not be built: that is reported.
                if not isinstance(error, KeyError) or not (findings or problems):
                    findings.append(raised(definition.id, "its constructor", error))
            else:
                self.instances[definition.id] = instance
                findings += unknown_hooks(definition.id, instance, self._hooks)
        used = {d.id: (d.use, self.instances.get(d.id)) for d in loaded.definitions}
        findings += listeners.findings(loaded.document.gateway, self.config_dir, used)
        self._refuse(findings, problems)

    def _steps(self) -> list[Step]:
        settings = self.document.steps
        return [
            Step(i, id, self.instances[id], self._implementations[id], settings.get(id, StepSettings()))
            for i, id in enumerate(self.document.gateway.pipeline)
        ]

    def _compile(self) -> tuple[tuple[Route, ...], tuple[Proof, ...], Runner, Runner]:
        settings = self.document.gateway
        stand_in, findings = stand_in_of(settings, self.steps, self.tiers)
        networks, misread = networks_of(settings.trusted_proxies)
        findings += [
            Finding(("gateway", "trusted_proxies", i), "not a network", expected='CIDR such as "10.0.0.0/8"')
            for i in misread
        ]
        bound = bound_routes(self.app, apart=settings.operations is not None)
        try:
            compiled, proofs = compile_routes(
                bound, self.steps, self.tiers, unmetered=settings.unmetered, open_access=stand_in is not None
            )
            meters = known_meters(c.route for c in compiled)
            self.admission.by_meter, self.admission.whole = plans_by_meter(self.steps, self.tiers, meters)
        except HookFailed as error:
            self._refuse([*findings, error.finding])
            raise
        findings += (*refused_routes(proofs), *unknown_meters(settings.unmetered, meters))
        owners = [step.id for step in self.steps if "charges" in step.implementations]
        idle = idle_limits(self.tiers, owners, self.admission.whole, [c.route for c in compiled])
        self._refuse(findings, [Problem.of(finding, partial(self.tier_files.origin, tier)) for tier, finding in idle])
        *served, unmatched = compiled

        def runner(listener: str) -> Runner:
            return Runner(
                self.app,
                {(id(c.handler), c.route.path): c for c in served if c.route.listener == listener},
                unmatched,
                self.admission,
                Peers(networks),
                self.clock,
                self.carried,
                stand_in=stand_in,
                stages=stages,
                sampling=settings.stage_sampling,
                server_timing=settings.server_timing,
            )

        stages = stage_seconds(self.registry)
        public = runner("public")
        operations = public if settings.operations is None else runner("operations")
        return tuple(c.route for c in served), tuple(proofs), public, operations

    def _each(self, hook: str) -> list[tuple[str, Any]]:
        answers, findings = gathered(self._implementations, hook)
        self._refuse(findings)
        return answers

    async def _open(self, stack: AsyncExitStack, id: str) -> None:
        lifespan = self._implementations[id].get("lifespan")
        if lifespan is None:
            return
        try:
            await stack.enter_async_context(entered(lifespan))
        except StartFailed:
            raise
        except Exception as error:
            raise StartFailed(f"plugin {id!r} could not be opened: {type(error).__name__}: {error}") from error

    def _refuse(self, findings: Iterable[Finding], problems: Iterable[Problem] = ()) -> None:
        found = [*problems, *(Problem.of(finding, self.layers.origin) for finding in findings)]
        if found:
            raise ConfigError(found)
