"""What a plugin is given of the gateway when it is built: its own narrow view, and nothing global."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry

from openclaw_gateway.clock import Clock
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.tiers import Tier

if TYPE_CHECKING:
    from openclaw_gateway.gateway import Gateway
    from openclaw_gateway.serving.workers import Workers

T = TypeVar("T")
M = TypeVar("M")


class Host:
    """One plugin's view of the gateway.

    `gateway` is complete only after every plugin is built: use it in hooks, not in `__init__`.
    """

    def __init__(
        self,
        id: str,
        *,
        document: Document,
        config_dir: Path,
        tiers: Mapping[str, Tier],
        instances: Mapping[str, Any],
        registry: CollectorRegistry,
        clock: Clock,
        metrics: dict[str, tuple[Any, str | None]] | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.id = id
        self.document = document
        self.config_dir = config_dir
        self.tiers = tiers
        #: for collectors; single metrics are made by `metric`, in `__init__`
        self.registry = registry
        self.clock = clock
        self.logger = logging.getLogger(f"openclaw.{id}")
        #: the other processes of this gateway, where several serve; None in a process that is alone
        self.workers = workers
        self.gateway: Gateway
        self._instances = instances
        self._metrics = metrics if metrics is not None else {}

    @property
    def settings(self) -> GatewaySettings:
        return self.document.gateway

    @property
    def data_dir(self) -> Path:
        """Where the embedded default keeps its state; relative paths start at the configuration file."""
        return self.config_dir / self.document.gateway.data_dir

    def get(self, id: str, capability: type[T]) -> T:
        """Return the plugin `id`, which must be named in a config field by `needs(capability)`."""
        if id not in self._instances and id not in (*self.document.plugins, *self.settings.pipeline):
            raise ValueError(f"it asks for the plugin {id!r}, which the configuration does not have")
        instance = self._instances[id]
        if not isinstance(instance, capability):
            raise TypeError(f"plugin {id!r} is no {capability.__name__}")
        return instance

    def metric(
        self, kind: Callable[..., M], name: str, documentation: str, labels: Sequence[str] = (), **options: Any
    ) -> M:
        """Return the metric `name` of this gateway, made on first use; plugins that share a name share the metric.

        `kind` is a class of prometheus_client. Labels are of configuration only, never of a caller. A Gauge says by
        `multiprocess_mode` what it is of several workers: "sum", "max" or "min"; else each is shown for itself.
        """
        found = self._metrics.get(name)
        if found is None:
            made = kind(name, documentation, labels, registry=self.registry, **options)
            found = self._metrics[name] = (made, options.get("multiprocess_mode"))
        shared: M = found[0]
        return shared

    def gauge_modes(self) -> Mapping[str, str]:
        """Return what the gauges that `metric` has made are of several workers, where they say it."""
        return {name: mode for name, (_, mode) in self._metrics.items() if mode is not None}

    def limits(self) -> Mapping[str, Mapping[str, Any]]:
        """Return this plugin's tables of the tier files: tier name → limit name → its `Limits` Struct."""
        return {name: tier.tables.get(self.id, {}) for name, tier in self.tiers.items()}

    def plugins(self) -> Sequence[tuple[str, Any]]:
        """Return all plugins built so far, by id."""
        return list(self._instances.items())
