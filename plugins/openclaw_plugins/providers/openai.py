"""Speaks to any upstream with OpenAI's chat completion API; passes bodies on as they are, and never its secrets.

A stream that ends without `[DONE]` is a cut one, unless every choice has already told its `finish_reason`: then
nothing of the answer can be missing, and some servers never send the marker. An answer that is not streamed has
its first byte when all of it is generated: a model's `first_byte` bounds that too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, PluginConfig, Secret, Size, UpstreamFailed, hookimpl
from openclaw_plugins.providers.measures import upstream_measures
from openclaw_plugins.providers.progress import Progress, Times
from openclaw_plugins.providers.sse import EventReader, EventTooLong
from openclaw_plugins.providers.upstream_errors import broken, refused, timed_out

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_LARGEST_ERROR = 65_536


class _Answer(msgspec.Struct):
    choices: list[Any]


class _Embeddings(msgspec.Struct):
    data: list[Any]


class OpenAI:
    """A pool of connections to one upstream. Retries nothing: what was sent may have been paid for."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        url: Annotated[
            str, Meta(pattern="^https?://", description="Base URL, up to and including the version, `.../v1` say.")
        ]
        api_key: Annotated[Secret | None, Meta(description="Sent as the bearer token.")] = None
        headers: Annotated[dict[str, str], Meta(description="Sent with every request.")] = msgspec.field(
            default_factory=dict
        )
        max_connections: Annotated[
            int, Meta(ge=1, le=10_000, description="Connections at the same time; more calls wait for one.")
        ] = 256
        verify_tls: Annotated[bool, Meta(description="Whether the upstream's certificate is checked.")] = True
        max_answer: Annotated[Size, Meta(description="Largest whole answer, and largest single event of a stream.")] = (
            Size(32_000_000)
        )

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._id = host.id
        self._url = config.url.rstrip("/")
        self._logger = host.logger
        self._timeouts = {alias: model.timeouts for alias, model in host.document.models.items()}
        self._measures = upstream_measures(host.registry)
        key = config.api_key.reveal() if config.api_key is not None else ""
        self._headers = {
            "Content-Type": "application/json",
            # Compressed event streams arrive in lumps.
            "Accept-Encoding": "identity",
            **config.headers,
        }
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        hostname = urlsplit(config.url).hostname or ""
        self._secrets = (key, hostname, *(v for v in config.headers.values() if len(v) >= 8))
        self._client: ClientSession

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        # A gateway that only echoes does not pay for importing the client.
        import aiohttp

        connector = aiohttp.TCPConnector(limit=self._config.max_connections, ssl=self._config.verify_tls)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            # A cookie that one caller's answer sets must not travel with another's request.
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=2**16,
        ) as self._client:
            yield

    async def complete(self, call: ModelCall) -> bytes:
        return await self._whole("chat/completions", "chat", call, _Answer)

    async def embed(self, call: ModelCall) -> bytes:
        return await self._whole("embeddings", "embeddings", call, _Embeddings)

    async def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        async with self._exchange("chat/completions", "stream", call) as (response, times):
            reader = EventReader(self._config.max_answer)
            progress = Progress()
            while piece := await times.read(response):
                for event in reader.feed(piece):
                    data = progress.take(event)
                    if data is not None:
                        times.answered()
                        yield data
                if progress.done:
                    return
            for event in reader.finish():
                data = progress.take(event)
                if data is not None:
                    yield data
            if not progress.whole:
                raise broken("the stream was cut")

    async def _whole(self, path: str, operation: str, call: ModelCall, shape: type[msgspec.Struct]) -> bytes:
        async with self._exchange(path, operation, call) as (response, times):
            parts, size = [], 0
            while piece := await times.read(response):
                times.answered()
                size += len(piece)
                if size > self._config.max_answer:
                    raise broken("its answer is too large")
                parts.append(piece)
            body = b"".join(parts)
            try:
                msgspec.json.decode(body, type=shape)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise broken("its answer cannot be read") from None
            return body

    @asynccontextmanager
    async def _exchange(
        self, path: str, operation: str, call: ModelCall
    ) -> AsyncIterator[tuple[ClientResponse, Times]]:
        """Send the call; yield the answer once its status is good. All failures leave as UpstreamFailed."""
        import aiohttp

        started = time.perf_counter()
        times = Times(call)
        response: ClientResponse | None = None
        try:
            async with asyncio.timeout_at(times.next_deadline()):
                response = await self._client.post(
                    f"{self._url}/{path}",
                    data=call.body,
                    headers=self._headers_of(call),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout(call)),
                )
                if response.status != 200:
                    body = await _error_body(response)
                    raise refused(response.status, response.headers, body, self._secrets)
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
                kind, what = "unreachable", "it cannot be reached"
            else:
                kind, what = "connection_lost", "the connection was lost"
            raise self._failed(operation, call, broken(what), kind, cause) from None
        finally:
            if response is not None:
                # Gives a connection whose answer was read to its end back to the pool and cuts any other,
                # so that an upstream notices at once when nobody listens any more.
                response.release()
            self._measures.seconds.labels(self._id, operation).observe(time.perf_counter() - started)

    def _headers_of(self, call: ModelCall) -> Mapping[str, str]:
        headers = {"Accept": "text/event-stream" if call.stream else "application/json"}
        if call.request_id is not None:
            headers["x-request-id"] = call.request_id
        return headers

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


async def _error_body(response: ClientResponse) -> bytes:
    """Read what an error says, as much as could be of use."""
    body = b""
    while len(body) < _LARGEST_ERROR and (piece := await response.content.readany()):
        body += piece
    return body
