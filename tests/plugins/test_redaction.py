"""Secrets leave no trace in a text, and what is no secret stays readable."""

import json
import random
import string

import pytest
from stopwatch import seconds

from openclaw_plugins.access_log.redaction import MASK, Redaction

_BASE64 = string.ascii_letters + string.digits + "-_"


def _word(rng: random.Random, length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choice(alphabet) for _ in range(length))


def _card(rng: random.Random) -> str:
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(d if i % 2 else (d * 2 - 9 if d > 4 else d * 2) for i, d in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return rng.choice([text, "-".join(text[i : i + 4] for i in range(0, 16, 4))])


def canaries(count: int, seed: int = 7) -> list[str]:
    """Return secrets of every kind that we know by its look."""
    rng = random.Random(seed)
    kinds = [
        lambda: f"eyJ{_word(rng, 30, _BASE64)}.eyJ{_word(rng, 60, _BASE64)}.{_word(rng, 43, _BASE64)}",
        lambda: f"ocg_{_word(rng, 12)}_{_word(rng, 38)}",
        lambda: f"sk-{_word(rng, 40)}",
        lambda: f"sk-proj-{_word(rng, 40, _BASE64)}",
        lambda: f"ghp_{_word(rng, 36)}",
        lambda: _card(rng),
    ]
    return [kinds[i % len(kinds)]() for i in range(count)]


def pieces(secret: str) -> list[str]:
    """Return the parts of a secret that would be as bad as the whole."""
    bare = secret.replace("-", "") if secret.replace("-", "").isdigit() else secret
    return [secret, *(secret[i : i + 12] for i in range(4, len(bare) - 12, 8))] if len(bare) > 20 else [secret]


@pytest.mark.parametrize(
    "frame",
    ["{}", "a {} b", "Bearer {}", '{{"x": "{}"}}', "https://a.example/p?q={}", "/api/v1/{}/x", "key={};", "\n{}\r\n"],
)
def test_no_canary_survives_in_any_surrounding(frame: str) -> None:
    redaction = Redaction()
    for secret in canaries(300):
        found = redaction.text(frame.format(secret)) + redaction.path(frame.format(secret))
        assert not [piece for piece in pieces(secret) if piece in found], (secret, found)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("postgresql://gateway:hunter2@db/x", "hunter2"),
        ("password = 'correct-horse'", "correct-horse"),
        ('{"client_secret": "abcdef"}', "abcdef"),
        ('{\\"token\\": \\"abcdef\\"}', "abcdef"),
        ("connect(dsn='x', password=b'opensesame')", "opensesame"),
        ("GET https://a.example/v1?code=abc&z=1 failed", "code=abc"),
        ("mail of ada@example.com", "ada@"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
    ],
)
def test_secrets_that_only_their_surroundings_show(text: str, gone: str) -> None:
    found = Redaction().text(text, multiline=True)
    assert gone not in found
    assert MASK in found


@pytest.mark.parametrize(
    "text",
    [
        "0192f0c4-7b7e-7cc3-98c4-dc0c0c07398f",
        "12345678-1234-7123-8123-123456789012",
        "the basic idea",
        "took 1234567890123 ns",
        "token bucket of 100",
        "promptTokens 12",
        "claude-3-5-sonnet-20241022",
        "task-force",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction().text(text) == text


def test_path_keeps_ids_and_words_and_hides_opaque_runs() -> None:
    redaction = Redaction()
    readable = "/api/v1/sessions/0192f0c4-7b7e-7cc3-98c4-dc0c0c07398f/messages"
    assert redaction.path(readable) == readable
    assert redaction.path("/api/v1/models/claude-3-5-sonnet-20241022") == "/api/v1/models/claude-3-5-sonnet-20241022"
    assert "a8Kd03" not in redaction.path("/x/a8Kd03jf9ALs02kfjs93kfls")


def test_values_under_secret_keys_are_masked_at_any_depth() -> None:
    fields = {
        "X-API-Key": "plain",
        "nested": [{"refresh_token": "plain", "count": 3}],
        "promptTokens": 12,
        "messages": 4,
        "content": "plain words",
        "house_number": "plain",
        "card": 4111111111111111,
        "data": b"plain",
    }
    found = Redaction(["house-number"]).value(fields)
    assert "plain" not in json.dumps(found)
    assert found["promptTokens"] == 12 and found["messages"] == 4
    assert found["nested"][0]["count"] == 3
    assert found["card"] == MASK


def test_nothing_breaks_a_line_and_no_text_is_endless() -> None:
    redaction = Redaction()
    hostile = "a\r\nb\x00\x1b[31m\u2028\u0085\ud800\u202e"
    found = redaction.text(hostile)
    assert found == "a\\r\\nb\\x00\\x1b[31m\\u2028\\x85\\ud800\\u202e"
    found.encode()
    assert len(redaction.text("x y " * 500_000)) < 9_000


def test_a_secret_that_the_cut_goes_through_is_gone_with_it() -> None:
    secret = canaries(1)[0]
    for margin in range(1, len(secret), 7):
        text = " " * (16_384 - margin) + secret
        assert secret[:margin] not in Redaction().text(text).strip() or margin < 4


@pytest.mark.parametrize(
    "unit",
    [
        "http://",
        "token ",
        "bearer ",
        "://a:",
        "eyJaaaaaa.",
        "4 ",
        "a@",
        "password=",
        "-----BEGIN PRIVATE KEY-----",
        "x",
    ],
)
def test_no_text_makes_redaction_slow(unit: str) -> None:
    assert seconds(lambda: Redaction().text(unit * (1_000_000 // len(unit)))) < 1


def test_objects_that_cannot_be_shown_cost_nothing() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    looped: dict[str, object] = {}
    looped["x"] = looped
    assert Redaction().value({"a": Broken(), "b": looped, "c": 10**400})["a"] == "(Broken)"
