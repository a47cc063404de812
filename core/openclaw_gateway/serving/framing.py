"""What makes a request's head one that two readers could read in two ways; such a request is answered and never served.

Pure functions over what the parser found: they hold nothing and know no connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

#: RFC 9112 3.2 wants exactly one valid Host; this is the syntax of RFC 3986 3.2.2 for names and addresses
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[(?=[^\]]*:)[0-9A-Fa-f:.]+\])(?::\d{1,5})?")

#: the headers that are looked at
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))
#: bytes of a Host that is worth keeping
_SHORT = 256


def fault(
    headers: Sequence[tuple[bytes, bytes]], method: bytes, version: str, allowed_hosts: Sequence[str]
) -> tuple[int, str] | None:
    """Return the status and the text with which a head is refused, or None."""
    hosts = lengths = codings = 0
    for name, value in [header for header in headers if header[0] in _FRAMING]:
        if name == b"host":
            hosts += 1
            if not (_is_host(value) if len(value) <= _SHORT else _is_host.__wrapped__(value)):
                return 400, "the Host header is not valid"
            if allowed_hosts and not _allowed(value, allowed_hosts):
                return 400, "this host is not served here"
        elif name == b"content-length":
            lengths += 1
        elif name == b"transfer-encoding":
            codings += 1
            if value.strip().lower() != b"chunked":
                return 400, "only the transfer coding chunked is understood"
    if version not in ("1.1", "1.0"):
        return 400, "only HTTP/1.1 and HTTP/1.0 are spoken here"
    if hosts > 1 or (not hosts and version != "1.0"):
        return 400, "exactly one Host header is needed"
    if lengths > 1 or codings > 1 or (lengths and codings):
        # RFC 9112 6.1: both together are how requests are smuggled past a proxy.
        return 400, "the length of the request is ambiguous"
    if method == b"CONNECT":
        return 405, "this method is not possible here"
    return None


@lru_cache(maxsize=256)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


def _allowed(host: bytes, allowed_hosts: Sequence[str]) -> bool:
    name = host.decode("ascii").lower()
    return name in allowed_hosts or name.rsplit(":", 1)[0] in allowed_hosts
