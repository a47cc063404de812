"""What the URL of a PostgreSQL may say behind its question mark. asyncpg takes each for an argument, and knows few."""

from __future__ import annotations

from sqlalchemy.engine import URL

from openclaw_gateway.structs import nearest

#: read by `tls.py`, by asyncpg as libpq would, or by SQLAlchemy
_TEXTS = frozenset(
    {"gsslib", "host", "krbsrvname", "passfile", "password", "port", "prepared_statement_cache_size", "service"}
    | {"servicefile", "ssl", "sslcert", "sslkey", "sslmode", "sslrootcert", "target_session_attrs", "user"}
)
#: asyncpg's own, which it takes as numbers alone
_NUMBERS = frozenset({"statement_cache_size"})


def readable(url: URL) -> None:
    """Raise ValueError for a parameter that nothing reads, and for a number that is none; never with the URL."""
    known = _TEXTS | _NUMBERS
    for name, value in url.query.items():
        if name not in known:
            meant = nearest(name, known)
            hint = f"did you mean {meant}?" if meant else f"expected one of: {', '.join(sorted(known))}"
            raise ValueError(f"url: the parameter {name!r} is not read; {hint}")
        if name in _NUMBERS and not (isinstance(value, str) and value.isdecimal()):
            raise ValueError(f"url: {name} is no number; expected 0 behind a pooler of transactions, or none of it")


def numbers(url: URL) -> dict[str, int]:
    """Return the arguments of a connection that a URL can only say as text."""
    return {name: int(str(value)) for name, value in url.query.items() if name in _NUMBERS}
