"""Sends answers in gzip to clients that take it; never event streams, and nothing whose end it does not know.

An answer that holds a secret beside what a stranger chose can be guessed by its compressed length (BREACH). Here a
credential is a header and no cookie, so no stranger's page can ask in a user's name; keep it off where yours can.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import Exchange, Fact, Host, PluginConfig, ResponseHead, Route, Size, hookimpl

#: zlib's way to say gzip: a header and a checksum around the largest window
_GZIP = 16 + zlib.MAX_WBITS
_WITHOUT_BODY = frozenset({204, 205, 206, 304})


class _Body:
    """A body on its way: what is left of it, and the state of its compression."""

    __slots__ = ("compressor", "left")

    def __init__(self, length: int, level: int) -> None:
        self.left = length
        self.compressor = zlib.compressobj(level, zlib.DEFLATED, _GZIP)


_BODY: Fact[_Body] = Fact("compressed_body")


class Compression:
    """Compresses whole answers of certain types and sizes, piece by piece as they go out."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        types: Annotated[
            tuple[str, ...],
            Meta(description="Media types that are compressed; `text/*` stands for all but event streams."),
        ] = ("application/json", "application/problem+json", "application/javascript", "image/svg+xml", "text/*")
        min_size: Annotated[Size, Meta(description="Smallest body that is worth it.")] = Size(1_000)
        max_size: Annotated[
            Size, Meta(description="Largest body; compressing one holds the process for about 10 ms a megabyte.")
        ] = Size(256_000)
        level: Annotated[int, Meta(ge=1, le=9, description="From 1, fast, to 9, small.")] = 4

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._types = frozenset(name.lower().encode() for name in config.types if not name.endswith("/*"))
        self._groups = tuple(name[:-1].lower().encode() for name in config.types if name.endswith("/*"))

    @hookimpl
    def applies(self, route: Route) -> bool:
        return route.methods != ("WEBSOCKET",)

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        found = {name: value for name, value in head.headers if name in _READ}
        length = _length(found)
        if length is None or head.status in _WITHOUT_BODY or not self._takes(found):
            return
        config = self._config
        if not config.min_size <= length <= config.max_size:
            return
        vary = found.get(b"vary")
        if vary != b"*":
            # Also of what goes out as it is: a cache must not give it to one who takes gzip, nor the other way round.
            head.set(b"vary", b"accept-encoding" if vary is None else vary + b", accept-encoding")
        if x.kind != "http" or x.method == "HEAD" or not accepted(b", ".join(x.headers(b"accept-encoding"))):
            return
        head.headers = [header for header in head.headers if header[0] != b"content-length"]
        head.set(b"content-encoding", b"gzip")
        if (tag := found.get(b"etag")) is not None and not tag.startswith(b"W/"):
            head.set(b"etag", b"W/" + tag)  # RFC 9110 8.8.1: the bytes are others now
        x[_BODY] = _Body(length, config.level)

    @hookimpl
    def on_chunk(self, x: Exchange, data: bytes) -> bytes | None:
        body = x.get(_BODY)
        if body is None:
            return None
        body.left -= len(data)
        sent = body.compressor.compress(data)
        return sent if body.left > 0 else sent + body.compressor.flush()

    def _takes(self, headers: dict[bytes, bytes]) -> bool:
        kind = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
        if kind == b"text/event-stream" or b"content-encoding" in headers:
            return False
        if b"no-transform" in headers.get(b"cache-control", b""):
            return False
        return kind in self._types or kind.startswith(self._groups)


#: the headers of an answer that decide
_READ = frozenset(
    {b"content-type", b"content-length", b"content-encoding", b"cache-control", b"vary", b"etag"},
)


def accepted(header: bytes) -> bool:
    """Whether an `Accept-Encoding` takes gzip (RFC 9110 12.5.3): named, or by `*`, and not with `q=0`."""
    weights: dict[bytes, bool] = {}
    for part in header.lower().split(b","):
        name, _, parameters = part.partition(b";")
        weight = parameters.replace(b" ", b"").removeprefix(b"q=")
        weights[name.strip()] = not parameters or weight.strip(b"0.") != b""
    return weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", False)))


def _length(headers: dict[bytes, bytes]) -> int | None:
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else None
