"""Several workers are one gateway: one port, one set of numbers, one reload, one stop; and a worker may die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from workers.pack import COMMAND, Pack

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")

Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def total(series: Series, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (found, has), value in series.items() if found == name and wanted <= has)


def fallen(before: Series, after: Series) -> list[Any]:
    """What counts and has gone down, or is gone."""
    counts = ("_total", "_count", "_bucket", "_sum")
    return [
        (key, value, after.get(key))
        for key, value in before.items()
        if key[0].endswith(counts) and after.get(key, -1) < value
    ]


def asked(pack: Pack, times: int) -> None:
    for _ in range(times):
        assert pack.get("/v1/models", headers=pack.headers)[0] == 200


def served(series: Series) -> float:
    return total(series, "http_requests_total", route="/v1/models", status_code="200")


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_both_serve_on_one_port_and_any_shows_the_sum(pack: Pack) -> None:
    states = pack.workers()
    assert [state["serving"] for state in states] == [True, True]
    assert len({state["pid"] for state in states} | {pack.process.pid}) == 3  # type: ignore[union-attr]
    before = served(pack.scrape())
    asked(pack, 40)
    after = [pack.scrape() for _ in range(6)]
    assert {served(series) for series in after} == {before + 40}
    assert {total(series, "workers_serving") for series in after} == {2}


def test_calls_of_models_are_added_up(pack: Pack) -> None:
    def shown() -> tuple[float, float]:
        series = pack.scrape()
        prompts = {"gen_ai_provider_name": "echo", "gen_ai_token_type": "input"}
        return (
            total(series, "gen_ai_client_token_usage_sum", **prompts),
            total(series, "gen_ai_client_operation_duration_seconds_bucket", le="+Inf", error_type=""),
        )

    tokens, calls = shown()
    for _ in range(20):
        pack.post("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]})
    assert {shown() for _ in range(6)} == {(tokens + 60, calls + 20)}


def test_the_commands_take_it_and_a_job_is_done_once(pack: Pack) -> None:
    assert pack.command("check").returncode == 0
    told = json.loads(pack.command("info", "--json").stdout)
    assert (told["workers"], told["listeners"]) == (2, [f"127.0.0.1:{pack.port}", f"127.0.0.1:{pack.operations}"])
    before = pack.scrape()
    sessions = 20
    for _ in range(sessions):
        pack.post("/api/v1/sessions", {"metadata": {}, "ttl": 1})
    # Both sweep, and each session is ended by one of them; how many are active is read once and not added up.
    name = "session_duration_seconds_count"
    pack.until(lambda: total(pack.scrape(), name) >= total(before, name) + sessions)
    after = pack.scrape()
    assert total(after, name) == total(before, name) + sessions
    assert total(after, "sessions_total") == total(before, "sessions_total") + sessions
    # what is active is counted now and then
    pack.until(lambda: total(pack.scrape(), "sessions_active") == 0)


def test_a_killed_worker_is_replaced_and_no_count_goes_down(pack: Pack) -> None:
    asked(pack, 20)
    before = pack.scrape()
    restarts = total(before, "worker_restarts_total")
    victim = pack.workers()[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    pack.replaced(victim)
    after = pack.scrape()
    assert fallen(before, after) == []
    assert served(after) >= served(before) >= 20
    assert total(after, "worker_restarts_total") == restarts + 1
    asked(pack, 20)
    last = pack.scrape()
    assert served(last) == served(after) + 20
    assert fallen(after, last) == []


def test_a_reload_is_of_all_or_of_none_and_numbers_go_on(pack: Pack) -> None:
    asked(pack, 10)
    before = pack.scrape()
    assert total(before, "config_generation") == 1
    text = pack.config.read_text()
    pack.config.write_text(text[: len(text) // 2])
    refused = pack.command("reload", "--json", check=False)
    assert refused.returncode != 0
    pack.config.write_text(text)
    rehearsed = json.loads(pack.command("reload", "--dry-run", "--json").stdout)
    assert rehearsed == {"ok": True, "generation": 1, "problems": [], "changes": [], "needRestart": []}
    for state in pack.workers():
        os.kill(state["pid"], signal.SIGUSR1)
    told = json.loads(pack.command("reload", "--json").stdout)
    assert told["ok"] and told["generation"] == 2
    assert told["workers"] == [{"index": i, "ok": True, "generation": 2} for i in (0, 1)]
    after = pack.scrape()
    assert fallen(before, after) == []
    assert total(after, "config_generation") == 2
    asked(pack, 10)
    assert served(pack.scrape()) == served(before) + 10
    for state in pack.workers():  # a signal to the whole group is for the supervisor alone
        os.kill(state["pid"], signal.SIGHUP)
    assert total(pack.scrape(), "config_generation") == 2


@pytest.mark.long
def test_a_worker_that_keeps_dying_leaves_its_connections_to_the_other(pack: Pack) -> None:
    """Where the next start has to wait, nobody waits for it."""
    first, second = (state["pid"] for state in pack.workers())
    os.kill(second, signal.SIGKILL)
    pack.replaced(second)
    again = pack.workers()[1]["pid"]
    pack.mark()
    os.kill(again, signal.SIGKILL)  # so soon after the other that the next start waits
    pack.until(lambda: "worker 1 ended" in pack.told())
    assert "started in 0s" not in pack.told()
    asked(pack, 30)
    assert pack.workers()[0]["pid"] == first
    # One that is started later begins with the number of the others.
    assert pack.command("reload").returncode == 0
    generation = total(pack.scrape(), "config_generation")
    victim = pack.workers()[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    pack.replaced(victim)
    assert total(pack.scrape(), "config_generation") == generation


@pytest.mark.long
def test_a_worker_that_hangs_is_replaced(pack: Pack) -> None:
    """Its share of new connections waits until then, and so do those who look."""
    before = pack.scrape()
    victim = pack.workers()[1]["pid"]
    os.kill(victim, signal.SIGSTOP)
    pack.until(lambda: "says nothing any more" in pack.told())
    pack.replaced(victim)
    assert fallen(before, pack.scrape()) == []


def test_a_stop_lets_what_runs_end_and_is_no_failure(pack: Pack) -> None:
    body = b'{"model": "echo", "messages": [{"role": "user", "content": "the end"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {pack.headers['Authorization']}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    running = []
    for _ in range(8):  # so many that both have some
        connection = socket.create_connection(("127.0.0.1", pack.port), timeout=90)
        connection.sendall(head.encode())
        running.append(connection)
    for connection in running:  # what only waits to be accepted when the gateway stops is not running
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body[:20])
    pids = [state["pid"] for state in pack.workers()]
    assert pack.process is not None
    pack.process.send_signal(signal.SIGTERM)
    # New connections are refused from the moment at which all have stopped to accept.
    pack.until(lambda: refused(pack.port))
    for connection in running:
        connection.sendall(body[20:])
        with connection, connection.makefile("rb") as reader:
            answer = reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ") and b"the end" in answer
    assert pack.process.wait(90) == 0
    assert not any(alive(pid) for pid in pids)
    assert not (pack.config.parent / ".openclaw" / "gateway.pid").exists()
    assert list((pack.config.parent / ".openclaw").glob("workers-*")) == []
    pack.start()


@pytest.mark.long
def test_without_its_supervisor_a_worker_drains_and_ends(pack: Pack) -> None:
    pids = [state["pid"] for state in pack.workers()]
    assert pack.process is not None
    pack.process.kill()
    pack.process.wait(90)
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # Nothing is in the way of the next: neither the port nor what was left in the folder.
    pack.start()
    assert len(list((pack.config.parent / ".openclaw").glob("workers-*"))) == 1
    asked(pack, 4)


@pytest.mark.long
def test_one_that_cannot_start_stops_the_start(pack: Pack, tmp_path: Path) -> None:
    edit = {"plugins.database.url": "postgresql://nobody@127.0.0.1:9/none", "plugins.database.auto_upgrade": False}
    broken = Pack(tmp_path, "", "redis://127.0.0.1:9/0", edit=edit)
    with broken.log.open("wb") as log:
        done = subprocess.run([*COMMAND, "serve", "--config", broken.config], stdout=log, stderr=log, timeout=100)
    assert done.returncode == 1
    assert "worker 0 not started: the database at " in broken.log.read_text()
    port = f"OPENCLAW_GATEWAY__PORT={pack.port}".split("=")
    taken = Pack(
        tmp_path / "taken", "postgresql://nobody@127.0.0.1:9/none", "redis://127.0.0.1:9/0", environ=dict([port])
    )
    found = taken.command("serve", check=False)
    assert (found.returncode, f"cannot listen on 127.0.0.1:{pack.port}" in found.stderr) == (1, True), found.stderr


def test_the_second_signal_ends_at_once(pack: Pack) -> None:
    connection = socket.create_connection(("127.0.0.1", pack.port), timeout=90)
    connection.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {pack.headers['Authorization']}\r\n".encode()
    )
    connection.sendall(b"Content-Length: 500\r\n\r\n{")
    assert pack.process is not None
    began = time.monotonic()
    pack.process.send_signal(signal.SIGINT)
    pack.until(lambda: refused(pack.port))
    pack.process.send_signal(signal.SIGINT)
    assert pack.process.wait(90) == 0
    assert time.monotonic() - began < 80  # of 100 seconds for what runs
    connection.close()
