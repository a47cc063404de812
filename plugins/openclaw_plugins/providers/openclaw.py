"""Speaks to a real OpenClaw gateway, whose models are agents; never lets two clients share a session of it by accident.

Whoever holds an OpenClaw's token is its owner, and a session key there is no authorisation: which organisations it
serves is therefore said in the configuration. OpenClaw makes a session of a request's `user`, which two organisations
may both call "1": it is never sent. What keeps sessions apart is a key that no client can name.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, Secret, UpstreamFailed
from openclaw_plugins.providers.openai import OpenAI
from openclaw_plugins.providers.session_turns import SessionTurns

_SESSION = "x-openclaw-session-key"
#: an agent of an OpenClaw as its API names it
_AGENT = re.compile(r"openclaw(?:/[A-Za-z0-9][A-Za-z0-9_-]*)?")
_LEAST_SECRET = 32

_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode


class OpenClaw(OpenAI):
    """A pool of connections to one OpenClaw. Retries nothing: an agent's tools may have run."""

    class Config(OpenAI.Config, frozen=True, kw_only=True):
        organization: Annotated[
            Annotated[str, Meta(min_length=1)] | None,
            Meta(description="The only organisation that it serves; others get a 403."),
        ] = None
        shared: Annotated[
            bool, Meta(description="Whether it serves every organisation, with whatever tools its agents have.")
        ] = False
        history: Annotated[
            Literal["gateway", "openclaw"],
            Meta(
                description="Who keeps the history of a turn with a `sessionId`: gateway sends the client's messages "
                "and no session key, openclaw the new turn and a key."
            ),
        ] = "gateway"
        session_secret: Annotated[
            Secret | None,
            Meta(description="What session keys are made with, 32 bytes at least; another one begins anew."),
        ] = None
        session_waiting: Annotated[
            int,
            Meta(
                ge=0,
                le=1000,
                description="Turns of one session that may wait while one runs, in a process and where openclaw keeps "
                "the history; more get a 409.",
            ),
        ] = 1

    def __init__(self, config: Config, host: Host) -> None:
        if (config.organization is None) != config.shared:
            raise ValueError(
                "organization: name the one organisation that this OpenClaw serves, or set `shared = true`, not both"
            )
        secret = config.session_secret.reveal().encode() if config.session_secret is not None else b""
        if config.history == "openclaw" and len(secret) < _LEAST_SECRET:
            raise ValueError(f'session_secret: history = "openclaw" needs one of at least {_LEAST_SECRET} bytes')
        for alias, model in host.document.models.items():
            name = model.name or alias
            if model.provider == host.id and _AGENT.fullmatch(name) is None:
                raise ValueError(f"models.{alias}.name: {name!r} is no agent; expected openclaw or openclaw/<agent>")
        super().__init__(config, host)
        self._organization = config.organization
        self._keeps = config.history == "openclaw"
        self._secret = secret
        self._turns = SessionTurns(config.session_waiting)

    async def complete(self, call: ModelCall) -> bytes:
        if not self._keyed(call):
            return await super().complete(call)
        async with self._turns.turn(self._key(call), call) as timed:
            return await super().complete(timed)

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        return self._in_turn(call) if self._keyed(call) else super().stream(call)

    async def _in_turn(self, call: ModelCall) -> AsyncIterator[bytes]:
        async with self._turns.turn(self._key(call), call) as timed, aclosing(self._streamed(timed)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _sent(self, call: ModelCall) -> tuple[bytes, Mapping[str, str] | None]:
        if self._organization is not None and call.organization != self._organization:
            raise UpstreamFailed(
                "model: it serves another organisation",
                status=403,
                code="FORBIDDEN",
                type="permission_error",
                param="model",
                reason="request",
            )
        keyed = self._keyed(call)
        if not keyed and "user" not in call.request:
            return call.body, None
        fields = _raw_object.decode(call.body)
        fields.pop("user", None)
        if not keyed:
            return _encode(fields), None
        if "messages" in call.request:
            fields["messages"] = msgspec.Raw(_encode(_new(call.request["messages"], fields["messages"])))
        return _encode(fields), {_SESSION: self._key(call)}

    def _keyed(self, call: ModelCall) -> bool:
        return self._keeps and call.session_id is not None

    def _key(self, call: ModelCall) -> str:
        """Return the same key for the same session of the same organisation, and nothing that names either."""
        named = msgspec.json.encode((call.organization, call.session_id))
        return f"gateway-{hmac.digest(self._secret, named, 'sha256').hex()}"


def _new(messages: list[Any], raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Return what OpenClaw's own history of a session lacks: what came after the last answer; and all instructions."""
    answered = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return [
        given
        for i, given in enumerate(msgspec.json.decode(raw, type=list[msgspec.Raw]))
        if i > answered or messages[i]["role"] in ("system", "developer")
    ]
