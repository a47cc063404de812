"""One exchange is one line, whole and in time, whatever the disk does and whatever a client sends."""

import asyncio
import json
import logging
import os
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from openclaw_gateway.errors import StartFailed
from openclaw_gateway.serving.front import reload_and_report
from openclaw_gateway.testing import build, configuration, served, serving
from openclaw_plugins.access_log.lines import Ended, HumanForm, JsonForm, Said
from openclaw_plugins.access_log.redaction import Redaction
from openclaw_plugins.access_log.sink import RotatedFile, Sink, StreamTarget


def ended(**changes: Any) -> Ended:
    given: dict[str, Any] = {
        "time": 1_790_000_000.5,
        "event": "request",
        "request_id": "r-1",
        "trace_id": None,
        "organization": "acme",
        "user": "ada@example.com",
        "session": None,
        "method": "GET",
        "route": "/api/v1/sessions/{id}",
        "path": "/api/v1/sessions/x",
        "status": 200,
        "seconds": 0.0123,
        "bytes_sent": 5,
        "client": "127.0.0.1",
        "refused_by": None,
        "error_code": None,
        "disconnected": False,
        "error": None,
    }
    return Ended(**(given | changes))


def said(message: str, fields: Any = None, error: BaseException | None = None) -> Said:
    return Said(1_790_000_000.5, logging.ERROR, "openclaw.x", message, fields or {}, {"requestId": "r-1"}, error)


