"""Speaks to one address of a service that knows about credentials, within bounds of time, size and connections.

It follows no redirect, keeps no cookie, uses no proxy of the environment, and goes nowhere but to its address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from prometheus_client import Counter

from openclaw_gateway.api import Host, Spread, StoreUnavailable

if TYPE_CHECKING:
    from aiohttp import ClientSession

#: the same buckets as for every other service behind the gateway, whose series these are
_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PIECE: Final = 16_384


def check_url(field: str, url: str) -> None:
    """Raise ValueError for an address at which answers could be forged, or that carries a secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"{field}: not an address such as https://auth.example.com/keys")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{field}: holds a user or a password, which logs would show")
    if parts.fragment:
        raise ValueError(f"{field}: holds a fragment, which is never sent")
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise ValueError(f"{field}: http, where anyone on the way could change the answer; expected https")


class Remote:
    """One address. Every way in which it fails is StoreUnavailable: the answer is then not known."""

    def __init__(
        self, url: str, host: Host, *, name: str, operation: str, timeout: float, max_bytes: int, connections: int = 4
    ) -> None:
        self._url = url
        #: what logs and refusals call it
        self.name = name
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._connections = connections
        self._seconds = host.metric(
            Spread,
            "external_service_duration_seconds",
            "How long calls of services behind the gateway take.",
            ("target", "operation"),
            buckets=_BUCKETS,
        ).labels(host.id, operation)
        self._errors = host.metric(
            Counter,
            "external_service_errors_total",
            "Calls of services behind the gateway that failed.",
            ("target", "operation", "error_type"),
        )
        self._labels = (host.id, operation)
        self._session: ClientSession

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # A gateway that asks nobody does not pay for importing the client.
        import aiohttp

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            # What is compressed could be far larger than what was read.
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as self._session:
            yield

    async def ask(
        self, method: Literal["GET", "POST"], *, form: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Return the body of an answer with status 200. Raises StoreUnavailable."""
        import aiohttp

        started = time.perf_counter()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._session.request(method, self._url, data=form, headers=headers, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise self.failed(f"HTTP_{response.status}", f"it answered with status {response.status}")
                parts, size = [], 0
                while piece := await response.content.read(_PIECE):
                    size += len(piece)
                    if size > self._max_bytes:
                        raise self.failed("too_large", "its answer is too large")
                    parts.append(piece)
                return b"".join(parts)
        except TimeoutError:
            raise self.failed("timeout", "it did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self.failed("connection", f"it cannot be spoken to ({type(error).__name__})") from None
        finally:
            self._seconds.observe(time.perf_counter() - started)

    def failed(self, kind: str, reason: str) -> StoreUnavailable:
        """Count a failure, an answer that cannot be read too, and return what to raise."""
        self._errors.labels(*self._labels, kind).inc()
        return StoreUnavailable(self.name, reason)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
