"""Makes of what a URL says of TLS in libpq's words what asyncpg takes: it reads these from a DSN, and is given none."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from sqlalchemy.engine import URL

_FILES = ("sslrootcert", "sslcert", "sslkey")
_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
#: modes that would go on without TLS where the server has none
_YIELDING = _MODES[:3]


def secured(url: URL) -> tuple[URL, ssl.SSLContext | None]:
    """Return a URL of PostgreSQL without libpq's files, and the context that they make; the mode stands in it as `ssl`.

    Where it names no file there is no context: asyncpg then makes one of the mode and of libpq's variables. Files are
    read now. Raises ValueError with the parameter that is wrong, never with the URL.
    """
    given = {name: _last(url.query[name]) for name in ("ssl", *_FILES) if name in url.query}
    files = [name for name in _FILES if name in given]
    root, certificate, key = (given.get(name) or os.environ.get(f"PG{name.upper()}") for name in _FILES)
    default = "verify-full" if root == "system" else "prefer"
    mode = (given.get("ssl") or os.environ.get("PGSSLMODE") or default).replace("_", "-")
    if mode not in _MODES:
        raise ValueError(f"url: sslmode is {mode!r}; expected one of: {', '.join(_MODES)}")
    if not files:
        return url, None
    if mode in _YIELDING:
        raise ValueError(f"url: {files[0]} is of no use with sslmode={mode}; expected sslmode=verify-full")
    if key and not certificate:
        raise ValueError("url: sslkey is of no use alone; expected sslcert too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = mode == "verify-full"
    _trust(context, root, mode)
    if certificate:
        _show(context, certificate, key)
    return url.difference_update_query(_FILES).update_query_dict({"ssl": mode}), context


def _trust(context: ssl.SSLContext, root: str | None, mode: str) -> None:
    """Load the authorities. As of libpq, `require` is `verify-ca` where there is one, and proves nothing without."""
    if root == "system":
        if mode != "verify-full":
            raise ValueError(f"url: sslrootcert=system is of no use with sslmode={mode}; expected sslmode=verify-full")
        context.load_default_certs()
    elif root:
        _readable("sslrootcert", root)
        try:
            context.load_verify_locations(cafile=root)
        except ssl.SSLError:
            raise ValueError(f"url: sslrootcert {root!r} holds no certificate; expected PEM") from None
    elif mode == "require":
        context.verify_mode = ssl.CERT_NONE
    else:
        raise ValueError(f"url: nothing says whom sslmode={mode} trusts; expected sslrootcert, a file or system")


def _show(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Load the certificate by which we say who we are; without `key` its file holds the key too."""
    _readable("sslcert", certificate)
    if key:
        _readable("sslkey", key)
    try:
        context.load_cert_chain(certificate, key or None, password=lambda: "")  # else OpenSSL asks at the terminal
    except ssl.SSLError:
        pair = f"sslcert {certificate!r}" + (f" and sslkey {key!r}" if key else "")
        expected = "a certificate in PEM and its key, without a password"
        raise ValueError(f"url: {pair} cannot be used; expected {expected}") from None


def _readable(name: str, file: str) -> None:
    try:
        Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"url: {name} {file!r} cannot be read: {error.strerror}") from None


def _last(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[-1]
