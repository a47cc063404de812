"""What the gateway listens on: its sockets, its certificate, and what of either is refused at boot."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openclaw_gateway.config.document import GatewaySettings, Tls
from openclaw_gateway.errors import StartFailed
from openclaw_gateway.structs import Finding

BACKLOG = 2048
_NAME = re.compile(r"[\w.-]+")

#: bytes that the kernel takes ahead of what a peer has room for. Its own default grows to megabytes for each
#: reader that stalls, and nothing on our side would feel that it does. What is under way counts not.
AHEAD = 128 * 1024


def bind(host: str, port: int, count: int = 1) -> list[list[socket.socket]]:
    """Bind every address of `host`, `count` times, and return the sockets of each of so many processes.

    Linux spreads connections evenly over sockets that share an address; elsewhere all processes accept from one.
    Port 0 takes a free one, the same for all. Raises StartFailed where an address cannot be had.
    """
    shared = count > 1 and sys.platform.startswith("linux")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        if shared and port:
            for family, address in addresses:
                # Sockets that share an address would join those of a gateway that runs already, and take its requests.
                _bound(family, address, shared=False).close()
        processes: list[list[socket.socket]] = []
        for i in range(count):
            if i and not shared:
                processes.append([one.dup() for one in processes[0]])
                continue
            own: list[socket.socket] = []
            for family, address in addresses:
                if not port and (taken := [*own, *(processes[0] if processes else ())]):
                    address = (address[0], taken[0].getsockname()[1], *address[2:])
                own.append(_bound(family, address, shared=shared))
            processes.append(own)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartFailed(f"cannot listen on {host}:{port}: {reason}") from error
    return processes


def url(host: str, sockets: Iterable[socket.socket], *, tls: bool) -> str:
    """Where clients of this machine reach what is bound."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only names what is listened on
    shown = f"[{shown}]" if ":" in shown else shown
    port = next(iter(sockets)).getsockname()[1]
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def context_of(tls: Tls, directory: Path) -> ssl.SSLContext:
    """Make a server's TLS context, 1.2 or newer. Raises OSError (ssl.SSLError is one) where the pair does not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    load_pair(context, tls, directory)
    return context


def load_pair(context: ssl.SSLContext, tls: Tls, directory: Path) -> None:
    """Read certificate and key into a context; connections made from now on get them."""

    def encrypted() -> str:
        raise ssl.SSLError("the key is encrypted: nobody is there to ask for its passphrase")

    context.load_cert_chain(directory / tls.certificate, directory / tls.key, password=encrypted)


def findings(settings: GatewaySettings, directory: Path, used: Mapping[str, tuple[str, Any]]) -> Iterator[Finding]:
    """Say what cannot be listened on or served so. `used` maps the id of a plugin to its name and itself."""
    for at, host in _hosts(settings):
        if not _is_host(host):
            expected = "an address or the name of this machine, without brackets and without a port"
            yield Finding(at, "cannot be listened on", f'"{host}"', expected)
    if settings.workers > 1:
        yield from _too_many(settings.workers, used)
    if settings.tls is not None:
        try:
            context_of(settings.tls, directory)
        except OSError as error:
            yield Finding(
                ("gateway", "tls", "certificate"),
                f"this certificate and key cannot be used: {error.strerror or error}",
                expected="PEM files that belong together",
            )
    apart = settings.operations
    if apart is not None and apart.port and apart.port == settings.port:
        yield Finding(("gateway", "operations", "port"), "the same as gateway.port", expected="another port")


def unshared(instances: Mapping[str, Any]) -> list[str]:
    """Name the plugins whose state lives in one process."""
    return [id for id, plugin in instances.items() if getattr(plugin, "shared", True) is False]


def _hosts(settings: GatewaySettings) -> Iterator[tuple[tuple[str, ...], str]]:
    yield ("gateway", "host"), settings.host
    if settings.operations is not None:
        yield ("gateway", "operations", "host"), settings.operations.host


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _NAME.fullmatch(text) is not None
    return True


def _too_many(workers: int, used: Mapping[str, tuple[str, Any]]) -> Iterator[Finding]:
    if sys.platform == "win32":
        yield Finding(("gateway", "workers"), "only one process can serve on Windows", expected="workers = 1")
        return
    for id in unshared({id: plugin for id, (_, plugin) in used.items()}):
        message = (
            f"{workers} workers need stores that all of them share; "
            f"plugin {id!r} ({used[id][0]}) lives in one process, so its limits would lie"
        )
        yield Finding(("gateway", "workers"), message, expected="workers = 1")


def _bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    # With its protocol: asyncio switches Nagle's algorithm off only where the socket says that it is TCP.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if sys.platform.startswith("linux"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, AHEAD)  # what is accepted inherits it
        made.setblocking(False)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def unlisten(sockets: Iterable[socket.socket]) -> list[tuple[int, Any]]:
    """Close sockets, so that others of their address get what connects; return what `listen_again` takes."""
    addresses: list[tuple[int, Any]] = []
    for one in sockets:
        addresses.append((one.family, one.getsockname()))
        one.close()
    return addresses


def listen_again(addresses: Iterable[tuple[int, Any]]) -> list[socket.socket]:
    """Bind again, beside those that share the address."""
    return [_bound(family, address, shared=sys.platform.startswith("linux")) for family, address in addresses]
