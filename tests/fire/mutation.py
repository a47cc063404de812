"""Bad input from a seed: values, bytes, JSON, requests and frames that no client would send by mistake twice.

The same seed gives the same input, so that a finding can be had again; nothing here sends anything.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

#: texts that have broken parsers, stores, logs and terminals
TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ufeff",
    "\u2028\u2029",
    "\u202e\u0661\u0662",
    "\x1b[2J",
    "\r\nX-Injected: 1\r\n\r\n",
    "\n\ndata: [DONE]\n\n",
    "' OR 1=1 --",
    '"; DROP TABLE sessions; --',
    "%s%n%p",
    "{0.__class__}",
    "${jndi:ldap://127.0.0.1/a}",
    "../../../../etc/passwd",
    "..\\..\\windows",
    "<script>alert(1)</script>",
    "NaN",
    "Infinity",
    "null",
    "true",
    "-0",
    "0x10",
    "1e400",
    "٣",
    "é" * 200,
    "👩‍👩‍👧‍👦" * 20,
    "A" * 5_000,
    "search",
    "echo",
    "00000000-0000-0000-0000-000000000000",
    "018f2c5e-0000-7000-8000-000000000000",
    "2026-02-30T25:61:61Z",
    "9999-12-31T23:59:59.999999999Z",
    "eyJhbGciOiJub25lIn0.e30.",
)

NUMBERS: tuple[Any, ...] = (0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**400, 0.1, -0.0, 1e308, 5e-324)

#: JSON that Python's encoder would not write
RAW_JSON: tuple[bytes, ...] = (
    b"",
    b" ",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"0",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-",
    b"[" * 40_000,
    b'{"a":' * 40_000,
    b"[" * 100 + b"]" * 100,
    b'{"a":1,"a":2}',
    b'{"\\u0000":1}',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'{"content":"\\ud83d"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'"\xc0\x80"',
    b'"\xed\xa0\x80"',
    b'{"content":"\x80"}',
    b"{} {}",
    b"{'a': 1}",
    b"// no\n{}",
    b"a=1&b=2",
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--\r\n",
)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH", "PRI", "get")

HEADERS: Mapping[str, Sequence[str]] = {
    "Content-Type": (
        "application/json",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data",
        ";;;",
    ),
    "Content-Encoding": ("gzip", "br", "identity", "zstd, gzip"),
    "Accept": ("*/*", "text/html", "application/json;q=2", ",,,", "text/event-stream"),
    "Accept-Encoding": ("gzip", "*;q=0", "identity;q=0"),
    "Idempotency-Key": ("a", "x" * 300, "", "\x80\xff", "k k", '"quoted"'),
    "X-Request-ID": ("fine-1", "x" * 500, "a b", "\x7f", "../../x"),
    "traceparent": ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0-0-0", "ff-" + "0" * 60),
    "tracestate": ("a=1", "=,=", "x" * 600),
    "X-Forwarded-For": ("127.0.0.1", "1.2.3.4, , ::1", "unknown", "[::1]:99999", "%00"),
    "X-Forwarded-Proto": ("https", "javascript"),
    "X-Forwarded-Host": ("evil.example",),
    "Forwarded": ('for="[::1]";proto=https', "for=;;;"),
    "Origin": ("null", "https://evil.example", "http://"),
    "Range": ("bytes=0-0", "bytes=9-1,-", "lines=1"),
    "If-None-Match": ("*", '"x"', "W/"),
    "If-Modified-Since": ("yesterday", "Thu, 32 Foo 2026 99:99:99 GMT"),
    "Expect": ("100-continue", "200-ok"),
    "Cookie": ("a=b", ";=;=", "x=" + "y" * 3_000),
    "Last-Event-ID": ("1", "-1", "x"),
    "Connection": ("close", "Upgrade", "keep-alive, X-Request-ID"),
    "Upgrade": ("websocket", "h2c"),
    "TE": ("trailers", "gzip"),
    "Content-Length": ("0", "-1", "1e3", "+5", "99999999999999999999"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "x"),
    "Host": ("", "evil.example", "a b", "[::1", "127.0.0.1:99999999"),
    "Prefer": ("respond-async",),
    "anthropic-version": ("2023-06-01", "never"),
    "OpenAI-Organization": ("x",),
}

CREDENTIALS: tuple[tuple[str, str], ...] = (
    ("Authorization", ""),
    ("Authorization", "Bearer"),
    ("Authorization", "Bearer " + "a." * 3),
    ("Authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."),
    ("Authorization", "Bearer " + "A" * 9_000),
    ("Authorization", "Basic OmE="),
    ("Authorization", "Bearer \x80\xff"),
    ("Authorization", "Digest username=a"),
    ("X-API-Key", ""),
    ("X-API-Key", "oc_live_0000"),
    ("X-API-Key", "' OR ''='"),
    ("X-API-Key", "\x80\xff" * 10),
    ("X-API-Key", "x" * 4_000),
)


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(rng.randrange(1, 40)))


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, now and then one that is too deep or too many."""
    kind = rng.randrange(8)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice((None, True, False))
    if depth > 2:
        return []
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 3, 200) if depth == 0 else (0, 2)))]
    if kind == 6:
        return {text(rng): value(rng, depth + 1) for _ in range(rng.choice((0, 1, 4)))}
    nested: Any = text(rng)
    for _ in range(rng.choice((5, 63, 64, 65, 300))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    return nested


def altered(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """Flip, drop, double, cut and splice bytes."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at:at] = bytes([rng.randrange(256)])
        elif kind == 2:
            del out[at : at + rng.randrange(1, 8)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 30)]
        elif kind == 4:
            out[at:at] = rng.choice(
                (b"\x00", b"\xff", b'"', b"\\", b"{", b"]", b"\\u0000", b"\\ud800", b"1e999", b"\r\n")
            )
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def document(rng: random.Random, seed: Any) -> Any:
    """The same tree with one to three places changed."""
    tree = json.loads(json.dumps(seed))
    for _ in range(rng.randrange(1, 4)):
        spots = list(_spots(tree))
        if not spots:
            return value(rng)
        holder, key = rng.choice(spots)
        kind = rng.randrange(6)
        if kind < 3:
            holder[key] = value(rng)
        elif kind == 3 and isinstance(holder, dict):
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[text(rng)] = value(rng)
        else:
            holder[key] = [holder[key]]
    return tree


def body(rng: random.Random, seed: Any) -> bytes:
    """A body made from a good one, or from none."""
    chance = rng.random()
    if chance < 0.15:
        return rng.choice(RAW_JSON)
    if seed is None or chance < 0.2:
        return rng.randbytes(rng.randrange(200))
    data = json.dumps(document(rng, seed) if chance < 0.85 else seed, ensure_ascii=rng.random() < 0.5)
    encoded = data.encode("utf-8", "surrogatepass")
    return altered(rng, encoded) if chance > 0.65 else encoded


def sample(shape: Any, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """A body of a Struct: its fields by name, from what is known to be good."""
    if shape is None:
        return None
    return {name: known.get(name, "x") for name, required in _fields(shape) if name in known or required}


def percent(rng: random.Random, part: str) -> bytes:
    """A part of a path or a query, escaped well, badly, or not at all."""
    data = part.encode("utf-8", "surrogatepass")
    chance = rng.random()
    if chance < 0.5:
        return b"".join(bytes([b]) if chr(b).isalnum() and b < 128 else b"%%%02X" % b for b in data)
    if chance < 0.6:
        return rng.choice(
            (b"%", b"%zz", b"%00", b"%ff%fe", b"%2e%2e%2f", b"%u0041", b"%25%30%30", b";a=b", b"//", b"..", b"%0d%0a")
        )
    # What ends a request line would only break the framing, and that has its own tests.
    return bytes(b for b in data if b not in b" \r\n\x00") or b"-"


@cache
def _fields(shape: Any) -> list[tuple[str, bool]]:
    """Name and whether it is required of each field; msgspec resolves the types anew each time that it is asked."""
    return [(field.encode_name, field.required) for field in msgspec.structs.fields(shape)]


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        item = waiting.pop()
        keys: Any = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            found.append((item, key))
            waiting.append(item[key])
    return found
