"""The routes of sessions and messages. They decode and answer; what holds is decided by the store and admission."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

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
    Exchange,
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
    bad_request,
    declared,
    decode,
    hookimpl,
    needs,
    read_body,
    storable,
)

B = TypeVar("B")

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
            x = _exchange(request)
            asked = await self._body(request, CreateSession, empty=b"{}")
            session = await store.create(
                x[PRINCIPAL],
                tier=x[TIER].name,
                metadata=asked.metadata,
                ttl=asked.ttl,
                holds=x.receipt.take_holds(SESSIONS.name) if x.receipt is not None else (),
            )
            x[SESSION_ID] = session.session_id
            return _answer(session, 201)

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
            query = _query(request, "status", "limit", "cursor")
            status = query.get("status")
            if status is not None and status not in STATUSES:
                raise Refused(bad_request(f"status: expected one of {', '.join(STATUSES)}", param="status"))
            page = await store.list(
                _exchange(request)[PRINCIPAL].organization,
                status=status,
                limit=self._limit(query),
                cursor=query.get("cursor"),
            )
            return _answer(Sessions(page.items, page.next_cursor))

        @get(
            _ONE,
            **declared(access="authenticated", summary="Show a session", answer=Session, errors=(401, 403, 404, 429)),
        )
        async def show_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            return _answer(await store.get(_organization(request, session_id), session_id))

        @put(
            _ONE,
            **declared(
                access="authenticated",
                summary="Replace a session's metadata, and set its status",
                body=UpdateSession,
                answer=Session,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def update_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            organization = _organization(request, session_id)
            asked = await self._body(request, UpdateSession)
            return _answer(await store.update(organization, session_id, metadata=asked.metadata, status=asked.status))

        @delete(
            _ONE,
            status_code=204,
            **declared(access="authenticated", summary="Delete a session", status=204, errors=(401, 403, 404, 429)),
        )
        async def delete_session(request: Request[Any, Any, Any], session_id: FromPath[str]) -> None:
            await store.delete(_organization(request, session_id), session_id)

        @get(
            _MESSAGES,
            **declared(
                access="authenticated",
                summary="List a session's messages, oldest first",
                query=paging,
                answer=Messages,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def list_messages(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            organization = _organization(request, session_id)
            query = _query(request, "limit", "cursor")
            page: Page = await store.messages(
                organization, session_id, limit=self._limit(query), cursor=query.get("cursor")
            )
            return _answer(Messages(page.items, page.next_cursor))

        @post(
            _MESSAGES,
            status_code=201,
            **declared(
                access="authenticated",
                meters=(REQUESTS, MESSAGES),
                summary="Store a message, without a call of a model",
                body=PostMessage,
                answer=Message,
                status=201,
                errors=(400, 401, 403, 404, 429),
            ),
        )
        async def post_message(request: Request[Any, Any, Any], session_id: FromPath[str]) -> Response[bytes]:
            x = _exchange(request)
            organization = _organization(request, session_id)
            asked = await self._body(request, PostMessage)
            new = NewMessage(role=asked.role, content=asked.content, metadata=asked.metadata)
            holds = x.receipt.take_holds(MESSAGES.name) if x.receipt is not None else ()
            (stored,) = await store.append(organization, session_id, [new], holds=holds)
            if self._events is not None:
                # It is stored: a bus that fails logs it, and listeners find the message in the history.
                with suppress(StoreUnavailable):
                    await self._events.publish(organization, stored.session_id, stored.as_event())
            return _answer(stored, 201)

        return [
            create_session,
            list_sessions,
            show_session,
            update_session,
            delete_session,
            list_messages,
            post_message,
        ]

    async def _body(self, request: Request[Any, Any, Any], type: type[B], *, empty: bytes = b"") -> B:
        body = await read_body(request.receive, self._host.settings.max_body, request.scope["headers"])
        return decode(body or empty, type)

    def _limit(self, query: dict[str, str]) -> int:
        text = query.get("limit")
        if text is None:
            return self._config.page
        if text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _MAX_LIMIT:
            return int(text)
        raise Refused(bad_request(f"limit: expected a whole number from 1 to {_MAX_LIMIT}", param="limit"))


def _exchange(request: Request[Any, Any, Any]) -> Exchange:
    x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item] # the runner's own key
    return x


def _organization(request: Request[Any, Any, Any], session_id: str) -> str:
    x = _exchange(request)
    x[SESSION_ID] = session_id
    return x[PRINCIPAL].organization


def _query(request: Request[Any, Any, Any], *names: str) -> dict[str, str]:
    """Return the query parameters that the route knows; an unknown or repeated one is refused."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise Refused(bad_request(f"unknown query parameter, expected: {', '.join(names)}", param=name))
        if name in query:
            raise Refused(bad_request(f"{name}: given more than once", param=name))
        query[name] = storable(value, name)
    return query


def _answer(value: Any, status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json")
