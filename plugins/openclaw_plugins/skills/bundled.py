"""The skills that come along: search in the caller's own history, and a summary of a session. Neither asks a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Message, SkillCall

_EXCERPT = 300
#: how much of a session a summary reads
_MESSAGES = 500
_WORD = re.compile(r"[^\W\d_]{3,}")
_SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+|\n+")  # noqa: RUF001 - ends of sentences of other scripts


class Search:
    """Finds earlier messages of this session, or of all the caller's sessions, that hold every word of the query."""

    version = "1.0"

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        query: Annotated[str, Meta(min_length=1, max_length=1000, description="Words to look for.")]
        everywhere: Annotated[bool, Meta(description="Look into all your sessions, not only this one.")] = False
        limit: Annotated[int, Meta(ge=1, le=50, description="Most messages to return.")] = 10

    async def run(self, params: Params, call: SkillCall) -> Any:
        found = await call.history.search(params.query, everywhere=params.everywhere, limit=params.limit)
        words = params.query.split()
        matches = [
            {
                "messageId": message.message_id,
                "sessionId": message.session_id,
                "role": message.role,
                "timestamp": message.timestamp,
                "excerpt": _excerpt(_text(message), words),
            }
            for message in found
        ]
        lines = [f"{i}. {match['role']}: {match['excerpt']}" for i, match in enumerate(matches, 1)]
        return {"text": "\n".join(lines) or "No message holds all of these words.", "matches": matches}


class SummariseSession:
    """Summarises this session by its own most telling sentences, in the order in which they were said."""

    version = "1.0"

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        sentences: Annotated[int, Meta(ge=1, le=50, description="Most sentences of the summary.")] = 5

    async def run(self, params: Params, call: SkillCall) -> Any:
        messages = [m for m in await call.history.last(_MESSAGES) if m.role in ("user", "assistant")]
        chosen = summary([(m.role, _text(m)) for m in messages], params.sentences)
        text = "\n".join(f"{role}: {sentence}" for role, sentence in chosen) or "Nothing was said in this session yet."
        return {"text": text, "messages": len(messages)}


def summary(said: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Choose the sentences whose words the conversation uses most; the same input gives the same summary."""
    sentences = [
        (role, sentence.strip()) for role, text in said for sentence in _SENTENCE.split(text) if sentence.strip()
    ]
    sentences = list(dict.fromkeys(sentences))
    weight = Counter(word.lower() for _, sentence in sentences for word in _WORD.findall(sentence))
    scored: list[tuple[float, int]] = []
    for place, (_, sentence) in enumerate(sentences):
        words = {word.lower() for word in _WORD.findall(sentence)}
        # Long sentences hold more words and so would always win.
        score = sum(weight[word] for word in words) / (len(words) + 4) if words else 0.0
        scored.append((-score, place))
    return [sentences[place] for place in sorted(place for _, place in sorted(scored)[:most])]


def _text(message: Message) -> str:
    return message.content if isinstance(message.content, str) else ""


def _excerpt(text: str, words: Sequence[str]) -> str:
    """Return the part of a text around the first word that is found in it."""
    lowered = text.lower()
    places = [place for word in words if (place := lowered.find(word.lower())) >= 0]
    start = max(0, min(places, default=0) - _EXCERPT // 3)
    excerpt = text[start : start + _EXCERPT]
    return ("…" if start else "") + excerpt + ("…" if start + _EXCERPT < len(text) else "")
