"""The typed document: what `openclaw.toml` may hold. Every field's description is its reference."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from openclaw_gateway.config.units import Duration, Secret, Size
from openclaw_gateway.contracts.models import ModelProvider
from openclaw_gateway.contracts.skills import SkillSource

T = TypeVar("T")


def _lasting(settings: PluginConfig, *names: str) -> None:
    for name in names:
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name} is no time at all, so that nothing would ever be done within it")


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


class Operations(PluginConfig, frozen=True, kw_only=True):
    """`[gateway.operations]`: a listener of its own for `/health`, `/metrics` and `/info`, off the public port."""

    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on, in the clear; 0 takes a free one.")]
    host: Annotated[
        str, Meta(description="Address to listen on. Whoever reaches it sees every part's health in detail.")
    ] = "127.0.0.1"


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
        int,
        Meta(ge=1, le=64, description="Processes that serve, one a core; more than one needs shared stores."),
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
    watch: Annotated[
        Duration,
        Meta(description="How often the configuration and the tiers are looked at for a change to reload; 0: never."),
    ] = Duration(0)
    max_body: Annotated[Size, Meta(description="Largest request body.")] = Size(20_000_000)
    insecure_dev: Annotated[
        bool, Meta(description="Allow routes without authentication, on a loopback address only.")
    ] = False
    unmetered: Annotated[
        tuple[str, ...],
        Meta(description="Meters that may go without a limit; any other unlimited meter stops the start."),
    ] = ()
    stage_sampling: Annotated[
        int, Meta(ge=0, description="One request in how many has its pipeline steps timed for the metrics; 0: none.")
    ] = 16
    server_timing: Annotated[
        bool,
        Meta(
            description="Time every request's steps, and show them in `Server-Timing` to whoever asks, strangers too."
        ),
    ] = False
    edge: EdgeSettings = EdgeSettings()
    tls: Tls | None = None
    operations: Operations | None = None


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

    def __post_init__(self) -> None:
        _lasting(self, "timeout")


class ModelTimeouts(PluginConfig, frozen=True, kw_only=True):
    """`[models.<alias>.timeouts]`"""

    connect: Annotated[Duration, Meta(description="To open a connection.")] = Duration(5)
    first_byte: Annotated[Duration, Meta(description="To the first content of the answer.")] = Duration(60)
    idle: Annotated[Duration, Meta(description="Between two chunks of a stream.")] = Duration(60)
    total: Annotated[Duration, Meta(description="For the whole call.")] = Duration(600)

    def __post_init__(self) -> None:
        _lasting(self, *self.__struct_fields__)


class Price(PluginConfig, frozen=True, kw_only=True):
    """`[models.<alias>.price]`: for a million tokens, in whichever currency you account in."""

    input: Annotated[float, Meta(ge=0, description="For a million tokens of prompts.")]
    output: Annotated[float, Meta(ge=0, description="For a million tokens of answers.")] = 0.0


class Model(PluginConfig, frozen=True, kw_only=True):
    """`[models.<alias>]`: a model under the name that clients use."""

    provider: Annotated[str, needs(ModelProvider), Meta(description="Id of the provider plugin that speaks to it.")]
    name: Annotated[str | None, Meta(description="Its name at the upstream; by default the alias.")] = None
    tiers: Annotated[tuple[str, ...], Meta(description="Tiers that may use it; empty for all.")] = ()
    owned_by: Annotated[str, Meta(description="Shown in the model list.")] = "openclaw"
    timeouts: ModelTimeouts = ModelTimeouts()
    retries: Annotated[
        int, Meta(ge=0, le=5, description="How often it is asked again, only before it has said anything.")
    ] = 2
    fallbacks: Annotated[
        tuple[str, ...], Meta(description="Aliases that answer in its place when it fails, in this order.")
    ] = ()
    context: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Tokens that it can take in; a prompt too long for it goes to a fallback that states more."),
    ] = None
    capacity: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Most calls at the same time in one process; by default without bound."),
    ] = None
    capacity_wait: Annotated[Duration, Meta(description="How long a call waits for a place.")] = Duration(1)
    price: Annotated[
        Price | None, Meta(description="What its tokens cost; where it is set, tokens and cost are counted.")
    ] = None


class Target(PluginConfig, frozen=True, kw_only=True):
    """`[targets.<name>]`: an external service that the gateway depends on."""

    url: Annotated[str, Meta(pattern="^https?://", description="Its base URL.")]
    health_path: Annotated[str, Meta(description="Path that answers below 500 when it is well.")] = "/"
    timeout: Annotated[Duration, Meta(description="For one call.")] = Duration(5)
    required: Annotated[bool, Meta(description="Whether readiness depends on it.")] = False
    private: Annotated[
        bool,
        Meta(description="Whether skills may reach it at an address that is not public; never at a link-local one."),
    ] = False


class DeclaredSkill(PluginConfig, frozen=True, kw_only=True):
    """`[skills.<name>]`: a call of a service under the name by which clients run it."""

    provider: Annotated[str, needs(SkillSource), Meta(description="Id of the plugin that runs it.")]
    description: Annotated[str, Meta(min_length=1, max_length=1024, description="What it does, for whoever chooses.")]
    version: Annotated[str, Meta(min_length=1, max_length=64, description="Shown to clients.")] = "1"
    target: Annotated[str | None, Meta(description="Name of the `[targets.<name>]` that it calls.")] = None
    url: Annotated[
        str, Meta(description="What it calls: a path at its target, or a whole URL; `{name}` is a parameter.")
    ]
    method: Annotated[
        Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        Meta(description="Parameters that `url` does not name go into the query of GET and DELETE, else into a body."),
    ] = "GET"
    headers: Annotated[dict[str, Secret], Meta(description="Sent with every call; values may be secrets.")] = {}
    parameters: Annotated[
        dict[str, Any], Meta(description="JSON Schema (2020-12) of an object; unknown parameters are refused.")
    ] = {}
    timeout: Annotated[Duration, Meta(description="For one call; it is cut then.")] = Duration(10)
    max_output: Annotated[Size, Meta(description="Largest answer of the service.")] = Size(1_000_000)


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
    skills: Annotated[dict[str, DeclaredSkill], Meta(description="Skills that are declared, by name.")] = {}
