"""The way to an MCP server over streamable HTTP: the SDK's transport over a client that reaches checked addresses.

The same rules as for every skill's call: a name is resolved once a connection, every address of the answer must be
allowed, the connection goes to one of these, redirects and proxies of the environment are not known.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.streamable_http import streamable_http_client

from openclaw_plugins.skills.addresses import is_private_host, is_public

_CONNECT = 5.0
#: silence of a stream after which the SDK opens it anew
_READ = 300.0


@asynccontextmanager
async def streamable(url: str, headers: Mapping[str, str], *, private: bool, max_message: int) -> AsyncIterator[Any]:
    """Open the transport; nothing is sent yet."""
    timeout = httpx2.Timeout(_CONNECT, read=_READ)
    client = httpx2.AsyncClient(
        transport=Pinned(private=private, max_message=max_message),
        headers={**headers},
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
    )
    async with client, streamable_http_client(url, http_client=client, max_sse_event_size=max_message) as streams:
        yield streams


class Pinned(httpx2.AsyncBaseTransport):
    """Sends requests to checked addresses, and refuses what a skill may not take in."""

    def __init__(self, *, private: bool, max_message: int) -> None:
        self._allowed = is_private_host if private else is_public
        self._max_message = max_message
        self._inner = httpx2.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        address = await self._address(host, request.url.port or (443 if request.url.scheme == "https" else 80))
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,  # `Host` among them, as the name was
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        response = await self._inner.handle_async_request(pinned)
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise httpx2.ConnectError("the server redirects, which is not followed")
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, self._max_message)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _address(self, host: str, port: int) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise httpx2.ConnectError("the server's name cannot be resolved") from None
        addresses = [str(each[4][0]) for each in found]
        if not addresses or not all(self._allowed(address) for address in addresses):
            raise httpx2.ConnectError("the server's host has no address that may be reached")
        return addresses[0]


class _Bounded(httpx2.AsyncByteStream):
    """A body of at most so many bytes."""

    def __init__(self, inner: httpx2.AsyncByteStream, most: int) -> None:
        self._inner = inner
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._inner:
            size += len(piece)
            if size > self._most:
                raise httpx2.ReadError(f"the server sent more than {int(self._most)} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()
