"""One HTTP upstream of a provider: what can be configured of it, and the two forms in which it is asked.

It retries nothing and follows no redirect; every failure leaves as UpstreamFailed, and none names a host or a key.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, PluginConfig, Secret, Size
from openclaw_plugins.providers.calls import Callee, Whole
from openclaw_plugins.providers.direct import DirectTransport
from openclaw_plugins.providers.measures import UpstreamMeasures
from openclaw_plugins.providers.proxied import ProxiedTransport
from openclaw_plugins.providers.spans import UpstreamSpans
from openclaw_plugins.providers.streamed import Streamed, Teller
from openclaw_plugins.providers.transport import Destination, Transport


class UpstreamConfig(PluginConfig, frozen=True, kw_only=True):
    """What every provider with an HTTP upstream can be told of it."""

    url: Annotated[
        str, Meta(pattern="^https?://", description="Base URL, up to and including the version, `.../v1` say.")
    ]
    headers: Annotated[dict[str, Secret], Meta(description="Sent with every request; values may be secrets.")] = (
        msgspec.field(default_factory=dict)
    )
    max_connections: Annotated[
        int, Meta(ge=1, le=10_000, description="Connections at the same time; more calls wait for one.")
    ] = 256
    verify_tls: Annotated[bool, Meta(description="Whether the upstream's certificate is checked.")] = True
    max_answer: Annotated[Size, Meta(description="Largest whole answer, and largest single event of a stream.")] = Size(
        32_000_000
    )
    transport: Annotated[
        Literal["direct", "aiohttp"],
        Meta(
            description="direct is the gateway's own and the cheaper; aiohttp also takes compressed answers "
            "and goes through a proxy."
        ),
    ] = "direct"
    proxy: Annotated[
        Secret | None, Meta(description="URL of a proxy on the way, `http://user:password@host:port` say, for aiohttp.")
    ] = None


def revealed(headers: Mapping[str, Secret]) -> dict[str, str]:
    """Return the headers of a configuration as they are sent."""
    return {name: value.reveal() for name, value in headers.items()}


class Upstream:
    """One upstream. `headers` carry its credential, `key`, beside those that the operator wants sent."""

    def __init__(self, host: Host, config: UpstreamConfig, *, headers: Mapping[str, str], key: str) -> None:
        if config.proxy is not None and config.transport != "aiohttp":
            raise ValueError('proxy: only transport = "aiohttp" goes through one')
        destination = Destination(
            url=config.url.rstrip("/"),
            headers={
                "Content-Type": "application/json",
                # Compressed event streams arrive in lumps.
                "Accept-Encoding": "identity",
                **headers,
            },
            max_connections=config.max_connections,
            verify_tls=config.verify_tls,
            proxy=config.proxy.reveal() if config.proxy is not None else None,
        )
        self._transport: Transport = (
            DirectTransport(destination) if config.transport == "direct" else ProxiedTransport(destination)
        )
        self._max_answer = config.max_answer
        self.url = destination.url
        #: texts of the configuration that no client may see
        self.secrets = (
            key,
            urlsplit(config.url).hostname or "",
            *(value for value in headers.values() if len(value) >= 8),
        )
        self._callee = Callee(
            host.id,
            self._transport,
            {alias: model.timeouts.connect for alias, model in host.document.models.items()},
            self.secrets,
            UpstreamMeasures(host),
            UpstreamSpans(host.id, config.url),
            host.logger,
        )

    def opened(self) -> AbstractAsyncContextManager[None]:
        return self._transport.opened()

    def whole(
        self,
        path: str,
        operation: str,
        call: ModelCall,
        shape: msgspec.json.Decoder[Any],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, bytes]:
        """Return the answer to a call that does not stream, which `shape` must be able to decode.

        `headers` are this call's own.
        """
        return Whole(self._callee, path, operation, call, body, headers).answer(shape, self._max_answer)

    def streamed(
        self,
        path: str,
        call: ModelCall,
        teller: Teller,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Streamed:
        """Return the chunks of a call that streams, as `teller` tells its events."""
        return Streamed(self._callee, path, call, teller, self._max_answer, body, headers)
