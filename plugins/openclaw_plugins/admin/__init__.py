"""Serves the administration of API keys, for operators and, held to their own organisation, for its administrators.

It decides who may grant what to whom. It keeps nothing itself, and shows a key's text once, to whoever made it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath
from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    TIER,
    AuditEntry,
    Fact,
    Host,
    KeyStore,
    PluginConfig,
    answer,
    body_of,
    declared,
    exchange_of,
    hookimpl,
    needs,
    page_limit,
    query_of,
)
from openclaw_plugins.admin.desk import Desk, OperatorDesk, OrganizationDesk
from openclaw_plugins.admin.shapes import AuditPage, Issued, Key, KeyPage, NewKey, NewOwnKey, Rotation

_MAX_LIMIT = 200
_LIMIT = Annotated[int, Meta(ge=1, le=_MAX_LIMIT)] | None
#: an answer that holds a key is not for any cache
_NO_STORE = {"cache-control": "no-store"}


class AdminApi:
    """Keys of every organisation behind the scope `admin`, keys of the caller's own behind the scope `keys`."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        keys: Annotated[str, needs(KeyStore), Meta(description="What makes and ends the keys.")] = "api_key"
        page: Annotated[int, Meta(ge=1, le=_MAX_LIMIT, description="Items of a page that asks for no number.")] = 50

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._keys = host.get(config.keys, KeyStore)

    @hookimpl
    def routes(self) -> list[Any]:
        operator = OperatorDesk(self._keys, self._host.clock)
        own = OrganizationDesk(self._keys, self._host.clock)
        return [
            *self._key_routes("/api/v1/admin/keys", "admin", operator, NewKey, "of all organisations"),
            *self._key_routes("/api/v1/keys", "keys", own, NewOwnKey, "of the caller's organisation"),
            self._audit_route(),
        ]

    def _key_routes(self, path: str, scope: str, desk: Desk[Any], body: type[Any], whose: str) -> list[Any]:
        one = path + "/{key_id:str}"
        behind: dict[str, Any] = {"access": "authenticated", "scopes": (scope,)}
        organization = {"organizationId": str | None} if body is NewKey else {}

        @post(
            path,
            status_code=201,
            **declared(
                **behind,
                summary=f"Make a key {whose}; the answer shows it this once",
                body=body,
                answer=Issued,
                status=201,
                errors=(400, 401, 403, 429, 503),
            ),
        )
        async def create_key(request: Request[Any, Any, Any]) -> Response[bytes]:
            asked = await body_of(request, body, self._host.settings.max_body, unique=True)
            return answer(await desk.create(exchange_of(request), asked), 201, _NO_STORE)

        @get(
            path,
            **declared(
                **behind,
                summary=f"List the keys {whose}, newest first",
                query={**organization, "limit": _LIMIT, "cursor": str | None},
                answer=KeyPage,
                errors=(400, 401, 403, 429, 503),
            ),
        )
        async def list_keys(request: Request[Any, Any, Any]) -> Response[bytes]:
            query = query_of(request, *organization, "limit", "cursor")
            return answer(
                await desk.list(
                    exchange_of(request),
                    query.get("organizationId"),
                    limit=page_limit(query, self._config.page, _MAX_LIMIT),
                    cursor=query.get("cursor"),
                )
            )

        @get(
            one,
            **declared(**behind, summary=f"Show a key {whose}", answer=Key, errors=(401, 403, 404, 429, 503)),
        )
        async def show_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> Response[bytes]:
            return answer(await desk.show(exchange_of(request), key_id))

        @post(
            one + "/rotate",
            status_code=201,
            **declared(
                **behind,
                summary=f"Make the successor of a key {whose}, which ends after the overlap",
                body=Rotation,
                answer=Issued,
                status=201,
                errors=(400, 401, 403, 404, 409, 429, 503),
            ),
        )
        async def rotate_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> Response[bytes]:
            asked = await body_of(request, Rotation, self._host.settings.max_body, empty=b"{}", unique=True)
            return answer(await desk.rotate(exchange_of(request), key_id, asked), 201, _NO_STORE)

        @delete(
            one,
            status_code=204,
            **declared(
                **behind, summary=f"Revoke a key {whose}, at once", status=204, errors=(401, 403, 404, 429, 503)
            ),
        )
        async def revoke_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> None:
            await desk.revoke(exchange_of(request), key_id)

        return [create_key, list_keys, show_key, rotate_key, revoke_key]

    def _audit_route(self) -> Any:
        @get(
            "/api/v1/admin/audit",
            **declared(
                access="authenticated",
                scopes=("admin",),
                summary="Who did what to which key, newest first",
                query={"organizationId": str | None, "limit": _LIMIT, "cursor": str | None},
                answer=AuditPage,
                errors=(400, 401, 403, 429, 503),
            ),
        )
        async def list_audit(request: Request[Any, Any, Any]) -> Response[bytes]:
            query = query_of(request, "organizationId", "limit", "cursor")
            page = await self._keys.audit(
                query.get("organizationId"),
                limit=page_limit(query, self._config.page, _MAX_LIMIT),
                cursor=query.get("cursor"),
            )
            entries: list[AuditEntry] = page.items
            return answer(AuditPage(entries=entries, next_cursor=page.next_cursor))

        return list_audit
