"""Serves the OpenAPI document of the gateway's own routes, and a page that shows it; loads nothing from elsewhere."""

from __future__ import annotations

import asyncio
import gzip
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

import msgspec
from litestar import HttpMethod, Request, Response, route
from litestar.params import FromPath

from openclaw_gateway.api import Fact, Host, PluginConfig, Refused, declared, hookimpl, not_found
from openclaw_plugins.openapi.document import document

__all__ = ["OpenApi"]

_GET_AND_HEAD = [HttpMethod.GET, HttpMethod.HEAD]
# Litestar adds the charset to every text type.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "init.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# React sets style attributes through the DOM, which a policy does not touch; the icons are data: URLs in the CSS.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class OpenApi:
    """The document is written once, at the first request for it, from the declarations of all routes."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """No settings: what is documented is what the routes declare."""

    def __init__(self, config: Config, host: Host) -> None:
        self._host = host
        self._document: bytes | None = None

    @hookimpl
    def routes(self) -> list[Any]:
        @route(
            "/api/openapi.json",
            http_method=_GET_AND_HEAD,
            **declared(access="public", surface="docs", summary="This document"),
        )
        async def openapi() -> Response[bytes]:
            return Response(
                content=await asyncio.to_thread(self._written), status_code=200, media_type="application/json"
            )

        @route(
            "/api/docs",
            http_method=_GET_AND_HEAD,
            **declared(access="public", surface="docs", summary="A page that shows the document"),
        )
        async def page() -> Response[bytes]:
            return Response(
                content=_packed("index.html"),
                status_code=200,
                media_type="text/html",
                headers={"content-security-policy": _POLICY},
            )

        @route(
            "/api/docs/{name:str}",
            http_method=_GET_AND_HEAD,
            **declared(access="public", surface="docs", summary="A file of that page", errors=(404,)),
        )
        async def asset(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
            media_type = _ASSETS.get(name)
            if media_type is None:
                raise Refused(not_found("no such file"))
            headers = {"cache-control": "public, max-age=3600", "vary": "accept-encoding"}
            if not _has(f"{name}.gz"):
                body = _packed(name)
            elif "gzip" in request.headers.get("accept-encoding", ""):
                body = _packed(f"{name}.gz")
                headers["content-encoding"] = "gzip"
            else:
                body = gzip.decompress(_packed(f"{name}.gz"))
            return Response(content=body, status_code=200, media_type=media_type, headers=headers)

        return [openapi, page, asset]

    # In a thread: it takes some hundredths of a second.
    def _written(self) -> bytes:
        if self._document is None:
            gateway = self._host.gateway
            # It describes the port on which it is found.
            public = [route for route in gateway.routes if route.listener == "public"]
            self._document = msgspec.json.encode(document(public, gateway.version))
        return self._document


def _has(name: str) -> bool:
    return name in ("swagger-ui-bundle.js.gz", "swagger-ui.css.gz")


@cache
def _packed(name: str) -> bytes:
    return files(__package__).joinpath("ui", name).read_bytes()