class Held:
    """A target that takes nothing until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.data = b""

    def write(self, data: bytes) -> int:
        self.free.wait(5)
        self.data += data
        return len(data)

    def close(self) -> None:
        pass


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_line_of_an_exchange_has_the_fields_of_the_contract() -> None:
    line = json.loads(JsonForm(Redaction())(ended(refused_by="quota", error_code="QUOTA_EXCEEDED", status=403)))
    assert line == {
        "timestamp": "2026-09-21T14:13:20.500Z",
        "level": "warning",
        "event": "request",
        "requestId": "r-1",
        "organizationId": "acme",
        "userId": "ada@example.com",
        "method": "GET",
        "route": "/api/v1/sessions/{id}",
        "path": "/api/v1/sessions/x",
        "status": 403,
        "durationMs": 12.3,
        "bytes": 5,
        "client": "127.0.0.1",
        "refusedBy": "quota",
        "errorCode": "QUOTA_EXCEEDED",
    }


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (0, "info"), (404, "warning"), (502, "error")])
def test_level_follows_the_status(status: int, level: str) -> None:
    assert json.loads(JsonForm(Redaction())(ended(status=status)))["level"] == level


def test_exception_is_written_with_its_whole_chain_and_without_secrets() -> None:
    try:
        try:
            raise ValueError("cannot log in with password=hunter22")
        except ValueError as cause:
            raise RuntimeError("the outer one") from cause
    except RuntimeError as error:
        record = said("failed", error=error)
    for form in (JsonForm, HumanForm):
        line = form(Redaction())(record).decode()
        assert "ValueError" in line and "RuntimeError: the outer one" in line and "direct cause" in line
        assert "hunter22" not in line
    assert JsonForm(Redaction())(record).count(b"\n") == 1


def test_fields_stand_beside_ours_and_never_in_their_place() -> None:
    line = json.loads(JsonForm(Redaction())(said("hello", {"message": "fake", "event": "health", "rows": 3})))
    assert (line["message"], line["field_message"], line["event"], line["rows"]) == ("hello", "fake", "health", 3)
    assert line["requestId"] == "r-1"


@pytest.mark.parametrize("form", [JsonForm, HumanForm])
@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nb", "\u2028", "\x1b[2J", "\x00", "\ud800", "x" * 1_000_000, '"}\n{'])
def test_one_call_is_one_line(form: Any, hostile: str) -> None:
    for record in (said(hostile, {hostile: hostile}), ended(path=f"/{hostile}", user=hostile, client=hostile)):
        line = form(Redaction())(record)
        assert line.endswith(b"\n") and len(line.decode().splitlines()) == 1
        assert b"\x1b" not in line and b"\x00" not in line and len(line) < 40_000


@pytest.mark.parametrize("form", [JsonForm, HumanForm])
def test_no_control_character_gets_into_a_line(form: Any) -> None:
    """Whichever it is, wherever it comes from: a terminal that shows the log must not obey it."""
    breaking = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    # these change the order in which a terminal shows the rest of a line
    turning = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    controls = [*breaking, *turning]
    assert len(controls) > 70
    for control in controls:
        hostile = f"a{control}b"
        try:
            raise ValueError(hostile)
        except ValueError as error:
            records = (
                said(hostile, {hostile: [hostile, {hostile: hostile}]}, error=error),
                ended(path=f"/{hostile}", user=hostile, client=hostile, session=hostile, error_code=hostile),
            )
        for record in records:
            line = form(Redaction())(record)
            # an exception of the human form has lines of its own, indented
            text = line.decode().removesuffix("\n").replace("\n    ", "")
            assert control not in text, (control, line)


def test_a_stuck_target_never_makes_a_caller_wait_and_losses_are_counted() -> None:
    target, lost = Held(), []
    sink = Sink(lambda record: b"%d\n" % record, lambda: target, lost.append, capacity=100)
    sink.start()
    sink.put(0)
    time.sleep(0.15)  # the writer now hangs in the target
    slowest = 0.0
    for i in range(1_000):
        began = time.perf_counter()
        sink.put(i)
        slowest = max(slowest, time.perf_counter() - began)
    assert slowest < 0.05
    assert sum(lost) == 900
    assert sink.stop(timeout=0.1) is False
    target.free.set()


def test_lines_are_encoded_a_few_at_a_time_in_order() -> None:
    """Nothing else runs while they are encoded: a burst must not be one piece of work."""
    written: list[bytes] = []

    class Kept:
        def write(self, data: bytes) -> int:
            written.append(data)
            return len(data)

        def close(self) -> None: ...

    sink = Sink(lambda record: b"%d\n" % record, Kept, lambda _: None)
    for i in range(500):
        sink.put(i)
    sink.start()
    assert sink.stop()
    assert max(data.count(b"\n") for data in written) <= 32
    assert b"".join(written).split() == [b"%d" % i for i in range(500)]


class Disk:
    """Takes so many bytes, and then none until there is room again."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = b""

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.data += taken
        return len(taken)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("room", "whole", "lost"),
    [
        (0, b"", 3),
        (2, b"on\n", 3),
        (4, b"one\n", 2),
        (6, b"one\ntw\n", 2),
        (8, b"one\ntwo\n", 1),
        (13, b"one\ntwo\nthree\n", 1),
    ],
)
def test_a_disk_that_fills_leaves_whole_lines_counts_the_rest_and_tells_of_it(
    room: int, whole: bytes, lost: int
) -> None:
    """The last case fills in the very end of the last line: its newline is what is missing."""
    disk, counted = Disk(room), []
    sink = Sink(lambda record: record, lambda: disk, counted.append, loss=lambda n: b"%d lost\n" % n)
    for line in (b"one\n", b"two\n", b"three\n"):
        sink.put(line)
    sink._write_batch(disk)
    assert sum(counted) == lost
    sink.put(b"four\n")
    sink._write_batch(disk)  # still full: what is told of a loss is no line that is lost
    assert sum(counted) == lost + 1
    disk.room = 1_000
    sink.put(b"five\n")
    sink._write_batch(disk)
    assert disk.data == whole + b"%d lost\nfive\n" % (lost + 1)
    sink.put(b"six\n")
    sink._write_batch(disk)
    assert disk.data.endswith(b"five\nsix\n")
    assert sum(counted) == lost + 1


