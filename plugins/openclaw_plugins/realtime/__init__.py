"""The socket: WebSocket as a first-class way in. Each message passes the same pipeline as a request.

It refuses before it accepts, and never looks at a credential: that is for the `auth` step, as everywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import HttpMethod, Response, asgi, route
from litestar.types import Receive, Scope, Send
from msgspec import Meta

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    SKILLS,
    TIER,
    TOKENS,
    WS_CONNECTIONS,
    WS_MESSAGES,
    Conversation,
    Duration,
    EventBus,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    QuotaEvent,
    Refused,
    Revocations,
    SessionStore,
    Size,
    StoreUnavailable,
    declared,
    hookimpl,
    internal_error,
    needs,
    unavailable,
)
from openclaw_plugins.realtime.asyncapi import HANDSHAKE, document
from openclaw_plugins.realtime.connection import GOING_AWAY, NOT_ALLOWED, Connection
from openclaw_plugins.realtime.handshake import asked_for, check_origin, deny
from openclaw_plugins.realtime.numbers import Numbers
from openclaw_plugins.realtime.outbox import Limits
from openclaw_plugins.realtime.running import Turns
from openclaw_plugins.realtime.turns import SocketTurns
from openclaw_plugins.realtime.warnings import listen, publish

#: how often it is asked whether credentials of open sockets have been revoked
_ASK_EVERY = 0.4
#: of the time to drain, what turns that are cut then need to be stored
_TO_CUT = 0.25


class Realtime:
    """Serves `/ws`, keeps the open sockets, and ends them when their time has come."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.realtime]`"""

        sessions: Annotated[str, needs(SessionStore), Meta(description="Where the sessions are kept.")] = "sessions"
        conversation: Annotated[str, needs(Conversation), Meta(description="What runs the turns.")] = "chat"
        events: Annotated[str, needs(EventBus), Meta(description="What carries the events of a session.")] = "events"
        origins: Annotated[
            tuple[str, ...],
            Meta(
                description='Origins of pages whose browsers may connect, "https://app.example.com" say; "*" allows '
                "all. A client that sends no Origin is no browser and may connect."
            ),
        ] = ()
        turns: Annotated[int, Meta(ge=1, description="Turns of one socket that run at the same time.")] = 4
        waiting: Annotated[int, Meta(ge=0, description="Messages of one socket that may wait for that.")] = 256
        waiting_bytes: Annotated[Size, Meta(description="Most bytes of the messages that wait.")] = Size(4_000_000)
        queue: Annotated[int, Meta(ge=2, description="Frames that may wait for a socket; then it is closed.")] = 256
        queue_bytes: Annotated[Size, Meta(description="Most bytes of the frames that wait for a socket.")] = Size(
            1_000_000
        )
        stall: Annotated[Duration, Meta(description="How long a client may take no frame before it is closed.")] = (
            Duration(10)
        )
        idle: Annotated[Duration, Meta(description="How long a client may send nothing before it is closed.")] = (
            Duration(3600)
        )

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._sessions = host.get(config.sessions, SessionStore)
        self._events = host.get(config.events, EventBus)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in config.origins)
        self._turns = Turns(
            host,
            host.get(config.conversation, Conversation),
            self._events,
            at_once=config.turns,
            waiting=config.waiting,
            waiting_bytes=config.waiting_bytes,
        )
        self._limits = Limits(
            max_frames=config.queue, max_bytes=config.queue_bytes, stall=config.stall, idle=config.idle
        )
        self._numbers = Numbers(host)
        self._open: set[Connection] = set()
        self._left = asyncio.Event()
        self._leaving = False

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
            await self._turns.cut(5.0)

    @hookimpl
    def draining(self, within: float) -> Awaitable[None]:
        return self._drain(within)

    @hookimpl
    def on_quota_event(self, event: QuotaEvent) -> Awaitable[None]:
        return publish(self._events, event)

    @hookimpl
    def routes(self) -> list[Any]:
        @asgi(
            "/ws",
            copy_scope=False,
            **declared(
                access="authenticated",
                methods=("WEBSOCKET",),
                meters=(WS_CONNECTIONS,),
                names_session=True,
                message_meters=(WS_MESSAGES,),
                charges_later=(MESSAGES, SKILLS, TOKENS),
                surface="websocket",
                summary="Talk in a session: frames both ways.",
                query=HANDSHAKE,
                errors=(400, 401, 403, 404, 429, 503),
            ),
        )
        async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
            await self._serve(scope, receive, send)

        @route(
            "/api/asyncapi.json",
            http_method=[HttpMethod.GET, HttpMethod.HEAD],
            **declared(access="public", surface="docs", summary="The frames of the socket, as AsyncAPI"),
        )
        async def asyncapi() -> Response[bytes]:
            written = msgspec.json.encode(document(self._host.gateway.version))
            return Response(content=written, status_code=200, media_type="application/json")

        return [websocket, asyncapi]

    # --- one socket -----------------------------------------------------------------------------

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        x: Exchange = scope["exchange"]
        await receive()  # websocket.connect
        try:
            session_id, after = await self._checked(x)
            mine = SocketTurns(self._turns, session_id)
            connection = Connection(
                *(x, receive, send),
                host=self._host,
                limits=self._limits,
                numbers=self._numbers,
                turns=mine,
                resuming=after is not None,
            )
            organization = x[PRINCIPAL].organization
            subscription = await self._events.subscribe(organization, session_id, connection.deliver)
            try:
                warnings = await listen(self._events, connection, mine, session_id)
            except BaseException:
                subscription.close()
                raise
        except Refused as error:
            await deny(x, send, error.refusal)
            return
        except StoreUnavailable as error:
            x.outcome.error = error
            await deny(x, send, unavailable(f"the {error.store} does not answer; try again shortly"))
            return
        except Exception as error:
            x.outcome.error = error
            self._host.logger.error("a handshake failed", exc_info=error)
            await deny(x, send, internal_error())
            return
        self._open.add(connection)
        try:
            await send({"type": "websocket.accept"})
            await connection.run(subscription, after)
        except OSError:
            x.outcome.disconnected = True  # it left during the handshake
        finally:
            warnings.close()
            subscription.close()
            self._open.discard(connection)
            self._left.set()

    async def _checked(self, x: Exchange) -> tuple[str, int | None]:
        """Return the session and the seq to resume from. Raises Refused, StoreUnavailable."""
        check_origin(x, self._origins)
        named, after = asked_for(x)
        session = await self._sessions.get(x[PRINCIPAL].organization, named)
        await self._host.gateway.admission.in_session(x, session.session_id)
        if self._leaving:
            raise Refused(unavailable("the gateway is shutting down", retry_after=5.0))
        return session.session_id, after

    # --- all of them ----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Close the sockets of credentials that have been revoked."""
        sources = [plugin for _, plugin in self._host.plugins() if isinstance(plugin, Revocations)]
        failing = False
        while sources:
            await asyncio.sleep(_ASK_EVERY)
            principals = {connection.principal for connection in self._open}
            if not principals:
                continue
            try:
                async with asyncio.timeout(5):
                    ended = {p for source in sources for p in await source.ended(principals)}
                failing = False
            except (StoreUnavailable, TimeoutError) as error:
                # An outage of the store is no reason to end what was allowed.
                if not failing:
                    self._host.logger.warning("revoked credentials cannot be looked for", exc_info=error)
                failing = True
                continue
            for connection in tuple(self._open):
                if connection.principal in ended:
                    connection.close(NOT_ALLOWED, "the credential was revoked")

    async def _drain(self, within: float) -> None:
        """Tell every client, finish what runs, cut what does not end in time, and close."""
        self._leaving = True
        reserve = min(_TO_CUT * within, 5.0)
        leaving = [
            # Spread, so that the replicas that remain are not met by all at the same moment.
            asyncio.ensure_future(connection.leave(round(random.uniform(0.0, 5.0), 1)))  # noqa: S311 - no secret
            for connection in tuple(self._open)
        ]
        if leaving:
            await asyncio.wait(leaving, timeout=within - reserve)
        for task in leaving:
            task.cancel()
        await self._turns.cut(reserve / 2)
        for connection in tuple(self._open):
            connection.close(GOING_AWAY, "going away")
        while self._open:
            self._left.clear()
            await self._left.wait()
