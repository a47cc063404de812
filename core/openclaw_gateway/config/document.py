"""The typed document: what `openclaw.toml` may hold. Every field's description is its reference."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from openclaw_gateway.capabilities import ModelProvider
from openclaw_gateway.config.units import Duration, Size

T = TypeVar("T")


class PluginConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every `Config` and `Limits` Struct: frozen, and unknown keys are refused."""


def needs(capability: type) -> Meta:
    """Mark a config field as the id of another plugin that must satisfy `capability` (a Protocol)."""
    return Meta(extra={"needs": capability})


class EdgeSettings(PluginConfig, frozen=True, kw_only=True):
    """`[gateway.edge]`: the bounds of a connection. What breaks one is answered once and closed."""

    first_byte: Annotated[Duration, Meta(description="How long a new connection may stay silent.")] = Duration(10)
    headers: Annotated[Duration, Meta(description="For all headers of a request.")] = Duration(10)
    body_idle: Annotated[Duration, Meta(description="Between two pieces of a request body.")] = Duration(10)
    body_total: Annotated[Duration, Meta(description="For a whole request body.")] = Duration(300)
    write_idle: Annotated[
        Duration, Meta(description="How long a client may take nothing of a response that waits for it.")
    ] = Duration(30)
    keep_alive: Annotated[Duration, Meta(description="How long an idle connection is kept.")] = Duration(15)
    max_headers: Annotated[int, Meta(ge=10, description="Most headers of a request.")] = 100
    max_header_bytes: Annotated[Size, Meta(description="Most bytes of all headers of a request.")] = Size(32_768)
    max_target: Annotated[Size, Meta(description="Longest path and query of a request.")] = Size(8_192)
    max_connections: Annotated[int, Meta(ge=1, description="Most open connections of a process.")] = 10_000
    max_connections_per_address: Annotated[
        int, Meta(ge=1, description="Most open connections of one peer; behind a proxy that is the proxy.")
    ] = 10_000
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Host names that are served; empty for every valid one.")
    ] = ()


class Tls(PluginConfig, frozen=True, kw_only=True):
    """`[gateway.tls]`: serve HTTPS ourselves; without it, a proxy in front does."""

    certificate: Annotated[str, Meta(description="PEM file of the certificate chain, relative to this file.")]
    key: Annotated[str, Meta(description="PEM file of the private key, relative to this file.")]


class GatewaySettings(PluginConfig, frozen=True, kw_only=True):
    """`[gateway]`"""

    pipeline: Annotated[
        tuple[str, ...],
        Meta(description="Plugin ids in the order in which a request meets them. Verified, never sorted."),
    ]
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 9090
    data_dir: Annotated[str, Meta(description="Where the embedded default keeps its state, relative to this file.")] = (
        ".openclaw"
    )
    tiers: Annotated[str, Meta(description="Folder of the tier files, relative to this file.")] = "tiers"
    workers: Annotated[
        int, Meta(ge=1, le=64, description="Processes that serve. More than one needs shared stores.")
    ] = 1
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Networks (CIDR) whose forwarding headers and request ids are believed."),
    ] = ()
    drain_timeout: Annotated[
        Duration, Meta(description="How long running requests may take after a stop was asked for.")
    ] = Duration(30)
    lame_duck: Annotated[
        Duration,
        Meta(description="How long to go on accepting after readiness has turned, so that a balancer can notice."),
    ] = Duration(0)
    max_body: Annotated[Size, Meta(description="Largest request body.")] = Size(20_000_000)
    insecure_dev: Annotated[
        bool, Meta(description="Allow routes without authentication, on a loopback address only.")
    ] = False
    unmetered: Annotated[
        tuple[str, ...],
        Meta(description="Meters that may go without a limit; any other unlimited meter stops the start."),
    ] = ()
    edge: EdgeSettings = EdgeSettings()
    tls: Tls | None = None


class StepSettings(PluginConfig, frozen=True, kw_only=True):
    """`[steps.<id>]`: what the host does around one step of the pipeline."""

    on_error: Annotated[
        Literal["deny", "allow"],
        Meta(description="What a step that raises or overruns means: deny answers 503, allow goes on."),
    ] = "deny"
    timeout: Annotated[Duration, Meta(description="How long an asynchronous step may take.")] = Duration(5)
    enforce: Annotated[
        bool, Meta(description="false: what the step would refuse is counted and logged, and let through.")
    ] = True


class ModelTimeouts(PluginConfig, frozen=True, kw_only=True):
    """`[models.<alias>.timeouts]`"""

    connect: Annotated[Duration, Meta(description="To open a connection.")] = Duration(5)
    first_byte: Annotated[Duration, Meta(description="To the first content of the answer.")] = Duration(60)
    idle: Annotated[Duration, Meta(description="Between two chunks of a stream.")] = Duration(60)
    total: Annotated[Duration, Meta(description="For the whole call.")] = Duration(600)


class Model(PluginConfig, frozen=True, kw_only=True):
    """`[models.<alias>]`: a model under the name that clients use."""

    provider: Annotated[str, needs(ModelProvider), Meta(description="Id of the provider plugin that speaks to it.")]
    name: Annotated[str | None, Meta(description="Its name at the upstream; by default the alias.")] = None
    tiers: Annotated[tuple[str, ...], Meta(description="Tiers that may use it; empty for all.")] = ()
    owned_by: Annotated[str, Meta(description="Shown in the model list.")] = "openclaw"
    timeouts: ModelTimeouts = ModelTimeouts()


class Target(PluginConfig, frozen=True, kw_only=True):
    """`[targets.<name>]`: an external service that the gateway depends on."""

    url: Annotated[str, Meta(pattern="^https?://", description="Its base URL.")]
    health_path: Annotated[str, Meta(description="Path that answers below 500 when it is well.")] = "/"
    timeout: Annotated[Duration, Meta(description="For one call.")] = Duration(5)
    required: Annotated[bool, Meta(description="Whether readiness depends on it.")] = False


class Document(PluginConfig, frozen=True, kw_only=True):
    """All of `openclaw.toml`. The tables under `plugins` are typed by their plugins."""

    gateway: GatewaySettings
    plugins: Annotated[
        dict[str, dict[str, Any]],
        Meta(description="Plugin instances by id; `use` names the plugin, by default the id."),
    ] = {}
    steps: Annotated[dict[str, StepSettings], Meta(description="Host keys of pipeline steps, by id.")] = {}
    models: Annotated[dict[str, Model], Meta(description="Models by the alias that clients use.")] = {}
    targets: Annotated[dict[str, Target], Meta(description="External services by name.")] = {}
