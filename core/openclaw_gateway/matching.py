"""Which compiled route a request meets: the one that Litestar's router finds, or a refusal in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from litestar.exceptions import MethodNotAllowedException

from openclaw_gateway.refusals import Refusal, method_not_allowed, not_found

if TYPE_CHECKING:
    from litestar import Litestar

    from openclaw_gateway.pipeline import CompiledRoute


class Matching:
    """Finds routes. `routes` maps (id of Litestar's handler, path template) to the compiled route."""

    __slots__ = ("_find", "_methods", "_plain", "_routes", "_unmatched")

    def __init__(
        self, app: Litestar, routes: Mapping[tuple[int, str], CompiledRoute], unmatched: CompiledRoute
    ) -> None:
        self._find = app.asgi_router.handle_routing
        self._routes = routes
        self._unmatched = unmatched
        #: path template → the methods that are declared for it, for `Allow`
        self._methods: dict[str, set[str]] = {}
        for (_, template), compiled in routes.items():
            self._methods.setdefault(template, set()).update(compiled.route.methods)
        #: (path, method) → its route, where no parameter stands in the path: found once, and then known
        self._plain: dict[tuple[str, str], CompiledRoute] = {}

    def http(self, path: str, method: str) -> tuple[CompiledRoute, Refusal | None]:
        """Return the route of a request; that of whatever has none, with why, where it has none."""
        known = self._plain.get((path, method))
        if known is not None:
            return known, None
        normal = path.rstrip("/") or "/"
        try:
            _, handler, _, _, template = self._find(normal, method)
        except MethodNotAllowedException as error:
            allow = (error.headers or {}).get("allow", "").split(", ")
            return self._unmatched, method_not_allowed(method, [a for a in allow if a and a != "OPTIONS"])
        except Exception:  # noqa: BLE001 - every way in which a path fails to be a route is a 404
            return self._unmatched, not_found("no such route")
        template = template.rstrip("/") or "/"
        compiled = self._routes.get((id(handler), template))
        if compiled is None or method not in compiled.route.methods:
            # Litestar answers OPTIONS everywhere and lets an `@asgi` handler take every method; we do not.
            there = self._methods.get(template)  # what the other listener serves is nothing here
            return self._unmatched, method_not_allowed(method, there) if there else not_found("no such route")
        if path == template:
            self._plain[path, method] = compiled
        return compiled, None

    def websocket(self, path: str) -> tuple[CompiledRoute, Refusal | None]:
        """The same for a handshake."""
        try:
            _, handler, _, _, template = self._find(path.rstrip("/") or "/", None)
        except Exception:  # noqa: BLE001 - every way in which a path fails to be a route is a 404
            return self._unmatched, not_found("no such route")
        compiled = self._routes.get((id(handler), template.rstrip("/") or "/"))
        if compiled is None or compiled.route.methods != ("WEBSOCKET",):
            return self._unmatched, not_found("no WebSocket here")
        return compiled, None
