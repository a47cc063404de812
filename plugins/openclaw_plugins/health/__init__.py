"""Answers whether the gateway has started, lives, may be sent requests, and is well.

`/health/startup` and `/health/live` touch nothing. No answer waits for a part that does not answer, and none but an
administrator's names a part.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from litestar import HttpMethod, Request, Response, route
from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    Duration,
    Exchange,
    Fact,
    HealthCheck,
    Host,
    PluginConfig,
    Size,
    declared,
    hookimpl,
)
from openclaw_plugins.health.checks import OwnChecks
from openclaw_plugins.health.probe import CheckResult, Probe

__all__ = ["Health"]

_GET_AND_HEAD = [HttpMethod.GET, HttpMethod.HEAD]


class HealthReport(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the gateway is; `checks` for administrators only."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: str
    checks: dict[str, CheckResult] = {}


class Readiness(msgspec.Struct, frozen=True):
    """Whether a balancer should send requests here."""

    status: Literal["ready", "unready", "draining"]


class Liveness(msgspec.Struct, frozen=True):
    """The process serves."""

    status: Literal["alive"]


class Startup(msgspec.Struct, frozen=True):
    """Every plugin is open."""

    status: Literal["started"]


class GatewayInfo(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """What is running; `plugins` for administrators only."""

    name: str
    version: str
    python: str
    config_generation: int
    started_at: str
    plugins: tuple[str, ...] = ()


class Health:
    """Serves the health of every plugin's parts, of the process and of the declared external services."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        timeout: Annotated[Duration, Meta(description="How long one check may take.")] = Duration(2)
        cache: Annotated[Duration, Meta(description="How long the result of a check is believed.")] = Duration(1)
        fall: Annotated[
            int, Meta(ge=1, description="Failures in a row after which a part that must be well turns readiness.")
        ] = 2
        rise: Annotated[int, Meta(ge=1, description="Successes in a row after which it turns back.")] = 2
        min_disk: Annotated[Size, Meta(description="Free space in data_dir below which health is degraded.")] = Size(
            100_000_000
        )
        max_memory: Annotated[
            float, Meta(gt=0, le=1, description="Share of the memory limit above which health is degraded.")
        ] = 0.95
        max_lag: Annotated[Duration, Meta(description="Lag of the event loop above which health is degraded.")] = (
            Duration(0.5)
        )

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._own = OwnChecks(host, min_disk=config.min_disk, max_memory=config.max_memory, max_lag=config.max_lag)
        self._probes: list[Probe] | None = None

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        sampler = asyncio.create_task(self._own.sample_lag())
        try:
            yield
        finally:
            tasks = [sampler, *(p.task for p in self._probes or () if p.task is not None)]
            for task in tasks:
                task.cancel()
            # A check that does not let itself be cancelled must not hold up the stop.
            await asyncio.wait(tasks, timeout=1)
            await self._own.close()

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        return self._own.checks()

    @hookimpl
    def routes(self) -> list[Any]:
        @route(
            "/health/live",
            http_method=_GET_AND_HEAD,
            **declared(access="public", surface="operations", summary="Whether the process serves", answer=Liveness),
        )
        async def live() -> Response[bytes]:
            return _answer(Liveness("alive"))

        @route(
            "/health/startup",
            http_method=_GET_AND_HEAD,
            **declared(
                access="public", surface="operations", summary="Whether every part has been opened", answer=Startup
            ),
        )
        async def startup() -> Response[bytes]:
            # Nothing listens before the last plugin is open: until then there is nobody to answer.
            return _answer(Startup("started"))

        @route(
            "/health/ready",
            http_method=_GET_AND_HEAD,
            **declared(
                access="public",
                surface="operations",
                summary="Whether to send requests here (200) or not (503)",
                answer=Readiness,
            ),
        )
        async def ready() -> Response[bytes]:
            if self._host.gateway.draining:
                return _answer(Readiness("draining"), 503)
            await self._results(gate="ready")
            if all(probe.well for probe in self._probes or () if probe.check.gate == "ready"):
                return _answer(Readiness("ready"))
            return _answer(Readiness("unready"), 503)

        @route(
            "/health",
            http_method=_GET_AND_HEAD,
            **declared(
                access="optional",
                surface="operations",
                summary="How every part is, in detail for the scope `admin`; 503 where the gateway cannot serve",
                answer=HealthReport,
            ),
        )
        async def health(request: Request[Any, Any, Any]) -> Response[bytes]:
            results = await self._results()
            status = self._verdict(results)
            shown = results if _sees_details(request) else {}
            report = HealthReport(status=status, timestamp=_stamp(self._host.clock.now()), checks=shown)
            return _answer(report, 503 if status == "unhealthy" else 200)

        @route(
            "/info",
            http_method=_GET_AND_HEAD,
            **declared(access="optional", surface="operations", summary="What is running", answer=GatewayInfo),
        )
        async def info(request: Request[Any, Any, Any]) -> Response[bytes]:
            gateway = self._host.gateway
            return _answer(
                GatewayInfo(
                    name="openclaw-gateway",
                    version=gateway.version,
                    python=platform.python_version(),
                    config_generation=gateway.generation,
                    started_at=_stamp(gateway.started_at),
                    plugins=tuple(id for id, _ in self._host.plugins()) if _sees_details(request) else (),
                )
            )

        return [live, startup, ready, health, info]

    # --- results --------------------------------------------------------------------------------

    async def _results(self, gate: str | None = None) -> dict[str, CheckResult]:
        if self._probes is None:
            self._probes = [
                Probe(
                    check,
                    timeout=self._config.timeout,
                    ttl=self._config.cache,
                    fall=self._config.fall,
                    rise=self._config.rise,
                    logger=self._host.logger,
                )
                for check in self._host.gateway.health_checks
            ]
        asked = [probe for probe in self._probes if gate is None or probe.check.gate == gate]
        results = await asyncio.gather(*(probe.result() for probe in asked))
        return {probe.check.name: result for probe, result in zip(asked, results, strict=True)}

    def _verdict(self, results: Mapping[str, CheckResult]) -> Literal["healthy", "degraded", "unhealthy"]:
        gates = {check.name: check.gate for check in self._host.gateway.health_checks}
        ill = [gates[name] for name, result in results.items() if result.status == "unhealthy"]
        return "unhealthy" if "ready" in ill else "degraded" if ill else "healthy"


def _sees_details(request: Request[Any, Any, Any]) -> bool:
    x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
    if x.route.route.listener == "operations":
        return True  # whoever reaches that listener is an operator
    principal = x.get(PRINCIPAL)
    return principal is not None and "admin" in principal.scopes


def _answer(value: msgspec.Struct, status: int = 200) -> Response[bytes]:
    return Response(
        content=msgspec.json.encode(value),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
