"""Tickets: how a browser, which cannot set headers on a WebSocket, shows who it is without a token in the URL.

A ticket is a random word for one handshake of one session within half a minute. It is kept as a hash, taken once,
and never written to a log.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, ClassVar
from urllib.parse import parse_qs

import msgspec
from litestar import Request, Response, post
from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    Duration,
    Exchange,
    Fact,
    Host,
    PluginConfig,
    Principal,
    Redis,
    Refusal,
    Refused,
    SessionStore,
    declared,
    decode,
    hookimpl,
    needs,
    read_body,
    unauthorized,
    unavailable,
)
from openclaw_plugins.realtime.open_tickets import InMemory, InRedis, OpenTicket, OpenTickets

_REFUSED = unauthorized("the ticket is not valid: it is unknown, used, expired, or for another session")


class TicketRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Asks for a ticket."""

    session_id: Annotated[str, Meta(description="The session whose socket is to be opened.")]


class Ticket(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A ticket for one handshake."""

    ticket: Annotated[str, Meta(description="For `/ws?sessionId=...&ticket=...`, once.")]
    expires_at: str


class Tickets:
    """Hands out tickets, and recognises them as credentials of a handshake.

    Without `redis` they live in one process; with it any replica takes what another one has handed out.
    """

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.ws_tickets]`"""

        sessions: Annotated[str, needs(SessionStore), Meta(description="Where the sessions are kept.")] = "sessions"
        redis: Annotated[
            str | None, needs(Redis), Meta(description="Where the tickets of all replicas are kept; else in memory.")
        ] = None
        ttl: Annotated[Duration, Meta(description="How long a ticket can be used.")] = Duration(30)
        max_open: Annotated[
            int, Meta(ge=1, description="Most tickets in memory that wait to be used at the same time.")
        ] = 10_000

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._clock = host.clock
        self._sessions = host.get(config.sessions, SessionStore)
        self._open: OpenTickets = (
            InRedis(host.get(config.redis, Redis), config.ttl)
            if config.redis is not None
            else InMemory(host.clock, config.ttl, config.max_open)
        )

    @property
    def shared(self) -> bool:
        return self._config.redis is not None

    @hookimpl
    def inherit(self, previous: Tickets) -> None:
        """Go on with the tickets of before a reload, where they are in memory."""
        if type(self._open) is InMemory is type(previous._open):
            self._open = previous._open

    async def authenticate(self, x: Exchange) -> Principal | Refusal | None:
        if x.kind != "websocket":
            return None
        try:
            query = parse_qs(x.scope["query_string"].decode("latin-1"), max_num_fields=100)
        except ValueError:
            return None
        given = query.get("ticket")
        if given is None:
            return None
        found = await self._open.take(_hash(given[0]))
        # It is used up also where it does not fit: whoever tries it elsewhere should not have it.
        if found is None or query.get("sessionId") != [found.session]:
            return _REFUSED
        principal = found.principal
        if principal.expires_at is not None and principal.expires_at <= self._clock.now():
            return _REFUSED
        return principal

    @hookimpl
    def routes(self) -> list[Any]:
        @post(
            "/api/v1/ws-tickets",
            **declared(
                access="authenticated",
                names_session=True,
                summary="Get a ticket for one WebSocket handshake.",
                body=TicketRequest,
                answer=Ticket,
                status=201,
                errors=(400, 401, 403, 404, 429, 503),
            ),
        )
        async def create_ticket(request: Request[Any, Any, Any]) -> Response[bytes]:
            x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
            body = await read_body(request.receive, self._host.settings.max_body, request.scope["headers"])
            asked = decode(body, TicketRequest)
            session = await self._sessions.get(x[PRINCIPAL].organization, asked.session_id)
            await self._host.gateway.admission.in_session(x, session.session_id)
            ticket = await self._issue(asked.session_id, x[PRINCIPAL])
            headers = {"cache-control": "no-store"}
            return Response(
                msgspec.json.encode(ticket), media_type="application/json", status_code=201, headers=headers
            )

        return [create_ticket]

    async def _issue(self, session: str, principal: Principal) -> Ticket:
        ticket = secrets.token_urlsafe(32)
        if not await self._open.put(_hash(ticket), OpenTicket(session, principal)):
            raise Refused(unavailable("too many tickets wait to be used; try again shortly"))
        expires = datetime.fromtimestamp(self._clock.now() + self._config.ttl, UTC)
        shown = expires.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Ticket(ticket=ticket, expires_at=shown)


def _hash(ticket: str) -> str:
    return sha256(ticket.encode("utf-8", "replace")).hexdigest()