def test_a_full_device_and_a_pipe_that_nobody_reads_delay_nothing(tmp_path: Path) -> None:
    """Real ones: /dev/full takes nothing, and a FIFO takes what its buffer holds and then blocks its writer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for place in (Path("/dev/full"), pipe):
        lost: list[float] = []
        stream = place.open("wb", buffering=0)
        sink = Sink(lambda record: record, lambda stream=stream: StreamTarget(stream), lost.append, capacity=100)
        sink.start()
        slowest = 0.0
        for _ in range(3_000):
            began = time.perf_counter()
            sink.put(b"x" * 1_000 + b"\n")
            slowest = max(slowest, time.perf_counter() - began)
        deadline = time.monotonic() + 5
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lost and slowest < 0.2
        if place is pipe:
            os.close(reader)  # lets the writer go that hangs in it
        sink.stop()
        stream.close()


def test_what_a_stream_could_not_take_is_not_written_later(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        target = StreamTarget(full)
        assert target.write(b"lost\n") == 0
        file = tmp_path / "file"
        with file.open("wb") as good:
            os.dup2(good.fileno(), full.fileno())
            assert target.write(b"kept\n") == 5
        target.close()
    assert file.read_bytes() == b"kept\n"


def test_a_record_that_cannot_be_encoded_loses_only_itself() -> None:
    def encode(record: Any) -> bytes:
        return f"{1 / record}\n".encode()

    target, lost = Held(), []
    target.free.set()
    sink = Sink(encode, lambda: target, lost.append)
    sink.start()
    for record in (1, 0, 2):
        sink.put(record)
    assert sink.stop()
    assert (target.data, lost) == (b"1.0\n0.5\n", [1])


def test_file_turns_at_midnight_and_fourteen_are_kept(tmp_path: Path) -> None:
    day = 86_400.0
    now = [1_790_000_000.0]
    path = tmp_path / "logs" / "gateway.log"
    file = RotatedFile(path, now=lambda: now[0])
    for i in range(20):
        file.write(b"day %d\n" % i)
        now[0] += day
    file.close()
    aside = sorted(p.name for p in path.parent.iterdir() if p != path)
    assert len(aside) == 14
    assert aside[-1] == "gateway-2026-10-09.log"
    assert path.read_bytes() == b"day 19\n"
    assert (path.parent / aside[-1]).read_bytes() == b"day 18\n"
    assert path.stat().st_mode & 0o007 == 0


def test_file_of_an_earlier_day_is_put_aside_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    path.write_bytes(b"old\n")
    os.utime(path, (1_790_000_000, 1_790_000_000))
    file = RotatedFile(path, now=lambda: 1_790_000_000.0 + 3 * 86_400)
    file.write(b"new\n")
    file.close()
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "gateway-2026-09-21.log").read_bytes() == b"old\n"


def test_two_processes_share_a_file_over_a_turn_and_a_move(tmp_path: Path) -> None:
    now = [1_790_000_000.0]
    path = tmp_path / "gateway.log"
    one, two = RotatedFile(path, now=lambda: now[0]), RotatedFile(path, now=lambda: now[0])
    one.write(b"1\n")
    two.write(b"2\n")
    now[0] += 86_400
    one.write(b"3\n")
    os.utime(path, (now[0], now[0]))
    two.write(b"4\n")
    assert path.read_bytes() == b"3\n4\n"
    assert (tmp_path / "gateway-2026-09-21.log").read_bytes() == b"1\n2\n"
    os.utime(path, (now[0], now[0]))
    path.rename(tmp_path / "moved.log")
    two.write(b"5\n")
    assert path.read_bytes() == b"5\n"


async def test_lines_of_a_running_gateway(tmp_path: Path) -> None:
    gateway = build(configuration(tmp_path, edit={"plugins.access_log.file": "log/gateway.log"}))
    before = list(logging.getLogger("openclaw").handlers)
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/health/live?token=abc") as response:
            request_id = response.headers["x-request-id"]
        async with client.get(f"{url}/api/v1/sessions"):
            pass
        async with client.get(f"{url}/nowhere/at/all"):
            pass
        logging.getLogger("openclaw.probe").warning("a %s", "word", extra={"fields": {"apiKey": "x", "rows": 2}})
    assert logging.getLogger("openclaw").handlers == before
    lines = lines_of(tmp_path / "log" / "gateway.log")
    requests = [line for line in lines if line["event"] == "request"]
    assert [(r["route"], r["status"], r["level"]) for r in requests] == [
        ("/health/live", 200, "info"),
        ("/api/v1/sessions", 401, "warning"),
        ("(unmatched)", 404, "warning"),
    ]
    assert requests[0]["requestId"] == request_id
    assert requests[0]["path"] == "/health/live" and requests[0]["bytes"] > 0 and requests[0]["durationMs"] > 0
    assert requests[1]["refusedBy"] == "auth" and requests[1]["errorCode"] == "UNAUTHORIZED"
    probe = next(line for line in lines if line.get("logger") == "openclaw.probe")
    assert (probe["message"], probe["apiKey"], probe["rows"]) == ("a word", "[REDACTED]", 2)


async def test_the_log_tells_who_came_in_who_did_not_and_what_was_changed(tmp_path: Path) -> None:
    edit = {"plugins.access_log.file": "gateway.log", "plugins.auth.failures.per_address": 1}
    gateway = build(configuration(tmp_path, edit=edit))
    async with served(gateway) as server, aiohttp.ClientSession() as client:
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="open_source", scopes=("keys",))
        good = {"authorization": f"Bearer {token}"}
        asked = {}
        for path, headers in (
            ("/api/v1/usage", good),
            ("/api/v1/admin/audit", good),
            ("/api/v1/usage", {"x-api-key": "ocg_canary"}),
            ("/api/v1/usage", {"x-api-key": "ocg_canary"}),
        ):
            async with client.get(gateway.url + path, headers=headers) as answer:
                asked[answer.headers["x-request-id"]] = answer.status
        tier = tmp_path / "tiers" / "open_source.toml"
        tier.write_text(tier.read_text().replace("limit = 100\n", "limit = 101\n", 1))
        await server.front.reload()
        configuration(tmp_path, edit={**edit, "gateway.pipeline": ["nothing"]})
        assert not (await reload_and_report(server.front))["ok"]
    lines = lines_of(tmp_path / "gateway.log")
    told = [line for line in lines if line.get("requestId") in asked and line["event"] == "request"]
    assert [
        (line["status"], line.get("organizationId"), line.get("userId"), line.get("refusedBy"), line.get("errorCode"))
        for line in told
    ] == [
        (200, "acme", "ada", None, None),
        (403, "acme", "ada", "auth", "FORBIDDEN"),
        (401, None, None, "auth", "UNAUTHORIZED"),
        (429, None, None, "auth", "RATE_LIMIT_EXCEEDED"),
    ]
    assert [line["status"] for line in told] == list(asked.values())
    assert all(line["client"] == "127.0.0.1" and line["timestamp"].endswith("Z") for line in told)
    reloads = [line for line in lines if line.get("logger") == "openclaw.reload"]
    assert (reloads[0]["message"], reloads[0]["generation"]) == ("reloaded", 2)
    assert reloads[0]["changed"] == ["tiers.open_source.ratelimit.requests.limit"]
    assert reloads[1]["message"].startswith("not reloaded: ") and "pipeline" in reloads[1]["message"]


async def test_reloads_neither_double_nor_lose_what_other_parts_say(tmp_path: Path) -> None:
    edit = {"plugins.access_log.file": "gateway.log"}
    path = configuration(tmp_path, edit=edit)
    ours, probe = logging.getLogger("openclaw"), logging.getLogger("openclaw.probe")
    before, level = list(ours.handlers), ours.level
    async with served(build(path)) as server:
        probe.info("one")
        for word in ("two", "three"):
            await server.front.reload()
            probe.info(word)
        # Refused when the log is open already: what was there before goes on.
        configuration(tmp_path, edit={**edit, "plugins.database.url": "sqlite:////nowhere/at/all.db"})
        with pytest.raises(StartFailed):
            await server.front.reload()
        async with asyncio.timeout(20):
            while len(ours.handlers) > len(before) + 1:  # until the gateways before are closed
                await asyncio.sleep(0.01)
        probe.info("four")
        configuration(tmp_path, edit={**edit, "plugins.access_log.level": "error"})
        await server.front.reload()
        probe.info("five")
        probe.error("six")
    assert (ours.handlers, ours.level) == (before, level)
    lines = lines_of(tmp_path / "gateway.log")
    assert [line["message"] for line in lines if line.get("logger") == "openclaw.probe"] == [
        "one", "two", "three", "four", "six",
    ]  # fmt: skip
    assert [line["generation"] for line in lines if line.get("message") == "reloaded"] == [2, 3]


async def test_a_line_logged_in_a_request_carries_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = build(configuration(tmp_path, edit={"plugins.access_log.file": "gateway.log"}))
    monkeypatch.setattr(
        type(gateway.plugin("openapi")), "_written", lambda self: logging.getLogger("openclaw.inner").warning("hi")
    )
    async with serving(gateway) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/api/openapi.json") as response:
            request_id = response.headers["x-request-id"]
        logging.getLogger("openclaw.inner").warning("outside")
    inner = [line for line in lines_of(tmp_path / "gateway.log") if line.get("logger") == "openclaw.inner"]
    assert inner[0]["requestId"] == request_id
    assert "requestId" not in inner[1]
