"""The routes of chat and what they declare: who may call, what is metered, what is taken and given."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from litestar import Request, Response, asgi, get
from litestar.types import Receive, Send

from openclaw_gateway.api import MESSAGES, REQUESTS, SKILLS, TIER, TOKENS, Exchange, Refused, declared, not_found
from openclaw_plugins.chat.anthropic_answers import MessageAnswer
from openclaw_plugins.chat.anthropic_requests import MessagesRequest
from openclaw_plugins.chat.models import Models
from openclaw_plugins.chat.shapes import (
    Completion,
    CompletionAnswer,
    EmbeddingList,
    EmbeddingRequest,
    ModelCard,
    ModelList,
)

_PREFIXES = ("/v1", "/api/v1")
_ERRORS = (400, 401, 403, 413, 429, 500, 502, 503, 504)


class Answering(Protocol):
    """What answers the calls."""

    async def complete(self, scope: Any, receive: Receive, send: Send) -> None: ...

    async def message(self, scope: Any, receive: Receive, send: Send) -> None: ...

    async def embed(self, scope: Any, receive: Receive, send: Send) -> None: ...


def surface(chat: Answering, models: Models) -> list[Any]:
    """Return the handlers."""

    def paths(name: str) -> list[str]:
        return [f"{prefix}/{name}" for prefix in _PREFIXES]

    chat_completions = asgi(
        paths("chat/completions"),
        copy_scope=False,
        **declared(
            access="authenticated",
            methods=("POST",),
            meters=(REQUESTS, MESSAGES),
            charges_later=(SKILLS, TOKENS),
            names_session=True,
            surface="openai",
            summary="Complete a chat, whole or as an event stream.",
            body=Completion,
            answer=CompletionAnswer,
            errors=(404, *_ERRORS),
        ),
    )(chat.complete)

    messages = asgi(
        paths("messages"),
        copy_scope=False,
        **declared(
            access="authenticated",
            methods=("POST",),
            meters=(REQUESTS, MESSAGES),
            charges_later=(SKILLS, TOKENS),
            surface="anthropic",
            summary="Complete a chat in the shape of Anthropic's Messages API, whole or as an event stream.",
            body=MessagesRequest,
            answer=MessageAnswer,
            errors=_ERRORS,
        ),
    )(chat.message)

    embeddings = asgi(
        paths("embeddings"),
        copy_scope=False,
        **declared(
            access="authenticated",
            methods=("POST",),
            charges_later=(TOKENS,),
            surface="openai",
            summary="Turn texts into vectors.",
            body=EmbeddingRequest,
            answer=EmbeddingList,
            errors=_ERRORS,
        ),
    )(chat.embed)

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
        cards = [models.card(alias) for alias in models.usable(x[TIER])]
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
        if alias not in models.usable(x[TIER]):
            raise Refused(not_found("no such model"))
        return _json(models.card(alias))

    return [chat_completions, messages, embeddings, list_models, show_model]


def _json(answer: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json", status_code=200)
