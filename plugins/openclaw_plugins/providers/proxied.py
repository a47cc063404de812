"""The slow way to an upstream, by aiohttp: for proxies, compressed answers, and TLS that the fast one cannot speak."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from openclaw_plugins.providers.transport import ConnectionLost, ConnectTimeout, Destination, Malformed, Unreachable

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession


class ProxiedTransport:
    """The same interface on aiohttp's pool."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._client: ClientSession

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # A gateway that does not come this way does not pay for importing the client.
        import aiohttp

        destination = self._destination
        connector = aiohttp.TCPConnector(limit=destination.max_connections, ssl=destination.verify_tls)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=destination.headers,
            # A cookie that one caller's answer sets must not travel with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**16,
            proxy=destination.proxy,
        ) as self._client:
            yield

    async def ask(
        self, path: str, headers: Mapping[str, str], body: bytes, *, connect_within: float, deadline: float
    ) -> ProxiedAnswer:
        import aiohttp

        try:
            async with asyncio.timeout_at(deadline):
                response = await self._client.post(
                    f"{self._destination.url}/{path}",
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_within),
                )
        except aiohttp.ConnectionTimeoutError:
            raise ConnectTimeout from None
        except TimeoutError:
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError, aiohttp.InvalidURL) as error:
            raise Unreachable(type(error).__name__) from error
        except aiohttp.ClientResponseError as error:
            raise Malformed(type(error).__name__) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(type(error).__name__) from error
        return ProxiedAnswer(response)


class ProxiedAnswer:
    """One answer of aiohttp's."""

    __slots__ = ("_response", "status")

    def __init__(self, response: ClientResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return {name.lower(): value for name, value in self._response.headers.items()}

    @property
    def ended(self) -> bool:
        return False  # to read on is how aiohttp says that an answer was cut

    async def read(self, deadline: float) -> bytes:
        import aiohttp

        try:
            async with asyncio.timeout_at(deadline):
                return await self._response.content.readany()
        except TimeoutError:
            raise
        except aiohttp.ClientPayloadError as error:
            # It does not tell a cut answer from one that is framed wrong.
            raise ConnectionLost(type(error).__name__) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionLost(type(error).__name__) from error

    async def each(self, take: Callable[[bytes], bool], next_deadline: Callable[[], float]) -> None:
        while piece := await self.read(next_deadline()):
            if not take(piece):
                return
        take(b"")

    def release(self) -> None:
        self._response.release()

    def close(self) -> None:
        # Gives a connection whose answer was read to its end back, and cuts any other.
        self._response.release()
