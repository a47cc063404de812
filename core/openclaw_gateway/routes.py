"""What a route says of itself: who may call it, what it meters, what it takes and gives.

The declaration travels in the `opt` of a Litestar handler. From it the pipeline is proved at boot and the
OpenAPI document is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import msgspec
from litestar import Litestar
from litestar.exceptions import LitestarException
from litestar.routes import ASGIRoute, HTTPRoute, WebSocketRoute

from openclaw_gateway.config.problems import Problem
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.meters import REQUESTS, Meter

Access = Literal["public", "optional", "authenticated"]
Surface = Literal["own", "openai", "anthropic", "operations", "websocket", "docs"]

_OPT = "route"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """The declaration of one route; `path` and `methods` are filled in from the handler.

    `access`: public (no credential is looked at), optional (one is used where given), authenticated.
    `scopes`: all of these must be granted to the caller. `tiers`: only these may call; empty for all.
    `meters`: what one request emits before its handler runs. `message_meters`: what one WebSocket message emits.
    `charges_later`: what the handler emits itself, by `admission.charge`.
    `names_session`: a request may name a session, and the handler then calls `admission.in_session`.
    `body`, `answer`: Structs for the document; `status` of the good answer. `listener`: where it is served, which
    the configuration decides.
    """

    access: Access
    path: str = ""
    methods: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    meters: tuple[Meter, ...] = ()
    message_meters: tuple[Meter, ...] = ()
    charges_later: tuple[Meter, ...] = ()
    names_session: bool = False
    surface: Surface = "own"
    summary: str = ""
    query: Mapping[str, Any] = {}
    body: Any = None
    answer: Any = None
    status: int = 200
    errors: tuple[int, ...] = ()
    listener: Literal["public", "operations"] = "public"


#: stands for every request that no route matches: 404, 405, paths that cannot be parsed
UNMATCHED = Route(access="public", path="(unmatched)", surface="operations", summary="no route matched")


def declared(
    *,
    access: Access,
    meters: tuple[Meter, ...] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the keyword arguments that bind a declaration to a Litestar handler.

    An authenticated route meters `requests` unless it says otherwise. Raises ValueError where a value is of a wrong
    kind: a misspelt `access` would be none that asks for a credential.
    """
    if access not in get_args(Access):
        raise ValueError(f"access of a route: found {access!r}; expected one of {', '.join(get_args(Access))}")
    if meters is None:
        meters = (REQUESTS,) if access == "authenticated" else ()
    route = Route(access=access, meters=meters, **fields)
    try:
        msgspec.convert(msgspec.structs.asdict(route), Route)
    except msgspec.ValidationError as error:
        raise ValueError(f"declaration of a route: {error}") from None
    return {"opt": {_OPT: route}}


def application(handlers: Iterable[Any]) -> Litestar:
    """Return the application of all handlers. Raises ConfigError where they cannot stand beside one another."""
    from openclaw_gateway.faults import render_error

    handlers = list(handlers)
    try:
        return Litestar(
            route_handlers=handlers,
            openapi_config=None,
            logging_config=None,
            request_max_body_size=None,
            exception_handlers={Exception: render_error},
        )
    except LitestarException as error:
        message = f"the routes of the plugins do not fit together: {error.detail}"
        named = [h for h in handlers if any(f"'{path}'" in error.detail for path in getattr(h, "paths", ()))]
        if named:
            message += f" (declared in {' and '.join(sorted({h.fn.__module__ for h in named}))})"
        raise ConfigError([Problem(origin="plugins", path="", message=message)]) from error


class Bound(msgspec.Struct, frozen=True):
    """A declaration with the handler and the path that it belongs to; None where the handler has none."""

    handler: Any
    path: str
    methods: tuple[str, ...]
    declaration: Route | None

    @property
    def route(self) -> Route:
        assert self.declaration is not None
        return msgspec.structs.replace(self.declaration, path=self.path, methods=self.methods)


def bound_routes(app: Litestar, *, apart: bool = False) -> Iterator[Bound]:
    """Walk all routes of an application by path, one for each path and handler.

    `apart`: those of operations are served by a listener of their own.
    """
    for bound in _walk(app):
        if apart and bound.declaration is not None and bound.declaration.surface == "operations":
            bound = msgspec.structs.replace(
                bound, declaration=msgspec.structs.replace(bound.declaration, listener="operations")
            )
        yield bound


def _walk(app: Litestar) -> Iterator[Bound]:
    for route in sorted(app.routes, key=lambda r: r.path):
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.fn.__module__.startswith("litestar."):
                    continue  # Litestar adds an OPTIONS handler to every path
                methods = tuple(sorted(str(m) for m in handler.http_methods))
                yield Bound(handler, _template(route.path_format), methods, handler.opt.get(_OPT))
        elif isinstance(route, ASGIRoute):
            declaration = route.route_handler.opt.get(_OPT)
            methods = declaration.methods if declaration is not None else ()
            yield Bound(route.route_handler, _template(route.path_format), methods, declaration)
        elif isinstance(route, WebSocketRoute):
            declaration = route.route_handler.opt.get(_OPT)
            yield Bound(route.route_handler, _template(route.path_format), ("WEBSOCKET",), declaration)


def _template(path: str) -> str:
    return path if path == "/" else path.rstrip("/")
