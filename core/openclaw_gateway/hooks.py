"""The hook specifications: every point at which a plugin takes part. Their docstrings are the reference.

Composition hooks are called once, at start, in the order in which plugins were built. Exchange hooks are
read once, at start, into one flat pipeline a route, and then called by the runner directly: pluggy
specifies, registers and validates, it does not dispatch. An exchange hook may be a plain function or a
coroutine function, unless its text says otherwise; plain ones are called without a switch of task.

What a hook returns is looked at. Of a wrong type, or where a composition hook raises, it stops the start (`notices`,
`draining` and `on_quota_event` are logged), and names the plugin, the hook, what was found and what is expected. An
`on_request` or `on_message` that returns neither None nor an answer has failed, and `on_error` of its step decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pluggy

if TYPE_CHECKING:
    from openclaw_gateway.contracts.accounting import QuotaEvent
    from openclaw_gateway.exchange import Exchange, Outcome, Reply, ResponseHead
    from openclaw_gateway.meters import Charge
    from openclaw_gateway.refusals import Refusal
    from openclaw_gateway.routes import Route
    from openclaw_gateway.tiers import Tier

PROJECT = "openclaw"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HealthCheck(msgspec.Struct, frozen=True):
    """One part of the gateway's health.

    `probe` returns facts worth showing and raises where the part is not well; it is called at most once a
    second, with a time-out. Gate `ready` takes the replica out of rotation, `info` only reports. `name` is the part's
    own in the whole gateway, or the start is refused: a plugin that may stand twice in a configuration has its id
    (`host.id`) in it.
    """

    name: str
    probe: Callable[[], Awaitable[Mapping[str, Any]]]
    gate: Literal["ready", "info"] = "info"


# --- composition --------------------------------------------------------------------------------


@hookspec
def lifespan() -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]
    """Open what the plugin needs, before the first request; close it after the last.

    Called once a start. Contexts are entered in the order of construction (a plugin after those that it
    names in its config) and left in reverse. An exception on entry stops the start: what was entered is
    left again and the process exits with status 1. Background tasks belong here.
    """


@hookspec
def routes() -> Sequence[Any]:  # type: ignore[empty-body]
    """Return Litestar route handlers. Each declares what it needs with `**declared(...)`.

    Called once a start. A handler without a declaration, or whose needs its compiled pipeline does not
    meet, stops the start and is named.
    """


@hookspec
def applies(route: Route) -> bool:  # type: ignore[empty-body]
    """Say whether this plugin's exchange hooks take part on `route`; without this hook they always do.

    Called once a start for each route, so that a step costs nothing where it has nothing to do.
    """


@hookspec
def charges(route: Route, tier: Tier) -> Sequence[Charge]:  # type: ignore[empty-body]
    """Return the limits that `tier` sets on the meters of `route`, each with the account that counts it.

    Called once a start for each route and tier, for plugins in the pipeline. The core joins the charges of
    all plugins and decides them in one place, after every `on_request` of the route and before its handler.
    """


@hookspec
def health() -> Sequence[HealthCheck]:  # type: ignore[empty-body]
    """Return the checks by which this plugin's parts are known to be well. Called once a start."""


@hookspec
def migrations() -> Path:  # type: ignore[empty-body]
    """Return a folder of Alembic revisions for the plugin's own tables; it must be there.

    Called once a start, and where the schema is looked at or upgraded.
    """


@hookspec
def inherit(previous: Any) -> None:
    """Take over what `previous`, the plugin of the same id and class before a reload, keeps in memory.

    Called once a reload, before the lifespan is entered; both instances are then in use until the old gateway
    has drained. Counters are the reason: a reload must not hand out a fresh window.
    """


@hookspec
def notices() -> Sequence[str]:  # type: ignore[empty-body]
    """Return lines that `serve` prints once, when it is ready: what an operator should know now.

    Called after every lifespan is open. A secret may be printed here, once, and nowhere else.
    """


@hookspec
def draining(within: float) -> Awaitable[None]:  # type: ignore[empty-body]
    """Bring what lives longer than a request, open sockets say, to its end within so many seconds.

    Called once a stop, after new requests are refused and before the server closes its connections. All
    plugins drain at the same time; what is not done in time is cancelled. Return an awaitable.
    """


@hookspec
def on_quota_event(event: QuotaEvent) -> Awaitable[None] | None:
    """Called when an organisation has passed a threshold of a quota: `warn_at` of it, and all of it.

    There is one event for each organisation, subject, quota, period and threshold, also over restarts, replicas
    and edits of limits. It is written with the charge that passed the threshold and delivered by one replica, at
    least once: again, with the same `event.key`, where a listener raises or the replica dies. Read once, at start.
    What has to wait is returned as an awaitable. Another answer than that or None is a line in the log, and counts as
    taken.
    """


# --- exchange -----------------------------------------------------------------------------------


@hookspec
def on_request(x: Exchange) -> Reply | Refusal | None:
    """Called for each request and each WebSocket handshake (before accept), in the order of the pipeline.

    Return None to go on, a Refusal or a Reply to stop here; either still passes `on_response` of this and of
    earlier steps. Facts are stated here (`x[FACT] = value`). An exception, or more time than `timeout` of
    `[steps.<id>]`, is answered by its `on_error`: "deny" gives 503, "allow" goes on.
    """


@hookspec
def on_message(x: Exchange) -> Refusal | None:
    """Called for each WebSocket message from a client, in the order of the pipeline, before admission.

    `x.parent` is the handshake; its facts are inherited. A Refusal becomes an `error` frame.
    """


@hookspec
def on_response(x: Exchange, head: ResponseHead) -> None:
    """Called when a response starts, of a handler or of a refusal alike, in reverse order of the pipeline.

    May change status and headers. Plain function only. An exception here is logged and passed over. Names and values
    are bytes, names in lower case; what no server can send is left out and logged.
    """


@hookspec
def on_chunk(x: Exchange, data: bytes) -> bytes | None:
    """Called for each body chunk that goes out, streams and refusals included, in reverse order of the pipeline.

    Return other bytes to replace it, None to leave it. Plain function only. Whoever changes the length takes the
    Content-Length away in `on_response`.
    """


@hookspec
def on_complete(x: Exchange, outcome: Outcome) -> None:
    """Called exactly once for each exchange, after its last byte, a refusal, an error or a disconnect.

    In reverse order of the pipeline, after charges are settled. Observes only: an exception is logged and
    changes nothing. Plain function only: what must wait belongs into a task of the plugin's lifespan.
    """
