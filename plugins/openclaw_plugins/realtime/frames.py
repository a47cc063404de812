"""The frames of the socket, both ways, and how those of a client are read. Nothing here knows what they lead to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Refusal, Refused, bad_request, decode

_Id = Annotated[str, Meta(min_length=1, max_length=128)]


class _Inbound(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="type"):
    pass


class SendMessage(_Inbound, frozen=True, kw_only=True, rename="camel", tag="message"):
    """A turn of the session."""

    content: Annotated[str, Meta(min_length=1, description="What the user says.")]
    id: Annotated[_Id | None, Meta(description="Comes back as `ref` in all that belongs to the turn.")] = None
    stream: Annotated[bool, Meta(description="Send the answer in pieces too, as it comes.")] = False
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    metadata: Annotated[dict[str, Any], Meta(description="Kept with the message; `skillName` runs a skill.")] = {}


class Cancel(_Inbound, frozen=True, kw_only=True, rename="camel", tag="cancel"):
    """Stop the turn that a message began."""

    ref: Annotated[_Id, Meta(description="The `id` of that message.")]


class Resume(_Inbound, frozen=True, kw_only=True, rename="camel", tag="resume"):
    """Send again what came after an event that the client has seen, on a connection before this one."""

    last_seq: Annotated[int, Meta(ge=0)]


class Ping(_Inbound, frozen=True, kw_only=True, rename="camel", tag="ping"):
    """Ask for a `pong`."""


class _Outbound(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="type", omit_defaults=True):
    pass


class Said(_Outbound, frozen=True, kw_only=True, rename="camel", tag="message"):
    """A message of the session, as it was stored."""

    message_id: str
    session_id: str
    role: str
    content: Any
    timestamp: str
    metadata: dict[str, Any]
    usage: Any = None
    ref: str | None = None


class Piece(_Outbound, frozen=True, kw_only=True, rename="camel", tag="stream", omit_defaults=False):
    """A piece of an answer; the last one of a whole answer has `done`, after it was stored."""

    ref: str
    chunk: str
    done: bool


class Skill(_Outbound, frozen=True, kw_only=True, rename="camel", tag="skill", omit_defaults=False):
    """How the run of a skill goes on."""

    name: str
    execution_id: str
    state: Literal["started", "progress", "completed", "failed"]
    detail: str | None = None
    ref: str | None = None


class Failed(_Outbound, frozen=True, kw_only=True, rename="camel", tag="error"):
    """Something was not done; the socket stays open."""

    code: str
    message: str
    retryable: bool
    ref: str | None = None
    param: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    limit: Any = None


class QuotaWarning(_Outbound, frozen=True, kw_only=True, rename="camel", tag="quota_warning"):
    """A quota is nearly used up; the fields are those of a row of `GET /api/v1/usage`."""

    limit: Any


class GoingAway(_Outbound, frozen=True, kw_only=True, rename="camel", tag="going_away"):
    """The socket will be closed: running turns are finished first, new ones are refused."""

    message: str
    retry_after: float


class Pong(_Outbound, frozen=True, kw_only=True, rename="camel", tag="pong"):
    """The answer to `ping`."""


Inbound = SendMessage | Cancel | Resume | Ping
Outbound = Said | Piece | Skill | Failed | QuotaWarning | GoingAway | Pong

_TYPES: dict[str, type[SendMessage] | type[Cancel] | type[Resume] | type[Ping]] = {
    "message": SendMessage,
    "cancel": Cancel,
    "resume": Resume,
    "ping": Ping,
}
KNOWN = ", ".join(_TYPES)


class _Head(msgspec.Struct):
    type: str
    id: Any = None


_head = msgspec.json.Decoder(_Head)
_decoders = {name: msgspec.json.Decoder(shape) for name, shape in _TYPES.items()}
encode = msgspec.json.Encoder().encode


class Unreadable(msgspec.Struct, frozen=True):
    """A frame that cannot be served, with its id where it has one."""

    refusal: Refusal
    ref: str | None = None


def read(text: str) -> Inbound | Unreadable:
    """Read a text frame; what is wrong with it is a value, because the socket stays open."""
    data = text.encode("utf-8", "surrogatepass")
    ref = None
    try:
        head = decode(data, _Head, decoder=_head)
        if isinstance(head.id, str) and 0 < len(head.id) <= 128:
            ref = head.id
        shape = _TYPES.get(head.type)
        if shape is None:
            return Unreadable(bad_request(f"type: expected one of {KNOWN}", param="type"), ref)
        frame: Inbound = decode(data, shape, decoder=_decoders[head.type])
        return frame
    except Refused as error:
        refusal = error.refusal
        message = refusal.message.replace("the request body", "the frame")
        return Unreadable(msgspec.structs.replace(refusal, message=message), ref)


def tag(frame: Inbound | Outbound | dict[str, Any]) -> str:
    """Return the `type` of a frame."""
    if isinstance(frame, dict):
        return str(frame["type"])
    return str(frame.__struct_config__.tag)


def failed(refusal: Refusal, *, ref: str | None, request_id: str | None) -> Failed:
    """Say in a frame what an HTTP client would be told in an error body."""
    limited = refusal.status == 429
    return Failed(
        code=refusal.code,
        message=refusal.message,
        retryable=limited or refusal.status in (409, 502, 503, 504),
        ref=ref,
        param=refusal.param,
        request_id=request_id,
        retry_after=max(0.001, refusal.retry_after or 1.0) if limited else refusal.retry_after,
        limit=refusal.extra.get("limit"),
    )
