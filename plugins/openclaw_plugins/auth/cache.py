"""Remembers which credentials were found good, under the hash of the whole credential and never the credential."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256

from openclaw_gateway.api import Principal


def fingerprint(credential: bytes) -> bytes:
    """Hash all of a credential: two that share a prefix must never share an entry."""
    return sha256(credential).digest()


class Verified:
    """A bounded map of good credentials, each until a moment; the oldest leaves first.

    Refused credentials are never put in, so that nobody can fill it from outside.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def get(self, key: bytes, now: float) -> Principal | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: bytes, principal: Principal, until: float) -> None:
        entries = self._entries
        entries[key] = (until, principal)
        entries.move_to_end(key)
        if len(entries) > self._size:
            entries.popitem(last=False)

    def drop(self, credential: str) -> None:
        """Forget every entry of the credential with this id."""
        for key in [k for k, (_, p) in self._entries.items() if p.credential == credential]:
            del self._entries[key]

    def clear(self) -> None:
        """Forget all: what was found good may not be any more."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
