"""Which addresses may be reached. Whatever is not plainly public is refused, in every way of writing it.

An address that carries another one inside (mapped, compatible, 6to4, Teredo, NAT64, ISATAP) is judged by both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

#: global by the registry, and still not a host of the public network
_NEVER = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",
            "100::/64",
            "2001::/23",
            "2002::/16",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)
#: where machines keep what only they should know: not even a private target may be there
_METADATA = tuple(
    map(ip_network, ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "fe80::/10", "fd00:ec2::254/128"))
)
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


def is_public(address: str) -> bool:
    """Whether a socket address is a host of the public network."""
    found = _parsed(address)
    return found is not None and all(_plainly_public(each) for each in _with_inner(found))


def is_private_host(address: str) -> bool:
    """Whether a declared private target may be here: any host, but none of the link and none that serves metadata."""
    found = _parsed(address)
    return found is not None and not any(
        each.is_multicast or each.is_unspecified or _in(each, _METADATA) or each == IPv4Address("255.255.255.255")
        for each in _with_inner(found)
    )


def _parsed(address: str) -> Address | None:
    try:
        return ip_address(address.partition("%")[0])
    except ValueError:
        return None


def _plainly_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not _in(address, _NEVER)
        and not _in(address, _METADATA)
    )


def _with_inner(address: Address) -> Iterator[Address]:
    """Yield the address, or the ones for which a network may take it."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    number = int(address)
    low = IPv4Address(number & 0xFFFFFFFF)
    if any(address in network for network in _NAT64) or (0xFFFF < number <= 0xFFFFFFFF):
        yield low
    if (number >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):
        yield low


def _in(address: Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)
