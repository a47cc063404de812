"""The OpenAI surface: chat completions, models and embeddings over any provider; it knows none of them by name.

Stored history is never put before a prompt: the client resends its own.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec
from litestar import Request, Response, asgi, get
from litestar.types import Receive, Scope, Send
from msgspec import Meta
from prometheus_client import Counter, Histogram

from openclaw_gateway.api import (
    MESSAGES,
    PRINCIPAL,
    REQUEST_ID,
    REQUESTS,
    SESSION_ID,
    TIER,
    Duration,
    EventBus,
    Exchange,
    Fact,
    Host,
    ModelCall,
    ModelProvider,
    NewMessage,
    PluginConfig,
    Refused,
    SessionStore,
    Size,
    Tier,
    bad_request,
    declared,
    hookimpl,
    needs,
    not_found,
    read_body,
)
from openclaw_plugins.chat.answers import Record
from openclaw_plugins.chat.conversation import SessionTurn, prompt
from openclaw_plugins.chat.requests import forwarded, new_turn, read_completion, read_embedding, under_alias
from openclaw_plugins.chat.shapes import (
    Completion,
    CompletionAnswer,
    EmbeddingList,
    EmbeddingRequest,
    ModelCard,
    ModelList,
)
from openclaw_plugins.chat.turns import Turn, Turns
from openclaw_plugins.chat.writers import write_json, write_stream, write_whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PREFIXES = ("/v1", "/api/v1")
_ERRORS = (400, 401, 403, 413, 429, 500, 502, 503, 504)


class Chat:
    """Answers OpenAI's clients. It never retries an upstream, and never charges for what was not delivered."""

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

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._events = host.get(config.events, EventBus) if config.events is not None else None
        self._sessions = host.get(config.sessions, SessionStore)
        self._models = host.document.models
        self._created = int(host.clock.now())
        self._check_names(host)
        self._providers: dict[str, ModelProvider] = {}
        self._turns = Turns()
        self._usable = {name: self._usable_in(tier) for name, tier in host.tiers.items()}
        self._messages = Counter(
            "messages_total", "Turns of clients, and answers.", ("tier", "direction"), registry=host.registry
        )
        self._seconds = Histogram(
            "message_processing_duration_seconds",
            "From a turn's request to its commit.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=host.registry,
        )

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        # Only now: a provider's table may stand after this plugin's.
        self._providers = {
            alias: self._host.get(model.provider, ModelProvider)
            for alias, model in self._models.items()
        }
        async with self._turns.supervised():
            yield

    @hookimpl
    def routes(self) -> list[Any]:
        def paths(name: str) -> list[str]:
            return [f"{prefix}/{name}" for prefix in _PREFIXES]

        @asgi(
            paths("chat/completions"),
            copy_scope=False,
            **declared(
                access="authenticated",
                methods=("POST",),
                meters=(REQUESTS, MESSAGES),
                surface="openai",
                summary="Complete a chat, whole or as an event stream.",
                body=Completion,
                answer=CompletionAnswer,
                errors=(404, *_ERRORS),
            ),
        )
        async def chat_completions(scope: Scope, receive: Receive, send: Send) -> None:
            await self._complete(scope, receive, send)

        @asgi(
            paths("embeddings"),
            copy_scope=False,
            **declared(
                access="authenticated",
                methods=("POST",),
                surface="openai",
                summary="Turn texts into vectors.",
                body=EmbeddingRequest,
                answer=EmbeddingList,
                errors=_ERRORS,
            ),
        )
        async def embeddings(scope: Scope, receive: Receive, send: Send) -> None:
            await self._embed(scope, receive, send)

        @get(
            paths("models"),
            **declared(
                access="authenticated",
                surface="openai",
                summary="The models that the caller's tier may use.",
                answer=ModelList,
                errors=(401, 403, 429),
            ),
        )
        async def list_models(request: Request[Any, Any, Any]) -> Response[bytes]:
            x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
            cards = [self._card(alias) for alias in self._usable_by(x[TIER])]
            return _json(ModelList(data=cards))

        @get(
            paths("models/{id:path}"),
            **declared(
                access="authenticated",
                surface="openai",
                summary="One model; its id may hold slashes.",
                answer=ModelCard,
                errors=(401, 403, 404, 429),
            ),
        )
        async def show_model(request: Request[Any, Any, Any]) -> Response[bytes]:
            x: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
            alias = str(request.path_params["id"]).removeprefix("/")
            if alias not in self._usable_by(x[TIER]):
                raise Refused(not_found("no such model"))
            return _json(self._card(alias))

        return [chat_completions, embeddings, list_models, show_model]

    async def _complete(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        started = time.perf_counter()
        body = await read_body(receive, self._host.settings.max_body, scope["headers"])
        completion, request = read_completion(body)
        if len(completion.messages) > self._config.max_messages:
            message = f"messages: more than {self._config.max_messages}"
            raise Refused(bad_request(message, param="messages"))
        self._check_model(x, completion.model)
        self._check_skill(completion)
        session = completion.session_id
        if session is not None:
            await self._sessions.get(x[PRINCIPAL].organization, session)
            x[SESSION_ID] = session
        call = self._call(x, completion.model, body, request, stream=bool(completion.stream))
        record = Record(
            x,
            self._sessions,
            session=session,
            asked=new_turn(completion.messages) if session is not None else [],
            model=completion.model,
            events=self._events,
        )
        turn = Turn(call, self._providers[completion.model], record, self._host.logger)
        tier = x[TIER].name
        self._messages.labels(tier, "inbound").inc()
        self._turns.start(turn)
        try:
            if call.stream:
                await write_stream(x, turn, receive, send, keep_alive=self._config.keep_alive, stall=self._config.stall)
            else:
                await write_whole(x, turn, receive, send)
        finally:
            self._seconds.observe(time.perf_counter() - started)
            if turn.delivered:
                self._messages.labels(tier, "outbound").inc()

    async def _embed(self, scope: Any, receive: Receive, send: Send) -> None:
        x: Exchange = scope["exchange"]
        body = await read_body(receive, self._host.settings.max_body, scope["headers"])
        embedding, request = read_embedding(body)
        self._check_model(x, embedding.model)
        call = self._call(x, embedding.model, body, request, stream=False)
        answer = await self._providers[embedding.model].embed(call)
        if call.upstream_model != call.model:
            answer = under_alias(answer, call.model)
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
        alias = model if model is not None else next(iter(self._usable_by(x[TIER])), "")
        self._check_model(x, alias)
        if (skill := metadata.get("skillName")) is not None:
            raise Refused(
                bad_request(f"metadata.skillName: there is no skill {skill!r:.80}", param="metadata.skillName")
            )
        stored = await self._sessions.history(x[PRINCIPAL].organization, session_id, limit=self._config.history)
        request: dict[str, Any] = {
            "model": alias,
            "messages": prompt(stored, content, self._config.history_bytes),
            "stream": stream,
        }
        if stream:
            request["stream_options"] = {"include_usage": True}
        call = self._call(x, alias, msgspec.json.encode(request), request, stream=stream)
        asked = NewMessage(role="user", content=content, metadata=dict(metadata))
        record = Record(x, self._sessions, session=session_id, asked=[asked], model=alias)
        turn = Turn(call, self._providers[alias], record, self._host.logger)
        started, tier = time.perf_counter(), x[TIER].name
        self._messages.labels(tier, "inbound").inc()

        def ended(turn: Turn) -> None:
            self._seconds.observe(time.perf_counter() - started)
            if turn.delivered:
                self._messages.labels(tier, "outbound").inc()

        self._turns.start(turn)
        return SessionTurn(turn, record, ended)

    def _call(self, x: Exchange, alias: str, body: bytes, request: dict[str, Any], *, stream: bool) -> ModelCall:
        model = self._models[alias]
        upstream_model = model.name or alias
        return ModelCall(
            model=alias,
            upstream_model=upstream_model,
            body=forwarded(body, request, upstream_model),
            request=request,
            stream=stream,
            request_id=x.get(REQUEST_ID),
            first_byte_timeout=model.timeouts.first_byte,
            idle_timeout=model.timeouts.idle,
            total_timeout=model.timeouts.total,
        )

    def _check_model(self, x: Exchange, name: str) -> None:
        """Refuse a model that is unknown, or that the tier may not use: the two are not told apart."""
        usable = self._usable_by(x[TIER])
        if name in usable:
            return
        near = difflib.get_close_matches(name, usable, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Refused(bad_request(f"model: there is no model {name!r:.80}{hint}", param="model"))

    def _check_skill(self, completion: Completion) -> None:
        """Refuse a skill that nothing runs. No capability runs skills yet, so that each name is unknown."""
        skill = completion.metadata.skill_name if completion.metadata is not None else None
        if skill is not None:
            raise Refused(
                bad_request(f"metadata.skillName: there is no skill {skill!r:.80}", param="metadata.skillName")
            )

    def _check_names(self, host: Host) -> None:
        """Refuse names that open nothing: a slip of the pen there would only show as a model that is missing."""
        for alias, model in self._models.items():
            for name in model.tiers:
                if name not in host.tiers:
                    raise ValueError(f"models.{alias}.tiers: no file makes the tier {name!r}")
        for tier in host.tiers.values():
            for alias in sorted(tier.models or ()):
                if alias not in self._models:
                    raise ValueError(f"the tier {tier.name!r} opens the model {alias!r}, which [models] does not have")

    def _usable_by(self, tier: Tier) -> Sequence[str]:
        usable = self._usable.get(tier.name)
        return usable if usable is not None else self._usable_in(tier)

    def _usable_in(self, tier: Tier) -> list[str]:
        return [
            alias
            for alias, model in self._models.items()
            if (not model.tiers or tier.name in model.tiers) and (tier.models is None or alias in tier.models)
        ]

    def _card(self, alias: str) -> ModelCard:
        return ModelCard(id=alias, created=self._created, owned_by=self._models[alias].owned_by)


def _json(answer: ModelList | ModelCard) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json", status_code=200)
