"""The routes of sessions and messages. They decode and answer; what holds is decided by the store and admission."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec
from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath
from msgspec import Meta

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    REQUESTS,
    SESSION_ID,
    SESSIONS,
    TIER,
    EventBus,
    Fact,
    Host,
    Message,
    NewMessage,
    Page,
    PluginConfig,
    Refused,
    Session,
    SessionStore,
    StoreUnavailable,
    answer,
    bad_request,
    body_of,
    declared,
    exchange_of,
    hookimpl,
    needs,
    page_limit,
    query_of,
)

_PATH = "/api/v1/sessions"
_ONE = _PATH + "/{session_id:str}"
_MESSAGES = _ONE + "/messages"
_MAX_LIMIT = 200


class CreateSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /sessions."""

    metadata: Annotated[dict[str, Any], Meta(description="Whatever the client wants to find again.")] = {}
    ttl: Annotated[int, Meta(ge=1, lt=2**53, description="Life in seconds.")] | None = None


class UpdateSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PUT /sessions/{id}."""

    metadata: Annotated[dict[str, Any], Meta(description="Takes the place of the metadata that is there.")]
    status: Literal["active", "inactive"] | None = None


class PostMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /sessions/{id}/messages."""

    content: Annotated[str, Meta(min_length=1, description="Stored as it is; no model is called.")]
    role: Literal["user", "system"] = "user"
    metadata: dict[str, Any] = {}


class Sessions(msgspec.Struct, frozen=True, rename="camel"):
    """A page of sessions, newest first."""

    sessions: list[Session]
    next_cursor: str | None


class Messages(msgspec.Struct, frozen=True, rename="camel"):
    """A page of messages, oldest first."""

    messages: list[Message]
    next_cursor: str | None


Status = Literal["active", "inactive", "expired"]
STATUSES = get_args(Status)
Limit = Annotated[int, Meta(ge=1, le=_MAX_LIMIT)]


class SessionApi:
    """Serves sessions and messages as own resources."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        sessions: Annotated[str, needs(SessionStore), Meta(description="Where sessions are kept.")] = "sessions"
        page: Annotated[int, Meta(ge=1, le=_MAX_LIMIT, description="Items of a page that asks for no number.")] = 50
        events: Annotated[
            str | None, needs(EventBus), Meta(description="What tells listeners of a session of posted messages.")
        ] = None

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._store = host.get(config.sessions, SessionStore)
        self._events = host.get(config.events, EventBus) if config.events is not None else None
        self._host = host

    @hookimpl
    def routes(self) -> list[Any]:
        store = self._store
        paging = {"limit": Limit | None, "cursor": str | None}

        @post(
            _PATH,
            status_code=201,
            **declared(
                access="authenticated",
                meters=(REQUESTS, SESSIONS),
                summary="Create a session",
                body=CreateSession,
                answer=Session,
                status=201,
                errors=(400, 401, 403, 429),
            ),
        )
        async def create_session(request: Request[Any, Any, Any]) -> Response[bytes]:
            x = exchange_of(request)
            asked = await body_of(request, CreateSession, self._host.settings.max_body, empty=b"{}")
            session = await store.create(
                x[PRINCIPAL],
                tier=x[TIER].name,
                metadata=asked.metadata,
                ttl=asked.ttl,
                holds=x.receipt.take_holds(SESSIONS.name) if x.receipt is not None else (),
            )
            x[SESSION_ID] = session.session_id
            return answer(session, 201)

        @get(
            _PATH,
            **declared(
                access="authenticated",
                summary="List the organization's sessions, newest first",
                query={"status": Status | None, **paging},
                answer=Sessions,
                errors=(400, 401, 429),
            ),
        )
        async def list_sessions(request: Request[Any, Any, Any]) -> Response[bytes]:
            query = query_of(request, "status", "limit", "cursor")
            status = query.get("status")
            if status is not None and status not in STATUSES:
                raise Refused(bad_request(f"status: expected one of {', '.join(STATUSES)}", param="status"))
            page = await store.list(
                exchange_of(request)[PRINCIPAL].organization,
                status=status,
                limit=page_limit(query, self._config.page, _MAX_LIMIT),
                cursor=query.get("cursor"),
            )
            return answer(Sessions(page.items, page.next_cursor))

        @get(
            _ONE,
            **declared(
                access="authenticated",
                names_session=True,
                summary="Show a session",
                answer=Session,
                errors=(401, 403, 404, 429),
            ),
        )
        async def show_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            return answer(await store.get(await self._organization(request, session_id), session_id))

        @put(
            _ONE,
            **declared(
                access="authenticated",
                names_session=True,
                summary="Replace a session's metadata, and set its status",
                body=UpdateSession,
                answer=Session,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def update_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            organization = await self._organization(request, session_id)
            asked = await body_of(request, UpdateSession, self._host.settings.max_body)
            return answer(await store.update(organization, session_id, metadata=asked.metadata, status=asked.status))

        @delete(
            _ONE,
            status_code=204,
            **declared(
                access="authenticated",
                names_session=True,
                summary="Delete a session",
                status=204,
                errors=(401, 403, 404, 429),
            ),
        )
        async def delete_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> None:
            await store.delete(await self._organization(request, session_id), session_id)

        @get(
            _MESSAGES,
            **declared(
                access="authenticated",
                names_session=True,
                summary="List a session's messages, oldest first",
                query=paging,
                answer=Messages,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def list_messages(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            organization = await self._organization(request, session_id)
            query = query_of(request, "limit", "cursor")
            page: Page = await store.messages(
                organization,
                session_id,
                limit=page_limit(query, self._config.page, _MAX_LIMIT),
                cursor=query.get("cursor"),
            )
            return answer(Messages(page.items, page.next_cursor))

        @post(
            _MESSAGES,
            status_code=201,
            **declared(
                access="authenticated",
                meters=(REQUESTS, MESSAGES),
                names_session=True,
                summary="Store a message, without a call of a model",
                body=PostMessage,
                answer=Message,
                status=201,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def post_message(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            x = exchange_of(request)
            organization = await self._organization(request, session_id)
            asked = await body_of(request, PostMessage, self._host.settings.max_body)
            new = NewMessage(role=asked.role, content=asked.content, metadata=asked.metadata)
            holds = x.receipt.take_holds(MESSAGES.name) if x.receipt is not None else ()
            try:
                (stored,) = await store.append(organization, session_id, [new], holds=holds)
            except Refused:
                if x.receipt is not None:
                    x.receipt.give_back(holds)
                raise
            if self._events is not None:
                # It is stored: a bus that fails logs it, and listeners find the message in the history.
                with suppress(StoreUnavailable):
                    await self._events.publish(organization, stored.session_id, stored.as_event())
            return answer(stored, 201)

        return [
            create_session,
            list_sessions,
            show_session,
            update_session,
            delete_session,
            list_messages,
            post_message,
        ]

    async def _organization(self, request: Request[Any, Any, Any], session_id: str) -> str:
        """Return the caller's organisation, with the session stated. Raises Refused, StoreUnavailable."""
        x = exchange_of(request)
        organization = x[PRINCIPAL].organization
        admission = self._host.gateway.admission
        if admission.counts_sessions(x):
            await admission.in_session(x, (await self._store.get(organization, session_id)).session_id)
        else:
            x[SESSION_ID] = session_id
        return organization
