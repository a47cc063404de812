"""A pool of connections to one HTTP upstream, and the one way in which a call of it succeeds or fails.

It retries nothing and follows no redirect; every failure leaves as UpstreamFailed, and none names a host or a key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from openclaw_gateway.api import Host, ModelCall, UpstreamFailed, trace_headers
from openclaw_plugins.providers.measures import upstream_measures
from openclaw_plugins.providers.progress import Times
from openclaw_plugins.providers.spans import upstream_span
from openclaw_plugins.providers.sse import Event, EventReader, EventTooLong
from openclaw_plugins.providers.upstream_errors import broken, refused, timed_out

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_LARGEST_ERROR = 65_536


class Streamed:
    """The events of one answer, as they come. Who reads them says to `times` when content has begun."""

    __slots__ = ("_ended", "_reader", "_response", "times")

    def __init__(self, response: ClientResponse, times: Times, reader: EventReader) -> None:
        self._response = response
        self._reader = reader
        self._ended = False
        self.times = times

    async def events(self) -> list[Event]:
        """Return the next events; none at the end."""
        while not self._ended:
            piece = await self.times.read(self._response)
            self._ended = not piece
            if events := list(self._reader.feed(piece) if piece else self._reader.finish()):
                return events
        return []


class Upstream:
    """One upstream. `secrets` are the texts of its configuration that no client may see."""

    def __init__(
        self,
        host: Host,
        *,
        url: str,
        headers: Mapping[str, str],
        key: str,
        max_connections: int,
        verify_tls: bool,
        max_answer: int,
    ) -> None:
        self._id = host.id
        self._url = url.rstrip("/")
        self._logger = host.logger
        self._timeouts = {alias: model.timeouts for alias, model in host.document.models.items()}
        self._measures = upstream_measures(host)
        self._max_connections = max_connections
        self._verify_tls = verify_tls
        self._max_answer = max_answer
        self._headers = {
            "Content-Type": "application/json",
            # Compressed event streams arrive in lumps.
            "Accept-Encoding": "identity",
            **headers,
        }
        hostname = urlsplit(url).hostname or ""
        self.secrets = (key, hostname, *(value for value in headers.values() if len(value) >= 8))
        self._client: ClientSession

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # A gateway that only echoes does not pay for importing the client.
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self._max_connections, ssl=self._verify_tls)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            # A cookie that one caller's answer sets must not travel with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**16,
        ) as self._client:
            yield

    async def whole(
        self, path: str, operation: str, call: ModelCall, shape: type[msgspec.Struct], body: bytes | None = None
    ) -> bytes:
        """Return the answer to a call that does not stream, which must be of `shape`."""
        async with self._exchange(path, operation, call, body) as (response, times):
            parts, size = [], 0
            while piece := await times.read(response):
                times.answered()
                size += len(piece)
                if size > self._max_answer:
                    raise broken("its answer is too large")
                parts.append(piece)
            answer = b"".join(parts)
            try:
                msgspec.json.decode(answer, type=shape)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise broken("its answer cannot be read") from None
            return answer

    @asynccontextmanager
    async def streamed(self, path: str, call: ModelCall, body: bytes | None = None) -> AsyncIterator[Streamed]:
        """Open a stream. What its reader raises within the block is this call's failure."""
        async with self._exchange(path, "stream", call, body) as (response, times):
            yield Streamed(response, times, EventReader(self._max_answer))

    @asynccontextmanager
    async def _exchange(
        self, path: str, operation: str, call: ModelCall, body: bytes | None
    ) -> AsyncIterator[tuple[ClientResponse, Times]]:
        """Send the call, as one span of the caller's trace; yield the answer once its status is good."""
        with upstream_span(call, self._id, operation, self._url) as span:
            async with self._sent(path, operation, call, body, trace_headers(span)) as answer:
                yield answer

    @asynccontextmanager
    async def _sent(
        self, path: str, operation: str, call: ModelCall, body: bytes | None, traced: Mapping[str, str]
    ) -> AsyncIterator[tuple[ClientResponse, Times]]:
        import aiohttp

        started = time.perf_counter()
        times = Times(call)
        response: ClientResponse | None = None
        try:
            async with asyncio.timeout_at(times.next_deadline()):
                response = await self._client.post(
                    f"{self._url}/{path}",
                    data=call.body if body is None else body,
                    headers={**_headers_of(call), **traced},
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout(call)),
                )
                if response.status != 200:
                    raise refused(response.status, response.headers, await _error_body(response), self.secrets)
            yield response, times
        except UpstreamFailed as error:
            self._failed(operation, call, error, error.code.lower())
            raise
        except EventTooLong:
            raise self._failed(operation, call, broken("one event of its stream is too large"), "too_large") from None
        except aiohttp.ConnectionTimeoutError as cause:
            raise self._failed(operation, call, timed_out("connect"), "connect_timeout", cause) from None
        except TimeoutError as cause:
            kind = f"{times.phase.replace(' ', '_')}_timeout"
            raise self._failed(operation, call, timed_out(times.phase), kind, cause) from None
        except (aiohttp.ClientError, OSError) as cause:
            if isinstance(cause, (aiohttp.ClientConnectorError, aiohttp.InvalidURL)):
                kind, failure = "unreachable", broken("it cannot be reached", "unreachable")
            else:
                kind, failure = "connection_lost", broken("the connection was lost")
            raise self._failed(operation, call, failure, kind, cause) from None
        finally:
            if response is not None:
                # Gives a connection whose answer was read to its end back to the pool and cuts any other,
                # so that an upstream notices at once when nobody listens any more.
                response.release()
            self._measures.seconds.labels(self._id, operation).observe(time.perf_counter() - started)

    def _connect_timeout(self, call: ModelCall) -> float:
        timeouts = self._timeouts.get(call.model)
        return timeouts.connect if timeouts is not None else call.first_byte_timeout

    def _failed(
        self,
        operation: str,
        call: ModelCall,
        error: UpstreamFailed,
        error_type: str,
        cause: BaseException | None = None,
    ) -> UpstreamFailed:
        self._measures.errors.labels(self._id, operation, error_type).inc()
        # A request that the upstream finds fault with is its sender's matter, and its text may quote the prompt.
        if error.status >= 500:
            fields = {
                "requestId": call.request_id,
                "operation": operation,
                "errorType": error_type,
                "status": error.status,
                "cause": type(cause).__name__ if cause is not None else None,
            }
            self._logger.warning("upstream failed: %s", error, extra={"fields": fields})
        return error


def _headers_of(call: ModelCall) -> Mapping[str, str]:
    headers = {"Accept": "text/event-stream" if call.stream else "application/json"}
    if call.request_id is not None:
        headers["x-request-id"] = call.request_id
    return headers


async def _error_body(response: ClientResponse) -> bytes:
    """Read what an error says, as much as could be of use."""
    body = b""
    while len(body) < _LARGEST_ERROR and (piece := await response.content.readany()):
        body += piece
    return body
