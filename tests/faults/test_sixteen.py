"""Sixteen ways in which a model's upstream fails, and what a client of the gateway sees of each.

Every fault is played over real sockets, once to a plain call and once to a stream; again over aiohttp among the
long tests.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chat_kit import MINE, Kit
from faults.bench import Client, Seen, failing
from faults.faulty import Fault, FaultyUpstream, Reset, Silence, Status, Words, cut, faulty, nonsense, stall

MODELS = """
[plugins.other]
use = "providers.openai"
url = "URL"

[models.primary]
provider = "up"
fallbacks = ["backup"]
context = 100
timeouts = { first_byte = "1500ms", idle = "400ms", total = "5s" }

[models.backup]
provider = "other"
context = 50
fallbacks = ["large"]
timeouts = { first_byte = "1500ms", idle = "400ms", total = "5s" }

[models.large]
provider = "other"
context = 1000

[models.alone]
provider = "up"
name = "primary"
timeouts = { first_byte = "1500ms", idle = "400ms", total = "5s" }
"""

GOOD = Words("from ", "it")
OVERLOADED = Status(503, "overloaded")
TOO_LONG = Status(400, "maximum context length is 100 tokens", code="context_length_exceeded", param="messages")
FILTERED = Status(400, "the prompt was refused", code="content_filter")


class Bench(Client):
    """A client, and the upstream that plays its faults."""

    def __init__(self, kit: Kit, upstream: FaultyUpstream) -> None:
        super().__init__(kit)
        self.upstream = upstream

    def plays(self, *primary: Fault, backup: Fault = GOOD, large: Fault = GOOD) -> None:
        self.upstream.plays = {"primary": primary, "backup": [backup], "large": [large]}
        self.upstream.calls.clear()

    def calls(self) -> tuple[int, int, int]:
        return tuple(self.upstream.calls.get(model, 0) for model in ("primary", "backup", "large"))  # type: ignore[return-value]


@pytest.fixture(params=["direct", pytest.param("aiohttp", marks=pytest.mark.long)])
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Bench]:
    provider = f'"providers.openai"\ntransport = "{request.param}"'
    async with faulty() as upstream, failing(tmp_path, monkeypatch, MODELS, upstream, provider) as kit:
        yield Bench(kit, upstream)


#: number and fault → what a plain call and a stream came to; printed at the end
TABLE: dict[tuple[int, str], list[str]] = {}

both = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def judged(number: int, fault: str, stream: bool, bench: Bench, seen: Seen) -> None:
    calls = " + ".join(str(count) for count in bench.calls() if count)
    form = "stream" if stream else "plain"
    TABLE.setdefault((number, fault), []).append(
        f"{form}: {seen.verdict}; calls {calls}; {bench.seconds:.1f} s; charged {bench.charged}"
    )


@both
async def test_01_429_with_retry_after_is_waited_for(bench: Bench, stream: bool) -> None:
    bench.plays(Status(429, headers={"Retry-After": "1"}), GOOD)
    seen = await bench.ask(stream, model="alone")
    assert (seen.status, seen.text, seen.done, bench.calls()) == (200, "from it", True, (2, 0, 0))
    assert 1 <= bench.seconds < 3  # once, and no second time
    judged(1, "429 with Retry-After", stream, bench, seen)


@both
async def test_01_a_retry_after_beyond_the_deadline_goes_to_the_fallback_or_the_client(
    bench: Bench, stream: bool
) -> None:
    bench.plays(Status(429, headers={"Retry-After": "30"}))
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, bench.calls()) == (200, "backup", (1, 1, 0))
    seen = await bench.ask(stream, model="alone")
    assert (seen.status, seen.error["code"], bench.calls()) == (502, "UPSTREAM_ERROR", (2, 1, 0))
    assert bench.seconds < 0.5


@both
async def test_02_429_without_retry_after_is_tried_again_after_a_short_wait(bench: Bench, stream: bool) -> None:
    bench.plays(Status(429), GOOD)
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "primary", True, (2, 0, 0))
    assert 0.1 <= bench.seconds < 1
    judged(2, "429 without Retry-After", stream, bench, seen)


@both
async def test_03_one_500_is_tried_again(bench: Bench, stream: bool) -> None:
    bench.plays(Status(500), GOOD)
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "primary", True, (2, 0, 0))
    judged(3, "500 once", stream, bench, seen)


@both
async def test_04_503_for_ever_goes_to_the_fallback(bench: Bench, stream: bool) -> None:
    bench.plays(OVERLOADED)
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "backup", True, (3, 1, 0))
    judged(4, "503", stream, bench, seen)


@both
async def test_05_a_connection_that_is_reset_goes_to_the_fallback(bench: Bench, stream: bool) -> None:
    bench.plays(Reset())
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "backup", True, (3, 1, 0))
    judged(5, "connection reset", stream, bench, seen)


@both
async def test_06_a_silent_upstream_is_asked_once(bench: Bench, stream: bool) -> None:
    bench.plays(Silence())
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "backup", True, (1, 1, 0))
    assert 1.4 < bench.seconds < 2.2
    judged(6, "silence", stream, bench, seen)


@both
async def test_06_silence_without_a_fallback_is_a_504(bench: Bench, stream: bool) -> None:
    bench.plays(Silence())
    seen = await bench.ask(stream, model="alone")
    assert (seen.status, seen.error["code"], bench.calls()) == (504, "UPSTREAM_TIMEOUT", (1, 0, 0))
    assert (bench.seconds < 2.2, bench.charged) == (True, 0)


@both
async def test_07_a_slow_first_token_is_waited_for(bench: Bench, stream: bool) -> None:
    bench.plays(Words("from ", "it", first_after=1))
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "primary", True, (1, 0, 0))
    judged(7, "slow first token", stream, bench, seen)


@both
async def test_08_a_cut_in_the_middle(bench: Bench, stream: bool) -> None:
    bench.plays(Words("half ", "a word", then=cut), GOOD)
    seen = await bench.ask(stream)
    if stream:
        assert (seen.text, seen.error["code"], seen.done) == ("half a word", "UPSTREAM_ERROR", False)
        assert (bench.calls(), bench.charged) == ((1, 0, 0), 1)
    else:  # nothing of it had left
        assert (seen.status, seen.text, seen.model, bench.calls()) == (200, "from it", "primary", (2, 0, 0))
    judged(8, "cut mid-stream", stream, bench, seen)


@both
async def test_09_a_stall_in_the_middle(bench: Bench, stream: bool) -> None:
    bench.plays(Words("half ", "a word", then=stall))
    seen = await bench.ask(stream)
    if stream:
        assert (seen.text, seen.error["code"], seen.done) == ("half a word", "UPSTREAM_TIMEOUT", False)
        assert (bench.calls(), bench.charged) == ((1, 0, 0), 1)
        assert bench.seconds < 1
    else:
        assert (seen.status, seen.model, bench.calls()) == (200, "backup", (1, 1, 0))
    judged(9, "stall mid-stream", stream, bench, seen)


@both
async def test_10_a_malformed_chunk(bench: Bench, stream: bool) -> None:
    bench.plays(Words("half ", "a word", then=nonsense), GOOD)
    seen = await bench.ask(stream)
    if stream:
        assert (seen.text, seen.error["code"], seen.done) == ("half a word", "UPSTREAM_ERROR", False)
        assert bench.calls() == (1, 0, 0)
    else:
        assert (seen.text, seen.model, bench.calls()) == ("from it", "primary", (2, 0, 0))
    judged(10, "malformed chunk", stream, bench, seen)


async def test_10_a_malformed_first_chunk_is_tried_again(bench: Bench) -> None:
    bench.plays(Words(then=nonsense), GOOD)
    seen = await bench.ask(True)
    assert (seen.status, seen.text, seen.done, bench.calls()) == (200, "from it", True, (2, 0, 0))


async def test_11_a_missing_marker_after_a_finished_answer_is_no_loss(bench: Bench) -> None:
    bench.plays(Words("from ", "it", done=False))
    seen = await bench.ask(True)
    assert (seen.text, seen.error, seen.done) == ("from it", None, True)
    judged(11, "no [DONE]", True, bench, seen)


async def test_11_a_missing_marker_and_no_finish_is_a_cut(bench: Bench) -> None:
    bench.plays(Words("from ", "it", done=False, finish=None))
    seen = await bench.ask(True)
    assert (seen.text, seen.error["code"], seen.done) == ("from it", "UPSTREAM_ERROR", False)


@both
async def test_12_a_prompt_that_is_too_long_goes_to_a_larger_model_only(bench: Bench, stream: bool) -> None:
    bench.plays(TOO_LONG)
    seen = await bench.ask(stream)
    assert (seen.status, seen.model, seen.done, bench.calls()) == (200, "large", True, (1, 0, 1))
    judged(12, "context too long", stream, bench, seen)
    seen = await bench.ask(stream, model="alone")
    assert (seen.status, seen.error["code"], seen.error["param"]) == (400, "BAD_REQUEST", "messages")
    assert "maximum context length" in seen.error["message"]


@both
async def test_13_a_content_filters_refusal_is_the_clients_and_is_not_routed_around(bench: Bench, stream: bool) -> None:
    bench.plays(FILTERED)
    seen = await bench.ask(stream)
    assert (seen.status, seen.error["code"], seen.error["message"]) == (400, "BAD_REQUEST", "the prompt was refused")
    assert (bench.calls(), bench.charged) == ((1, 0, 0), 0)
    judged(13, "content filter", stream, bench, seen)


@both
async def test_14_a_fallback_that_refuses_does_not_make_it_the_clients_fault(bench: Bench, stream: bool) -> None:
    bench.plays(OVERLOADED, backup=Status(400, "prefill is not supported"), large=Status(422, "prefill"))
    seen = await bench.ask(stream)
    assert (seen.status, seen.error["code"], bench.calls()) == (502, "UPSTREAM_ERROR", (3, 1, 1))
    assert "prefill" not in seen.error["message"]
    assert bench.charged == 0
    judged(14, "a fallback that refuses", stream, bench, seen)


@both
async def test_15_an_upstream_that_flaps_fails_nobody(bench: Bench, stream: bool) -> None:
    bench.plays(*[OVERLOADED, GOOD] * 20)
    for _ in range(8):
        seen = await bench.ask(stream)
        assert (seen.status, seen.done) == (200, True)
    judged(15, "flapping upstream, 8 calls", stream, bench, seen)


async def test_15_an_upstream_that_is_down_is_rested_and_comes_back(bench: Bench) -> None:
    bench.plays(OVERLOADED)
    for _ in range(10):
        seen = await bench.ask(False)
        assert (seen.status, seen.model) == (200, "backup")
    assert bench.calls()[0] == 5  # then nobody asked it any more
    assert bench.kit.metric("model_resting", model="primary") == 1
    seen = await bench.ask(False, model="alone")  # its other name rests with it
    assert (seen.status, seen.error["code"], bench.calls()[0]) == (503, "SERVICE_UNAVAILABLE", 5)
    await asyncio.sleep(1)
    bench.upstream.plays["primary"] = [GOOD]
    assert (await bench.ask(False)).model == "primary"
    assert bench.kit.metric("model_resting", model="primary") == 0


@both
async def test_16_a_fail_over_is_accounted_for_once_and_under_the_right_name(bench: Bench, stream: bool) -> None:
    bench.plays(OVERLOADED, backup=Words("b1 ", "b2"))
    seen = await bench.ask(stream, sessionId=MINE)
    assert (seen.model, bench.charged, len(bench.kit.books.voided)) == ("backup", 1, 0)
    answer = bench.kit.shelf.messages_of[-1]
    assert (answer.content, answer.metadata["model"]) == ("b1 b2", "backup")
    metric = bench.kit.metric
    assert metric("model_fallbacks_total", model="primary", fallback="backup", reason="failed") == 1
    assert metric("model_retries_total", model="primary", reason="failed") == 2
    assert metric("messages_total", tier="basic", direction="outbound") == 1
    judged(16, "accounting after a fail-over", stream, bench, seen)


@both
@pytest.mark.parametrize("status", [401, 403])
async def test_an_upstreams_401_never_looks_like_ours(bench: Bench, stream: bool, status: int) -> None:
    bench.plays(Status(status, "bad key"))
    assert (await bench.ask(stream)).model == "backup"
    seen = await bench.ask(stream, model="alone")
    assert (seen.status, seen.error["code"]) == (502, "UPSTREAM_ERROR")
    assert bench.calls() == (2, 1, 0)  # a key does not become right by asking again


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what the sixteen came to; run the whole module to see it whole."""
    lines = [f"{number:2} | {fault} | {form}\n" for (number, fault), forms in sorted(TABLE.items()) for form in forms]
    with capsys.disabled():
        sys.stdout.writelines(["\n", *lines])
    assert not any("TRUNCATED" in form for forms in TABLE.values() for form in forms)
