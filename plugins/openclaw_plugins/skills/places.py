"""Reads where a call goes, strictly: one spelling of a URL is understood, and an allow-list says which hosts.

It resolves nothing and opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

import msgspec

_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"^(?!-)[a-z0-9_-]{1,63}(?<!-)$")
_NUMBER = re.compile(r"^(?:\d+|0x[0-9a-f]*)$")
#: what no URL holds that means what it says
_ODD = re.compile(r"[\x00-\x20\x7f-\x9f\\<>\"`{}|^]|[^\x00-\x7f]")
_LONGEST = 2_048


class BadPlace(ValueError):
    """A URL that is not understood, or whose host is not allowed; the text may be shown."""


class Place(msgspec.Struct, frozen=True):
    """Where a URL leads."""

    scheme: str
    host: str
    port: int
    url: str

    @property
    def literal(self) -> bool:
        """Whether the host is an address, and no name."""
        return ":" in self.host or self.host.rsplit(".", 1)[-1].isdigit()


def place_of(url: str) -> Place:
    """Read an absolute URL. Raises BadPlace for whatever two readers could understand in two ways."""
    if len(url) > _LONGEST:
        raise BadPlace(f"longer than {_LONGEST} characters")
    if _ODD.search(url):
        raise BadPlace("characters that must be percent-encoded")
    match = re.match(r"^(https?)://([^/?#]+)(?=[/?#]|$)", url, re.IGNORECASE)
    if match is None:
        raise BadPlace("expected https://host/...")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise BadPlace("credentials are not taken from a URL")
    if "%" in authority:
        raise BadPlace("a host is not percent-encoded")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadPlace("the host or the port is not valid") from None
    host = _host(parts.hostname or "", bracketed=authority.startswith("["))
    if port == 0:
        raise BadPlace("the port is not valid")
    return Place(scheme, host, port or _PORTS[scheme], url)


def _host(host: str, *, bracketed: bool) -> str:
    if bracketed:
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise BadPlace("the host is no IPv6 address") from None
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(map(_LABEL.match, labels)):
        raise BadPlace("the host is not valid")
    if _NUMBER.match(labels[-1]):
        # What ends in a number is an address to some readers, in decimal, octal or hexadecimal, short or long.
        try:
            if str(ip_address(host)) != host:
                raise BadPlace("the host is no IPv4 address in its usual form")
        except ValueError:
            raise BadPlace("the host is no IPv4 address in its usual form") from None
    return host


class AllowList:
    """Hosts that may be called: `example.com` (HTTPS, port 443), `*.example.com`, `https://example.com:8443`, `*`.

    A star alone stands for every name that resolves to a public address. Raises BadPlace for what is none of these.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._exact: set[tuple[str, str, int]] = set()
        self._below: set[tuple[str, str, int]] = set()
        self._any: set[tuple[str, int]] = set()
        for entry in entries:
            self._add(entry)

    def __bool__(self) -> bool:
        return bool(self._exact or self._below or self._any)

    def check(self, place: Place) -> None:
        """Raise BadPlace where the place is not allowed."""
        if (place.scheme, place.port) in self._any or (place.scheme, place.host, place.port) in self._exact:
            return
        labels = place.host.split(".")
        for i in range(1, len(labels)):
            if not place.literal and (place.scheme, ".".join(labels[i:]), place.port) in self._below:
                return
        raise BadPlace("this host is not among those that are allowed")

    def _add(self, entry: str) -> None:
        scheme, separator, rest = entry.partition("://")
        if not separator:
            scheme, rest = "https", entry
        if rest == "*" or rest.startswith("*:"):
            place = place_of(f"{scheme}://any{rest[1:]}")
            self._any.add((place.scheme, place.port))
            return
        place = place_of(f"{scheme}://{rest.removeprefix('*.')}")
        if re.search(r"[/?#]", rest):
            raise BadPlace("a host has no path")
        kept = self._below if rest.startswith("*.") else self._exact
        kept.add((place.scheme, place.host, place.port))
