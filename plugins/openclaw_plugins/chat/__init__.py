"""Chat completions, messages, models and embeddings over any provider; it knows none of them by name.

Stored history is never put before a prompt: the client resends its own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from litestar.types import Receive, Send
from msgspec import Meta
from prometheus_client import Counter, Histogram

from openclaw_gateway.api import (
    PRINCIPAL,
    REQUEST_ID,
    SESSION_ID,
    TIER,
    Duration,
    EventBus,
    Exchange,
    Fact,
    Host,
    NewMessage,
    PluginConfig,
    Refused,
    SessionStore,
    Size,
    SkillRunner,
    bad_request,
    hookimpl,
    needs,
    read_body,
)
from openclaw_plugins.chat.answers import Record
from openclaw_plugins.chat.anthropic_answers import MessageEvents, whole_message
from openclaw_plugins.chat.anthropic_requests import read_messages
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.conversation import SessionTurn, prompt
from openclaw_plugins.chat.models import Models
from openclaw_plugins.chat.offers import ToolLoopConfig
from openclaw_plugins.chat.requests import new_turn, read_completion, read_embedding
from openclaw_plugins.chat.shapes import Completion
from openclaw_plugins.chat.skill_answers import SkillAnswer, answer_by_skill
from openclaw_plugins.chat.surface import surface
from openclaw_plugins.chat.tool_loop import ToolLoop, ToolLoops
from openclaw_plugins.chat.turns import Turn, Turns
from openclaw_plugins.chat.writers import ChunkEvents, write_json, write_stream, write_whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Chat:
    """Answers OpenAI's and Anthropic's clients. It never charges for what was not delivered."""

    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        sessions: Annotated[str, needs(SessionStore), Meta(description="Where turns with a `sessionId` are kept.")] = (
            "sessions"
        )
        keep_alive: Annotated[
            Duration, Meta(description="Silence of an upstream after which a stream gets a comment.")
        ] = Duration(15)
        stall: Annotated[
            Duration, Meta(description="How long a client may read nothing of a stream before it is given up.")
        ] = Duration(30)
        max_messages: Annotated[int, Meta(ge=1, description="Most messages of one prompt.")] = 10_000
        events: Annotated[
            str | None, needs(EventBus), Meta(description="What tells listeners of a session of stored turns.")
        ] = None
        history: Annotated[
            int, Meta(ge=0, description="Most stored messages that the model sees in a turn over the socket.")
        ] = 50
        history_bytes: Annotated[Size, Meta(description="Most bytes of history that the model sees there.")] = Size(
            256_000
        )
        skills: Annotated[
            str | None, needs(SkillRunner), Meta(description="What runs the skills that `metadata.skillName` names.")
        ] = None
        tool_loop: Annotated[
            ToolLoopConfig | None, Meta(description="Where it is set, models may run skills by themselves in a turn.")
        ] = None
        rest_after: Annotated[
            int,
            Meta(ge=1, le=20, description="Failures of an upstream's last 20 calls, being half of them, to rest it."),
        ] = 5
        rest: Annotated[Duration, Meta(description="How long such an upstream is not asked.")] = Duration(10)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._events = host.get(config.events, EventBus) if config.events is not None else None
        self._sessions = host.get(config.sessions, SessionStore)
        self._skills = host.get(config.skills, SkillRunner) if config.skills is not None else None
        self._models = Models(host, failures=config.rest_after, rest=config.rest)
        self._loops: ToolLoops | None = None
        if config.tool_loop is not None:
            if self._skills is None:
                raise ValueError("tool_loop: nothing runs skills; set `skills` too")
            self._loops = ToolLoops(config.tool_loop, self._skills, self._models, host)
        self._turns = Turns()
        self._patience: dict[str, float] = {"keep_alive": config.keep_alive, "stall": config.stall}
        messages = host.metric(Counter, "messages_total", "Turns of clients, and answers.", ("tier", "direction"))
        #: tier name → what counts its turns and its answers
        self._told = {
            tier: (messages.labels(tier, "inbound"), messages.labels(tier, "outbound")) for tier in host.tiers
        }
        self._seconds = host.metric(
            Histogram,
            "message_processing_duration_seconds",
            "From a turn's request to its commit.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        )

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        self._models.connect()
        if self._loops is not None:
            self._loops.check(self._host.tiers, self._host.logger)
        async with self._turns.supervised():
            yield

    @hookimpl
    def routes(self) -> list[Any]:
        return surface(self, self._models)

    async def complete(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        body = await read_body(receive, self._host.settings.max_body, scope["headers"])
        completion, request = read_completion(body)
        self._check(x, completion)
        session = completion.session_id
        if session is not None:
            await self._sessions.get(x[PRINCIPAL].organization, session)
            x[SESSION_ID] = session
        turn = await self._turn(x, completion, body, request, session)
        if turn.streams:
            await self._counted(x, turn, write_stream(x, turn, receive, send, form=ChunkEvents(), **self._patience))
        else:
            await self._counted(x, turn, write_whole(x, turn, receive, send))

    async def message(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        completion, request, body = read_messages(
            await read_body(receive, self._host.settings.max_body, scope["headers"])
        )
        self._check(x, completion)
        turn = await self._turn(x, completion, body, request, None)
        if turn.streams:
            await self._counted(x, turn, write_stream(x, turn, receive, send, form=MessageEvents(), **self._patience))
        else:
            await self._counted(x, turn, write_whole(x, turn, receive, send, told=whole_message))

    def _check(self, x: Exchange, completion: Completion) -> None:
        if len(completion.messages) > self._config.max_messages:
            message = f"messages: more than {self._config.max_messages}"
            raise Refused(bad_request(message, param="messages"))
        self._models.check(x, completion.model)

    async def _turn(
        self, x: Exchange, completion: Completion, body: bytes, request: dict[str, Any], session: str | None
    ) -> Turn:
        asked = new_turn(completion.messages)
        skill = completion.metadata.skill_name if completion.metadata is not None else None
        attempts: Attempts | SkillAnswer | ToolLoop | None = None
        if skill is not None:
            options = completion.stream_options
            attempts = await answer_by_skill(
                self._skills,
                x,
                skill,
                model=completion.model,
                text=str(asked[-1].content) if asked else "",
                session_id=session,
                stream=bool(completion.stream),
                include_usage=options is not None and bool(options.include_usage),
            )
        elif self._loops is not None:
            attempts = self._loops.loop(x, completion.model, request, session=session)
        if attempts is None:
            attempts = self._models.attempts(x, completion.model, body, request, stream=bool(completion.stream))
        record = Record(
            x,
            self._sessions,
            session=session,
            asked=asked if session is not None else [],
            use=attempts.use,
            events=self._events,
            metadata=attempts.metadata,
        )
        turn = Turn(attempts, record, self._host.logger, x.get(REQUEST_ID))
        if isinstance(attempts, ToolLoop):
            attempts.listen(turn.note)
        return turn

    async def _counted(self, x: Exchange, turn: Turn, writing: Awaitable[None]) -> None:
        """Start a turn and have it written; count it, and at the end its answer."""
        started = time.perf_counter()
        inbound, outbound = self._told[x[TIER].name]
        inbound.inc()
        self._turns.start(turn)
        try:
            await writing
        finally:
            self._seconds.observe(time.perf_counter() - started)
            if turn.delivered:
                outbound.inc()

    async def embed(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        body = await read_body(receive, self._host.settings.max_body, scope["headers"])
        embedding, request = read_embedding(body)
        self._models.check(x, embedding.model)
        attempts = self._models.attempts(x, embedding.model, body, request, stream=False)
        await write_json(await attempts.embed(), send)

    async def turn(
        self,
        x: Exchange,
        *,
        session_id: str,
        content: str,
        model: str | None,
        stream: bool,
        metadata: Mapping[str, Any],
    ) -> SessionTurn:
        """Start a turn of a session: the model sees the stored history and the new content."""
        alias = model if model is not None else next(iter(self._models.usable(x[TIER])), "")
        self._models.check(x, alias)
        attempts: Attempts | SkillAnswer | ToolLoop
        given = metadata.get("id")
        ref = given if isinstance(given, str) else None
        if (skill := metadata.get("skillName")) is not None:
            attempts = await answer_by_skill(
                self._skills,
                x,
                skill,
                model=alias,
                text=content,
                session_id=session_id,
                stream=stream,
                include_usage=False,
                ref=ref,
            )
        else:
            attempts = await self._with_history(x, alias, session_id, content, stream=stream, ref=ref)
        asked = NewMessage(role="user", content=content, metadata=dict(metadata))
        record = Record(
            x, self._sessions, session=session_id, asked=[asked], use=attempts.use, metadata=attempts.metadata
        )
        turn = Turn(attempts, record, self._host.logger, x.get(REQUEST_ID))
        started = time.perf_counter()
        inbound, outbound = self._told[x[TIER].name]
        inbound.inc()

        def ended(turn: Turn) -> None:
            self._seconds.observe(time.perf_counter() - started)
            if turn.delivered:
                outbound.inc()

        self._turns.start(turn)
        return SessionTurn(turn, record, ended)

    async def _with_history(
        self, x: Exchange, alias: str, session_id: str, content: str, *, stream: bool, ref: str | None
    ) -> Attempts | ToolLoop:
        stored = await self._sessions.history(x[PRINCIPAL].organization, session_id, limit=self._config.history)
        request: dict[str, Any] = {
            "model": alias,
            "messages": prompt(stored, content, self._config.history_bytes),
            "stream": stream,
        }
        if stream:
            request["stream_options"] = {"include_usage": True}
        loop = self._loops.loop(x, alias, request, session=session_id, ref=ref) if self._loops is not None else None
        if loop is not None:
            return loop
        return self._models.attempts(x, alias, msgspec.json.encode(request), request, stream=stream)
