"""Takes secrets out of every text that a log line carries.

Applied last, to everything; it must never raise, and never let a line break through.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

MASK = "[REDACTED]"

#: longest text that is searched, and longest that is written
_SEARCHED = 16_384
_WRITTEN = 8_192
#: longest word that may be a secret
_WORD = 4_096
_DEPTH = 6
_ITEMS = 100

# A key is secret where its name, in lower case and without separators, ends so. Plurals such as
# `promptTokens` are counts and stay.
_SECRET_ENDINGS = (
    "authorization",
    "apikey",
    "bearer",
    "cookie",
    "credential",
    "credentials",
    "jwt",
    "passphrase",
    "passwd",
    "password",
    "pepper",
    "privatekey",
    "pwd",
    "secret",
    "secretkey",
    "signature",
    "ticket",
    "token",
)
# What a client says or is told has no place in a log, whatever it looks like.
_BODIES = ("body", "content", "messages", "prompt", "query", "querystring", "requestbody", "responsebody")

_SECRETS = re.compile(
    r"""
      (?P<scheme>\b(?:bearer|basic)[ \t]+) (?= \S{16} | \S*[\d=] | (?-i:\S+[A-Z]) ) [A-Za-z0-9._~+/=-]{4,}
    | \beyJ[A-Za-z0-9_-]{5,} (?: \.[A-Za-z0-9_-]* ){1,4}
    | ocg_[A-Za-z0-9_.-]{4,}
    | (?<![A-Za-z0-9]) (?: sk | pk | rk ) [-_] [A-Za-z0-9_-]{12,}
    | (?<![A-Za-z0-9]) (?: gh[pousr]_ | github_pat_ | glpat- | xox[abeprs]- | hf_ | AIza | AKIA | ASIA )
      [A-Za-z0-9_-]{10,}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY----- .*? (?: -----END[ ][A-Z ]*----- | \Z )
    | (?P<userinfo>://) [^\s/@:'"]* : [^\s/@'"]* @
    | (?P<named>
        (?: password | passwd | passphrase | pwd | secret | token | api[_-]?key | x-api-key | authorization | cookie
          | ticket | pepper | signature | private[_-]?key | credentials? )
        (?: \\?["'] )? \s* [=:] \s* (?: b?\\?["'] )? (?: (?: bearer | basic ) [ \t]+ )?
      ) (?! \[REDACTED\] ) [^\s"'&,;)}\]\\]{3,}
    | (?P<url> https?://[^\s?"'<>]{1,1024} \? ) [^\s"'<>)]+
    | (?P<card> (?<![0-9A-Za-z]) (?<![0-9a-fA-F]{4}-) \d (?: [ -]? \d ){12,18} (?![0-9A-Za-z-]) )
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")
# A long run of letters and digits in a path is no word; only ids of the shape that we give stay readable.
_OPAQUE = re.compile(r"(?=[^/]*\d)(?=[^/]*[A-Za-z])[A-Za-z0-9_+=~]{20,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Words, versions and UUIDs: most paths, and none that a pattern above could match; spares them the search.
_PLAIN_PATH = re.compile(rf"(?:/(?:[a-z]{{1,20}}|v\d|{_UUID.pattern}))*\Z")
# C0, DEL, C1, the separators that editors break lines at, direction overrides, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_BUT_NEWLINE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Redaction:
    """Redacts by the name of a key and by the look of a value. `extra` adds names of keys."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        self._endings = (*_SECRET_ENDINGS, *(_plain(name) for name in extra))

    def text(self, text: str, *, multiline: bool = False) -> str:
        """Return a text of unknown origin as it may be written; newlines are kept only where `multiline`."""
        text, cut = _bounded(text)
        text = _SECRETS.sub(_mask, text)
        if "@" in text:
            text = _EMAIL.sub(MASK, text)
        if len(text) > _WRITTEN:
            text, cut = text[:_WRITTEN], True
        return _escape(text, _CONTROL_BUT_NEWLINE if multiline else _CONTROL) + ("…" if cut else "")

    def identity(self, text: str) -> str:
        """Return an id that a credential proved: an e-mail address may be one, a secret may not."""
        return _identity(text) if len(text) <= 128 else _identity.__wrapped__(text)

    def path(self, path: str) -> str:
        """Return the path of a request, which holds whatever a client chose to put there."""
        if _PLAIN_PATH.match(path):
            return path
        path = self.text(path[:2048])
        if len(path) < 20:
            return path
        return "/".join(part if _UUID.fullmatch(part) else _OPAQUE.sub(MASK, part) for part in path.split("/"))

    def hides(self, key: str, value: Any) -> bool:
        """Whether `value` may not be written because of its key; of bodies, a count may."""
        name = _plain(key)
        if value is None:
            return False
        return name.endswith(self._endings) or (name in _BODIES and not isinstance(value, (int, float)))

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return a copy of structured data, with text scrubbed and what is secret by its key masked."""
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            # Sixteen digits are a card's number in text and as a number alike.
            return value if abs(value) < 10**12 else _number(self, value)
        if isinstance(value, str):
            return self.text(value)
        if depth >= _DEPTH:
            return MASK
        if isinstance(value, Mapping):
            pairs = list(value.items())[:_ITEMS]
            return {
                self.text(str(key)): MASK if self.hides(str(key), item) else self.value(item, depth + 1)
                for key, item in pairs
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item, depth + 1) for item in list(value)[:_ITEMS]]
        if isinstance(value, bytes):
            return f"({len(value)} bytes)"
        return self.text(_shown(value))


@lru_cache(4096)  # the same callers come again and again, and a search costs more than the rest of a line
def _identity(text: str) -> str:
    text, cut = _bounded(text, 256)
    return _escape(_SECRETS.sub(_mask, text), _CONTROL) + ("…" if cut else "")


def _number(redaction: Redaction, value: int) -> Any:
    text = str(value) if value.bit_length() < 512 else "(a large number)"
    found = redaction.text(text)
    return value if found == text and value.bit_length() < 64 else found


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a log line must survive any object
        return f"({type(value).__name__})"


def _plain(name: str) -> str:
    return name[:128].lower().replace("_", "").replace("-", "").replace(".", "")


def _bounded(text: str, length: int = _SEARCHED) -> tuple[str, bool]:
    if len(text) <= length:
        return text, False
    text = text[:length]
    if not text[-1].isspace():
        # A secret that the cut goes through would no longer look like one: its rest goes too.
        text = text[: -len(text[-_WORD:].rsplit(None, 1)[-1])]
    return text, True


def _mask(match: re.Match[str]) -> str:
    for name in ("scheme", "named", "url"):
        if (kept := match[name]) is not None:
            return kept + MASK
    if match["userinfo"] is not None:
        return f"://{MASK}@"
    if match["card"] is not None:
        return MASK if _luhn(match["card"]) else match["card"]
    return MASK


def _luhn(text: str) -> bool:
    total = 0
    for i, digit in enumerate(int(c) for c in reversed(text) if c.isdigit()):
        doubled = digit * 2 if i % 2 else digit
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _escape(text: str, controls: re.Pattern[str]) -> str:
    return controls.sub(_escaped, text) if controls.search(text) else text


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {10: "\\n", 13: "\\r", 9: "\\t"}.get(code)
    return short or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
