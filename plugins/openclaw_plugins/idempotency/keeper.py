"""Stands around one request with a key: answers for the first one, or keeps what the first one is answered.

It never keeps an answer that says of itself that it must not be stored, and never one past its size.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from openclaw_gateway.api import (
    PRINCIPAL,
    Exchange,
    GatewayError,
    Refusal,
    Reply,
    conflict,
    read_body,
)
from openclaw_plugins.idempotency.claims import Claims, Differs, Done, Lost, Running, Wanted, Won

#: of a handler's headers those that belong to the answer, not to the one exchange
_KEPT = {b"content-type", b"cache-control", b"content-language", b"location", b"x-accel-buffering"}
_RUNNING = conflict("a request with this Idempotency-Key is being carried out; ask again for its answer", retry_after=1)
_LOST = conflict(
    "the request with this Idempotency-Key has been carried out, and its answer is not kept; "
    "look at what it changed, and use a new key for a new request"
)
_DIFFERS = Refusal(
    status=422,
    code="IDEMPOTENCY_KEY_REUSED",
    type="invalid_request_error",
    message="this Idempotency-Key belongs to another request; use a new key for a new request",
    param="Idempotency-Key",
)

Answered = Callable[[str], None]


class Keeper:
    """The guard of one exchange. `live` holds the claims of this process for as long as they run."""

    __slots__ = (
        "_body",
        "_claims",
        "_headers",
        "_key",
        "_left",
        "_live",
        "_logger",
        "_max_body",
        "_max_kept",
        "_note",
        "_organization",
        "_size",
        "_status",
        "_x",
        "reference",
    )

    def __init__(
        self,
        x: Exchange,
        key: str,
        *,
        claims: Claims,
        live: set[str],
        max_body: int,
        max_kept: int,
        note: Answered,
        logger: logging.Logger,
    ) -> None:
        self._x = x
        self._key = key
        self._claims = claims
        self._live = live
        self._max_body = max_body
        self._max_kept = max_kept
        self._note = note
        self._logger = logger
        self._organization = x[PRINCIPAL].organization
        #: the claim, while this exchange has it: charges are made under it
        self.reference: str | None = None
        self._left = False
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0

    async def enter(self) -> Reply | Refusal | None:
        body = await self._read()
        route = self._x.route.route.path
        found = await self._claims.claim(Wanted(self._organization, route, self._key, self._fingerprint(body)))
        if isinstance(found, Won):
            self.reference = found.claim
            self._live.add(found.claim)
            self._note("first")
            return None
        if isinstance(found, Done):
            self._note("replayed")
            return _replay(found)
        refusals: dict[type, tuple[str, Refusal]] = {
            Running: ("running", _RUNNING),
            Differs: ("differs", _DIFFERS),
            Lost: ("lost", _LOST),
        }
        outcome, refusal = refusals[type(found)]
        self._note(outcome)
        return refusal

    def started(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        self._headers = headers

    def chunk(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._max_kept:
            self._body.append(data)
        else:
            self._body.clear()

    async def leave(self) -> None:
        claim = self._take()
        if claim is None:
            return
        try:
            failed = self._status >= 400 or self._x.outcome.error_code is not None
            if failed and not await self._claims.settle(self._organization, claim):
                return
            if self._storable() and not failed:
                await self._claims.keep(self._organization, claim, self._answer())
            else:
                await self._claims.lose(self._organization, claim)
        except GatewayError as error:
            # The answer goes out all the same. The claim runs out, and the account then tells what came of it.
            self._logger.warning("the answer of an idempotent request could not be kept", exc_info=error)

    async def cut(self) -> None:
        """End the claim of an exchange that did not get to its end."""
        claim = self._take()
        if claim is None:
            return
        try:
            await self._claims.settle(self._organization, claim)
        except GatewayError as error:
            self._logger.warning("the claim of an idempotent request could not be ended", exc_info=error)

    @property
    def unfinished(self) -> bool:
        return self.reference is not None and not self._left

    def _take(self) -> str | None:
        if not self.unfinished:
            return None
        self._left = True
        assert self.reference is not None
        self._live.discard(self.reference)
        return self.reference

    async def _read(self) -> bytes:
        """Read the body, and put it back for the handler."""
        receive: Any = self._x.receive
        body = await read_body(receive, self._max_body, self._x.scope["headers"])
        self._x.receive = _again(body, receive)
        return body

    def _fingerprint(self, body: bytes) -> str:
        digest = hashlib.sha256()
        for part in (self._x[PRINCIPAL].user.encode(), self._x.path.encode(), body):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()

    def _storable(self) -> bool:
        forbidden = any(name == b"cache-control" and b"no-store" in value for name, value in self._headers)
        return self._size <= self._max_kept and not forbidden

    def _answer(self) -> Done:
        headers = [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self._headers if n.lower() in _KEPT]
        return Done(self._status, headers, b"".join(self._body))


def _again(body: bytes, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Give the body once more, then whatever the connection says."""
    given = False

    async def next_message() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


def _replay(found: Done) -> Reply:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in found.headers]
    headers.append((b"content-length", str(len(found.body)).encode()))
    headers.append((b"idempotency-replayed", b"true"))
    return Reply(status=found.status, headers=tuple(headers), body=found.body)
