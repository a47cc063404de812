"""Chat completions, messages, models and embeddings over any provider; it knows none of them by name.

Stored history is never put before a prompt: the client resends its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from litestar.types import Receive, Send
from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    REQUEST_ID,
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
from openclaw_plugins.chat import requests
from openclaw_plugins.chat.answers import Record, note_usage_of_vectors
from openclaw_plugins.chat.anthropic_answers import MessageEvents, whole_message
from openclaw_plugins.chat.anthropic_requests import read_messages
from openclaw_plugins.chat.attempts import Attempts
from openclaw_plugins.chat.conversation import SessionTurn, prompt
from openclaw_plugins.chat.measures import Measures
from openclaw_plugins.chat.models import Models
from openclaw_plugins.chat.offers import ToolLoopConfig
from openclaw_plugins.chat.prices import Prices
from openclaw_plugins.chat.shapes import Completion
from openclaw_plugins.chat.skill_answers import SkillAnswer, answer_by_skill
from openclaw_plugins.chat.surface import surface
from openclaw_plugins.chat.tokens import Tokens
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
        answer_tokens: Annotated[
            int,
            Meta(ge=1, description="Tokens that an answer is taken to have, for limits on them, if nothing bounds it."),
        ] = 1_000

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
        self._max_body = host.settings.max_body
        self._patience: dict[str, float] = {"keep_alive": config.keep_alive, "stall": config.stall}
        self._tokens = Tokens(host, Prices(host, self._models.orders), answer=config.answer_tokens)
        self._measures = Measures(host)

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
        body = await read_body(receive, self._max_body, scope["headers"])
        completion, request = requests.read_completion(body)
        self._check(x, completion)
        session = completion.session_id
        if session is not None:
            session = (await self._sessions.get(x[PRINCIPAL].organization, session)).session_id
            await self._host.gateway.admission.in_session(x, session)
        turn = await self._turn(x, completion, body, request, session)
        self._turns.take(turn, self._measures.begun(x))
        if turn.streams:
            await write_stream(x, turn, receive, send, form=ChunkEvents(), **self._patience)
        else:
            await write_whole(x, turn, receive, send)

    async def message(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        completion, request, body = read_messages(await read_body(receive, self._max_body, scope["headers"]))
        self._check(x, completion)
        turn = await self._turn(x, completion, body, request, None)
        self._turns.take(turn, self._measures.begun(x))
        if turn.streams:
            await write_stream(x, turn, receive, send, form=MessageEvents(), **self._patience)
        else:
            await write_whole(x, turn, receive, send, told=whole_message)

    def _check(self, x: Exchange, completion: Completion) -> None:
        if len(completion.messages) > self._config.max_messages:
            message = f"messages: more than {self._config.max_messages}"
            raise Refused(bad_request(message, param="messages"))
        self._models.check(x, completion.model)

    async def _turn(
        self, x: Exchange, completion: Completion, body: bytes, request: dict[str, Any], session: str | None
    ) -> Turn:
        skill = completion.metadata.skill_name if completion.metadata is not None else None
        attempts: Attempts | SkillAnswer | ToolLoop | None = None
        spent = None
        hides_usage = False
        if skill is not None:
            attempts = await answer_by_skill(
                self._skills,
                x,
                skill,
                model=completion.model,
                text=requests.last_said(completion.messages),
                session_id=session,
                stream=bool(completion.stream),
                include_usage=requests.asks_for_usage(request),
            )
        else:
            if self._tokens.counted(x, completion.model):
                spent = await self._tokens.charge(x, request)
            if self._loops is not None:
                attempts = self._loops.loop(x, completion.model, request, session=session)
        if attempts is None:
            if spent is not None and completion.stream and not requests.asks_for_usage(request):
                body, request = requests.asking_for_usage(body, request)
                hides_usage = True
            attempts = self._models.attempts(x, completion.model, body, request, stream=bool(completion.stream))
        record = Record(
            x,
            self._sessions,
            session=session,
            asked=requests.new_turn(completion.messages) if session is not None else [],
            use=attempts.use,
            events=self._events,
            metadata=attempts.metadata,
            spent=spent,
        )
        turn = Turn(attempts, record, self._host.logger, x.get(REQUEST_ID), hides_usage=hides_usage)
        if isinstance(attempts, ToolLoop):
            attempts.listen(turn.outlet.note)
        return turn

    async def embed(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        body = await read_body(receive, self._max_body, scope["headers"])
        embedding, request = requests.read_embedding(body)
        self._models.check(x, embedding.model)
        spent = await self._tokens.charge_embedding(x, request) if self._tokens.counted(x, embedding.model) else None
        attempts = self._models.attempts(x, embedding.model, body, request, stream=False)
        answer = await attempts.embed()
        note_usage_of_vectors(answer, attempts.use)
        attempts.told()
        if spent is not None:
            spent.settle(attempts.use)
        await write_json(answer, send)

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
        spent = None
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
            request = await self._with_history(x, alias, session_id, content, stream=stream)
            if self._tokens.counted(x, alias):
                spent = await self._tokens.charge(x, request)
            loop = self._loops and self._loops.loop(x, alias, request, session=session_id, ref=ref)
            attempts = loop or self._models.attempts(x, alias, msgspec.json.encode(request), request, stream=stream)
        asked = NewMessage(role="user", content=content, metadata=dict(metadata))
        record = Record(
            x,
            self._sessions,
            session=session_id,
            asked=[asked],
            use=attempts.use,
            metadata=attempts.metadata,
            spent=spent,
        )
        turn = Turn(attempts, record, self._host.logger, x.get(REQUEST_ID))
        self._turns.take(turn, self._measures.begun(x))
        turn.start()
        return SessionTurn(turn, record)

    async def _with_history(
        self, x: Exchange, alias: str, session_id: str, content: str, *, stream: bool
    ) -> dict[str, Any]:
        config = self._config
        stored = await self._sessions.history(
            x[PRINCIPAL].organization, session_id, limit=config.history, max_bytes=config.history_bytes
        )
        request: dict[str, Any] = {
            "model": alias,
            "messages": prompt(stored, content, config.history_bytes),
            "stream": stream,
        }
        if stream:
            request["stream_options"] = {"include_usage": True}
        return request
