"""Serves the console: a page to try a key, a chat, a skill and sessions. It asks the API as every client does."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Annotated, Any, ClassVar

from litestar import HttpMethod, Request, Response, route
from msgspec import Meta

from openclaw_gateway.api import Fact, Host, PluginConfig, declared, hookimpl

__all__ = ["Console"]

_PAGE = "index.html"
#: the files beside the page; Litestar adds the charset to every text type
_FILES = {
    "app.js": "text/javascript",
    "api.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere. The last two refuse every sink that would read a text as HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class Console:
    """A page to try a key, a chat, a skill and sessions. It is public: the same for everybody, and without a secret."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.console]`"""

        path: Annotated[
            str, Meta(pattern=r"^(/[A-Za-z0-9_-]+)+$", description="Where the page is; its files are below it.")
        ] = "/console"

    def __init__(self, config: Config, host: Host) -> None:
        self._path = config.path
        *above, name = config.path[1:].split("/")
        self._name = name
        # Its links are relative, so that the page works behind a proxy that serves the gateway below a path.
        page = _read(_PAGE).replace(b"{name}", name.encode()).replace(b"{root}", b"../" * len(above) or b"./")
        self._page = _File(page, "text/html")
        self._files = {file: _File(_read(file), media_type) for file, media_type in _FILES.items()}

    @hookimpl
    def routes(self) -> list[Any]:
        beside = [_handler(f"{self._path}/{name}", file, "A file of the console") for name, file in self._files.items()]
        return [_handler(self._path, self._page, "The console, a page to try the API", name=self._name), *beside]


class _File:
    """A file as it is served: read once, and told apart from another release's by its tag."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._media_type = media_type
        self._headers = {
            "content-security-policy": _POLICY,
            # Kept and asked about each time: an upgrade is seen at once, and costs an answer without a body until then.
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        }

    def answer(self, known: str) -> Response[bytes]:
        """Return the file, or 304 where the client has it: `known` is its If-None-Match."""
        # A step that compresses makes the tag a weak one.
        if any(tag.strip().removeprefix("W/") in ("*", self._headers["etag"]) for tag in known.split(",")):
            return Response(content=b"", status_code=304, headers=self._headers)
        return Response(content=self._content, status_code=200, media_type=self._media_type, headers=self._headers)


def _handler(path: str, file: _File, summary: str, name: str = "") -> Any:
    @route(
        path,
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        **declared(access="public", surface="docs", summary=summary),
    )
    async def serve(request: Request[Any, Any, Any]) -> Response[bytes]:
        # Relative links would lead elsewhere from a path that ends in a slash.
        if name and request.scope["raw_path"].endswith(b"/"):
            return Response(content=b"", status_code=308, headers={"location": f"../{name}"})
        return file.answer(request.headers.get("if-none-match", ""))

    return serve


def _read(name: str) -> bytes:
    return files(__package__).joinpath("page", name).read_bytes()
