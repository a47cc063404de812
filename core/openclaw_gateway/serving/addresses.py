"""Who is at the other end: the client's address, past the proxies that the operator trusts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Peers:
    """Trusted proxies. Forwarding headers of anyone else are not looked at."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)

    def client_of(self, scope: Any) -> tuple[str, bool]:
        """Return the client's address and whether our direct peer is trusted.

        Walks `X-Forwarded-For` from the right and stops at the first address that is no trusted proxy, so
        that what a client itself wrote there is never believed.
        """
        peer = scope.get("client")
        address: str = peer[0] if peer else ""
        if not self._networks or not self._trusts(address):
            return address, False
        forwarded = b",".join(v for k, v in scope["headers"] if k == b"x-forwarded-for").decode("latin-1")
        for hop in reversed([part.strip() for part in forwarded.split(",") if part.strip()]):
            if not _valid(hop):
                break
            address = hop
            if not self._trusts(hop):
                break
        return address, True

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)


def _valid(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def networks_of(texts: Iterable[str]) -> tuple[list[Network], list[int]]:
    """Read networks; return them, and the places of the texts that are none."""
    networks: list[Network] = []
    misread: list[int] = []
    for i, text in enumerate(texts):
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError:
            misread.append(i)
    return networks, misread


def loopback(host: str) -> bool:
    """Whether what listens on `host` can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
