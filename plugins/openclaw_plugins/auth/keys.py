"""The form of an API key: `ocg_<id>_<secret><checksum>`, how one is made, recognised and stored as a digest.

The key itself is never stored; nothing here does I/O.
"""

from __future__ import annotations

import hmac
import re
import secrets
import zlib
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 12
#: 62**30 > 2**178: well over the 160 bits that are promised
_SECRET_LENGTH: Final = 30
#: 62**6 > 2**32
_CHECKSUM_LENGTH: Final = 6

LENGTH: Final = len("ocg_") + _ID_LENGTH + 1 + _SECRET_LENGTH + _CHECKSUM_LENGTH
_shape = re.compile(rb"ocg_([0-9A-Za-z]{12})_[0-9A-Za-z]{36}").fullmatch


def new_key() -> tuple[str, str]:
    """Return the id and the whole text of a new key."""
    key_id = _random(_ID_LENGTH)
    body = f"ocg_{key_id}_{_random(_SECRET_LENGTH)}"
    return key_id, body + _checksum(body.encode("ascii")).decode("ascii")


def key_id(credential: bytes) -> str | None:
    """Return the id of a well-formed key, or None: a mistyped or invented one never costs a look-up."""
    if len(credential) != LENGTH:
        return None
    match = _shape(credential)
    if match is None or _checksum(credential[:-_CHECKSUM_LENGTH]) != credential[-_CHECKSUM_LENGTH:]:
        return None
    return match[1].decode("ascii")


def digest(pepper: bytes, credential: bytes) -> bytes:
    """Hash a key for storage. A fast hash is enough: the key holds more entropy than anyone can search."""
    return hmac.digest(pepper, credential, "sha256")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: bytes) -> bytes:
    value = zlib.crc32(body)
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        value, rest = divmod(value, 62)
        digits = _ALPHABET[rest] + digits
    return digits.encode("ascii")
