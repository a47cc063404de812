"""The secrets under which keys are hashed: the current one, and the one before while keys made under it are in use."""

from __future__ import annotations

from openclaw_plugins.auth import keys

_LEAST_BYTES = 32


def check_pepper(field: str, pepper: str) -> None:
    """Raise ValueError for a pepper that could be guessed."""
    if len(pepper.encode()) < _LEAST_BYTES:
        raise ValueError(f"{field}: shorter than {_LEAST_BYTES} bytes")


class Peppers:
    """Hashes keys. It is never shown and never logged."""

    __slots__ = ("_by_version", "version")

    def __init__(self, version: int, current: bytes, previous: bytes | None) -> None:
        #: of what is hashed from now on
        self.version = version
        self._by_version = {version: current}
        if previous is not None:
            self._by_version[version - 1] = previous

    def digest(self, credential: bytes) -> bytes:
        return keys.digest(self._by_version[self.version], credential)

    def digest_as_stored(self, credential: bytes, version: int | None) -> tuple[bytes, bool]:
        """Hash under the pepper of `version`, and say whether it is known.

        Where it is not, the key is hashed all the same: an unknown key must take as long to refuse as a revoked one.
        """
        pepper = self._by_version.get(version) if version is not None else None
        return keys.digest(pepper or self._by_version[self.version], credential), pepper is not None
