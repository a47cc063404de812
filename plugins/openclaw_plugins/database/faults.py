"""Turns what drivers raise into what the gateway means by it; no driver's text reaches a client."""

from __future__ import annotations

import ssl

from sqlalchemy import exc

from openclaw_gateway.api import GatewayError, Refused, StoreBusy, StoreUnavailable, bad_request

#: SQLSTATEs of PostgreSQL after which the same work may be tried again at once
_BUSY = {
    "40001",  # serialization failure
    "40P01",  # deadlock
    "53300",  # too many connections
    "55P03",  # lock not available
}
#: values that the store cannot hold: NUL in a text, a number over 64 bits, a date out of range
_UNSTORABLE = {"22021", "22003", "22008", "22P05", "22000"}
#: what the role may not do
_FORBIDDEN = "42501"


class Fault(GatewayError):
    """A statement that the store refused as wrong: a defect of ours, answered by a 500."""


def translated(error: Exception) -> Exception | None:
    """Return the gateway's exception for a driver's; None where it is no driver's."""
    if isinstance(error, exc.TimeoutError):
        return StoreBusy("database", "no free connection")
    cause = error.orig if isinstance(error, exc.StatementError) else error
    if isinstance(cause, (OverflowError, UnicodeEncodeError)):
        return _unstorable()
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreUnavailable("database", f"its certificate is not trusted: {error.verify_message}")
    if isinstance(error, (OSError, TimeoutError)):
        return StoreUnavailable("database", "not reachable")
    if not isinstance(error, exc.SQLAlchemyError):
        return None
    if not isinstance(error, exc.DBAPIError):
        return Fault(f"database: {type(error).__name__}")
    state = getattr(error.orig, "sqlstate", None)
    if state in _BUSY or "database is locked" in str(error.orig):
        return StoreBusy("database", "the rows are locked by other work")
    if state in _UNSTORABLE or _value_of_driver(error):
        return _unstorable()
    if state == _FORBIDDEN:
        return Fault("database: its role lacks a right, which `openclaw-gateway db upgrade` grants to application_role")
    if isinstance(error, (exc.IntegrityError, exc.ProgrammingError)) and not error.connection_invalidated:
        return Fault(f"database: {type(error).__name__}")
    return StoreUnavailable("database", "failed to answer")


def kind_of(fault: Exception, cause: Exception) -> str:
    """Name a fault for the metric: a closed set of words."""
    if isinstance(fault, StoreBusy):
        return "pool_exhausted" if isinstance(cause, exc.TimeoutError) else "busy"
    if isinstance(fault, StoreUnavailable):
        return "unavailable"
    return "unstorable" if isinstance(fault, Refused) else "fault"


def _value_of_driver(error: exc.DBAPIError) -> bool:
    """Whether the driver itself refused a value, before the server saw it (asyncpg: no SQLSTATE then)."""
    name = type(getattr(error.orig, "__cause__", None) or error.orig).__name__
    return name in ("DataError", "OverflowError", "UnicodeEncodeError") or isinstance(error, exc.DataError)


def _unstorable() -> Refused:
    return Refused(bad_request("the request holds a value that cannot be stored"))
