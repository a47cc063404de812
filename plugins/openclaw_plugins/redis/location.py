"""Reads where a store is from its URL: one server, a primary behind Sentinels, or a cluster."""

from __future__ import annotations

from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

_SCHEMES = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("socket", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
EXPECTED = (
    "redis://[user:password@]host:port/0, rediss:// for TLS, unix:///path, "
    "redis+sentinel://host:port,host:port/primary-name, redis+cluster://host:port,host:port"
)


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """A URL taken apart. `name` is the primary's, for Sentinels."""

    kind: Literal["single", "socket", "sentinel", "cluster"]
    tls: bool
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    username: str | None = None
    password: str | None = None
    database: int = 0
    name: str = ""

    @property
    def shown(self) -> str:
        """Where it is, without credentials."""
        return self.path or ",".join(f"{host}:{port}" for host, port in self.hosts)


def location(url: str) -> Location:
    """Take a URL apart. Raises ValueError, whose text holds nothing of the URL."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or parts.query or parts.fragment:
        raise ValueError(f"not the URL of a store; expected {EXPECTED}")
    found, tls = _SCHEMES[parts.scheme]
    kind: Literal["single", "socket", "sentinel", "cluster"] = found  # type: ignore[assignment]
    login, _, places = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    user, secret = unquote(username) or None, unquote(password) or None
    words = [word for word in parts.path.split("/") if word]
    if kind == "socket":
        return Location(kind=kind, tls=False, path=unquote(parts.path), username=user, password=secret)
    hosts = tuple(_host(place, 26379 if kind == "sentinel" else 6379) for place in places.split(","))
    name = ""
    if kind == "sentinel":
        if not words:
            raise ValueError(f"the URL does not name the primary; expected {EXPECTED}")
        name = unquote(words.pop(0))
    database = 0
    if words:
        if len(words) > 1 or not words[0].isdecimal() or kind == "cluster":
            raise ValueError(f"the URL's path is no number of a database; expected {EXPECTED}")
        database = int(words[0])
    if kind == "single" and len(hosts) > 1:
        raise ValueError(f"more than one host needs redis+sentinel:// or redis+cluster://; expected {EXPECTED}")
    return Location(kind=kind, tls=tls, hosts=hosts, username=user, password=secret, database=database, name=name)


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError:
        host = given = None
    if not host:
        raise ValueError(f"the URL names no host; expected {EXPECTED}")
    return host, given or port
