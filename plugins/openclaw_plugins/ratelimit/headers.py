"""How headers tell a client where its rates stand: the RateLimit fields of the IETF draft, and those of OpenAI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from openclaw_gateway.api import TOKENS, Balance, Limit

#: all names of such headers
OURS = frozenset(b"ratelimit" + name for name in (b"", b"-policy")) | frozenset(
    b"x-ratelimit-%s%s" % (what, unit)
    for what in (b"limit", b"remaining", b"reset")
    for unit in (b"", b"-requests", b"-tokens")
)
_REQUESTS, _TOKENS = (
    tuple(b"x-ratelimit-%s-%s" % (what, unit) for what in (b"limit", b"remaining", b"reset"))
    for unit in (b"requests", b"tokens")
)


def headers_of(shown: Sequence[Shown], *, openai: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell of these balances, of which there is one or more."""
    tightest: Shown | None = None
    tokens: Shown | None = None
    for one in shown:
        if one.told.tokens:
            tokens = one
        elif tightest is None or one.tightness() < tightest.tightness():
            tightest = one
    # Tokens speak for the whole where they refused, and where nothing else is limited.
    spokesman = tokens if tokens is not None and (tokens.refused or tightest is None) else tightest
    assert spokesman is not None
    headers = [
        (b"ratelimit", shown[0].state if len(shown) == 1 else b", ".join([one.state for one in shown])),
        (b"ratelimit-policy", spokesman.told.policy if len(shown) == 1 else b", ".join([s.told.policy for s in shown])),
        (b"x-ratelimit-limit", spokesman.told.limit),
        (b"x-ratelimit-remaining", spokesman.remaining),
        (b"x-ratelimit-reset", spokesman.seconds),
    ]
    if openai:
        if tightest is not None:
            headers += tightest.to_openai(_REQUESTS)
        if tokens is not None:
            headers += tokens.to_openai(_TOKENS)
    return headers


class Told:
    """What headers tell of a limit whoever asks, written once."""

    __slots__ = ("capacity", "limit", "most", "policy", "state", "tokens")

    def __init__(self, limit: Limit) -> None:
        self.most = limit.limit
        self.capacity = limit.capacity()
        self.limit = b"%d" % limit.limit
        self.policy = b'"%s";q=%d;w=%d' % (limit.name.encode(), limit.limit, round(limit.window))
        self.tokens = limit.meter == TOKENS.name
        #: what precedes the numbers of one subject
        self.state = b'"%s";r=' % limit.name.encode()


class Shown:
    """A balance as headers tell it."""

    __slots__ = ("_left", "_reset", "refused", "remaining", "seconds", "state", "told")

    def __init__(self, told: Told, balance: Balance) -> None:
        self.told = told
        self.refused = balance.refused
        left = told.capacity - balance.used
        self._left = left if left > 0 else 0
        #: to the moment that a client should wait for; after a refusal the same as Retry-After
        self._reset = balance.reset_after or 0.0
        if balance.refused and balance.retry_after is not None:
            self._reset = max(1.0, balance.retry_after)
        self.remaining = b"%d" % self._left
        self.seconds = b"%d" % math.ceil(self._reset)
        self.state = b"%b%b;t=%b" % (told.state, self.remaining, self.seconds)

    def tightness(self) -> tuple[bool, float, float]:
        """What holds a client up most comes first: refusals, the longest of them before the others."""
        most = self.told.most
        left = self._left / most if most else 0.0
        return not self.refused, -self._reset if self.refused else left, left

    def to_openai(self, names: Sequence[bytes]) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that OpenAI's clients look for, under these names."""
        reset = self._reset
        time = b"%dms" % math.ceil(reset * 1000) if 0 < reset < 1 else _openai_duration(math.ceil(reset))
        return (names[0], self.told.limit), (names[1], self.remaining), (names[2], time)


@lru_cache(maxsize=4096)
def _openai_duration(seconds: int) -> bytes:
    """Write a time as OpenAI does: 1s, 6m0s, 1h0m0s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, rest)
    return b"%dm%ds" % (minutes, rest) if minutes else b"%ds" % rest
