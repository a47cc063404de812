"""The keys by which tokens are verified: which may stand together, and how public ones are read.

A public key is never taken for an HMAC secret, and a private or symmetric one never for a public key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from openclaw_gateway.api import StartFailed

#: by `kid`; None is the key of every token, where there is only one
Keys = dict[str | None, Any]

#: by `kid` and algorithm: the key of a set may be bound to one algorithm
ServedKeys = dict[tuple[str | None, str], Any]

#: RFC 7518 3.2: a key as long as the hash
HMAC_BYTES: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_BITS: Final = 2048
_MOST_KEYS: Final = 100
_key_text = re.compile(r'-----BEGIN |^\s*(ssh-|ecdsa-)|"kty"').search


def check_keys(algorithms: Sequence[str], *, secret: str | None, public_key_file: str | None, jwks: bool) -> None:
    """Raise ValueError where algorithms and keys do not fit one another."""
    hmac = [a for a in algorithms if a in HMAC_BYTES]
    if jwks and public_key_file is not None:
        raise ValueError("jwks: public_key_file is set too; keys come from one place")
    if not hmac:
        if public_key_file is None and not jwks:
            raise ValueError(f"public_key_file: missing; {algorithms[0]} is verified with a public key, or with jwks")
        if secret is not None:
            raise ValueError("secret: these algorithms are verified with public_key_file, not with a secret")
        return
    if len(hmac) != len(algorithms):
        raise ValueError("algorithms: HMAC and public-key algorithms cannot be accepted together")
    if public_key_file is not None:
        raise ValueError("public_key_file: HMAC algorithms are verified with a secret, not with a public key")
    if jwks:
        raise ValueError("jwks: HMAC algorithms are verified with a secret, which nobody serves")
    if secret is not None:
        if _key_text(secret):
            raise ValueError("secret: this is the text of a key; an HMAC secret must be random bytes")
        least = max(HMAC_BYTES[a] for a in hmac)
        if len(secret.encode()) < least:
            raise ValueError(f"secret: shorter than the {least} bytes that {', '.join(hmac)} needs")


def public_keys(path: Path, algorithms: Sequence[str], shown: str) -> Keys:
    """Read a PEM public key or a JSON Web Key Set. Raises StartFailed, which names the file as `shown`."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StartFailed(f"{shown} cannot be read: {error.strerror}") from None
    try:
        keys = _key_set(text) if text.lstrip()[:1] == b"{" else _pem(text)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise StartFailed(f"{shown} holds no public key (PEM) or key set: {error}") from None
    for key in keys.values():
        if isinstance(key, RSAPublicKey) and key.key_size < _RSA_BITS:
            raise StartFailed(f"{shown} holds an RSA key of {key.key_size} bits; expected {_RSA_BITS} or more")
        if not any(_usable(key, algorithm) for algorithm in algorithms):
            raise StartFailed(f"{shown} holds a key that none of {', '.join(algorithms)} can use")
    return keys


def served_keys(text: bytes, algorithms: Sequence[str]) -> ServedKeys:
    """Read the usable keys of a served JSON Web Key Set; others are passed over. Raises ValueError where none is."""
    try:
        entries = msgspec.json.decode(text, type=_ServedSet).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it serves no key set") from None
    found: ServedKeys = {}
    for entry in entries[:_MOST_KEYS]:
        try:
            key = jwt.PyJWK(entry).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue
        kid = entry.get("kid")
        if not _for_verifying(entry, key) or not (kid is None or isinstance(kid, str)):
            continue
        bound = entry.get("alg")
        for algorithm in algorithms:
            if bound in (None, algorithm) and _usable(key, algorithm):
                found.setdefault((kid, algorithm), key)
    if not found:
        raise ValueError("it serves no key that these algorithms can use")
    return found


class _ServedSet(msgspec.Struct):
    keys: list[dict[str, Any]]


def _for_verifying(entry: Mapping[str, Any], key: Any) -> bool:
    """Whether an entry is a public key for signatures, long enough."""
    if entry.get("kty") == "oct" or not hasattr(key, "public_bytes"):
        return False
    if entry.get("use", "sig") != "sig" or "verify" not in (entry.get("key_ops") or ("verify",)):
        return False
    return not (isinstance(key, RSAPublicKey) and key.key_size < _RSA_BITS)


def _pem(text: bytes) -> Keys:
    return {None: load_pem_public_key(text)}


def _key_set(text: bytes) -> Keys:
    keys = jwt.PyJWKSet.from_json(text.decode()).keys
    if any(key.key_type == "oct" for key in keys):
        raise ValueError("a symmetric key does not belong into a set of public keys")
    if any(not hasattr(key.key, "public_bytes") for key in keys):
        raise ValueError("a private key does not belong into a set of public keys")
    if len(keys) == 1:
        return {None: keys[0].key}
    found: Keys = {key.key_id: key.key for key in keys}
    if None in found or len(found) != len(keys):
        raise ValueError("several keys need a `kid` each")
    return found


def _usable(key: Any, algorithm: str) -> bool:
    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(key)
    except (jwt.PyJWTError, TypeError, ValueError):
        return False
    return True
