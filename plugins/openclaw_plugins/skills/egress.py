"""The only way out for skills: an HTTP client that connects to checked addresses and to nothing else.

A name is resolved once, every address of the answer must be allowed, and the connection is made to one of these: there
is no second look-up to be lied to. The address is checked again where the socket is made. Redirects are not followed,
proxies and cookies are not known, and what a service sends is bounded in size, time and type.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from openclaw_gateway.api import SkillFailed
from openclaw_plugins.skills.addresses import is_private_host, is_public
from openclaw_plugins.skills.places import Place

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from aiohttp.abc import AbstractResolver

_READABLE = ("application/json", "text/", "application/xml", "application/xhtml+xml", "application/yaml")
_CONNECT = 5.0


class Answer(NamedTuple):
    """What a service said."""

    status: int
    content_type: str
    text: str


class Egress:
    """Two clients: one for the public network, one for targets that the operator declared as private."""

    def __init__(self, *, max_connections: int, resolver: Callable[[], AbstractResolver] | None = None) -> None:
        self._max_connections = max_connections
        self._resolver = resolver
        self._public: ClientSession
        self._private: ClientSession

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # A gateway without such skills does not pay for importing the client.
        async with AsyncExitStack() as stack:
            self._public = await stack.enter_async_context(self._client(is_public))
            self._private = await stack.enter_async_context(self._client(is_private_host))
            yield

    async def call(
        self,
        place: Place,
        *,
        method: str,
        headers: Mapping[str, str],
        body: bytes | None,
        max_bytes: int,
        private: bool = False,
    ) -> Answer:
        """Call a place. Raises SkillFailed; its text names no address."""
        import aiohttp
        from yarl import URL

        allowed = is_private_host if private else is_public
        if place.literal and not allowed(place.host):
            raise _refused()
        client = self._private if private else self._public
        try:
            async with client.request(
                method,
                URL(place.url, encoded=True),
                data=body,
                headers={"Accept-Encoding": "identity", "Accept": "application/json, text/*;q=0.9", **headers},
                allow_redirects=False,
            ) as response:
                if 300 <= response.status < 400:
                    raise SkillFailed("the service redirects, which is not followed", error_type="redirect")
                content_type = response.content_type.lower()
                if not (content_type.startswith(_READABLE) or content_type.endswith(("+json", "+xml"))):
                    message = f"the service answered {response.status} with something that is no text"
                    raise SkillFailed(message, error_type="content_type")
                data = await _read(response.content, max_bytes)
                charset = response.charset or "utf-8"
                try:
                    text = data.decode(charset, "replace")
                except LookupError:
                    text = data.decode("utf-8", "replace")
                return Answer(response.status, content_type, text.replace("\x00", ""))
        except _NotAllowed:
            raise _refused() from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, _NotAllowed):
                raise _refused() from None
            raise SkillFailed("the service cannot be reached", error_type="unreachable") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError):
                raise SkillFailed("the service cannot be reached in time", error_type="unreachable") from error
            raise SkillFailed("the connection to the service was lost", error_type="connection_lost") from error

    def _client(self, allowed: Callable[[str], bool]) -> ClientSession:
        import aiohttp

        def checked_socket(info: Any) -> socket.socket:
            family, type, protocol, _, address = info
            if not allowed(str(address[0])):
                raise _NotAllowed("not an address that skills may reach")
            return socket.socket(family, type, protocol)

        inner = self._resolver() if self._resolver is not None else aiohttp.ThreadedResolver()
        connector = aiohttp.TCPConnector(
            resolver=_checking(inner, allowed),
            use_dns_cache=False,
            limit=self._max_connections,
            socket_factory=checked_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            # The run itself has a time-out, which cancels.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
            max_line_size=8_190,
            max_field_size=8_190,
        )


class _NotAllowed(OSError):
    """An address that skills may not reach."""


def _refused() -> SkillFailed:
    return SkillFailed("the host has no address that may be reached", error_type="address_refused")


def _checking(inner: AbstractResolver, allowed: Callable[[str], bool]) -> AbstractResolver:
    from aiohttp.abc import AbstractResolver

    class CheckingResolver(AbstractResolver):
        """Passes on answers of which every address is allowed: one that is not is a name that points inside."""

        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Any]:
            found = await inner.resolve(host, port, family)
            if not all(allowed(str(each["host"])) for each in found):
                raise _NotAllowed("not an address that skills may reach")
            return list(found)

        async def close(self) -> None:
            await inner.close()

    return CheckingResolver()


async def _read(content: Any, max_bytes: int) -> bytes:
    parts, size = [], 0
    while piece := await content.readany():
        size += len(piece)
        if size > max_bytes:
            raise SkillFailed(f"the service sent more than {int(max_bytes)} bytes", error_type="output_too_large")
        parts.append(piece)
    return b"".join(parts)
