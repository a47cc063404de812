"""Cursors of listings: opaque to clients, bound to what they were given for, and refused when they are not ours."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Annotated, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Refused, bad_request

C = TypeVar("C", bound=msgspec.Struct)


class SessionsAfter(msgspec.Struct, frozen=True, array_like=True, tag="s", forbid_unknown_fields=True):
    """Where a listing of sessions stands: the last one shown, and the filter that it was made with."""

    organization: str
    status: str | None
    created_at: Annotated[datetime, Meta(tz=True)]
    session_id: UUID


class MessagesAfter(msgspec.Struct, frozen=True, array_like=True, tag="m", forbid_unknown_fields=True):
    """Where a listing of messages stands: the number of the last one shown."""

    session_id: UUID
    seq: Annotated[int, Meta(ge=0, le=2**63 - 1)]


def written(cursor: msgspec.Struct) -> str:
    """Return the text that a client gives back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def read(text: str, type: type[C]) -> C:
    """Raises Refused (400) for what is no cursor of this kind. Its holder gains nothing by forging one: every
    listing is bound to the caller's organisation anyway."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(raw, type=type)
    except (binascii.Error, ValueError):
        raise foreign() from None


def foreign() -> Refused:
    return Refused(bad_request("cursor: not a cursor that this listing gave out", param="cursor"))
