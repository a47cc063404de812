"""What systemd hears: the datagrams of sd_notify, of one process and of several, over a real socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers.pack import COMMAND

from openclaw_gateway.serving.notify import notify, watchdog_period
from openclaw_gateway.testing import configuration

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="systemd is of Linux")


class Manager:
    """The side of systemd."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(60)
        self.heard: list[dict[str, str]] = []

    def hear(self, *, until: str) -> dict[str, str]:
        """Return the first message from now on that holds a key."""
        while True:
            message = dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())
            self.heard.append(message)
            if until in message:
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = f"@openclaw-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    found = Manager(address)
    yield found
    found.close()


def test_a_socket_may_be_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="n") as folder:  # a path of a socket has 107 bytes at most
        manager = Manager(f"{folder}/s")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/s")
        notify(READY="1", STATUS="well")
        assert manager.hear(until="READY") == {"READY": "1", "STATUS": "well"}
        manager.close()


def test_one_process_says_ready_reloading_alive_and_stopping(manager: Manager, tmp_path: Path) -> None:
    path = configuration(tmp_path, edit={"gateway.port": 0})
    environ = {**os.environ, "WATCHDOG_USEC": "1000000"}
    environ.pop("WATCHDOG_PID", None)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, "serve", "--config", path], env=environ, stdout=log, stderr=log)
    try:
        assert manager.hear(until="READY")["STATUS"] == "serving configuration 1"
        process.send_signal(signal.SIGHUP)
        begun = int(manager.hear(until="RELOADING")["MONOTONIC_USEC"])
        assert 0 < time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6 - begun < 60e6
        assert manager.hear(until="READY")["STATUS"] == "serving configuration 2"
        path.write_text("[gateway")
        process.send_signal(signal.SIGHUP)
        assert "refused" in manager.hear(until="READY")["STATUS"]
        manager.hear(until="WATCHDOG")
        # A process that hangs says nothing, and that is what the watchdog is for.
        process.send_signal(signal.SIGSTOP)
        manager._socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            for _ in range(50):
                manager.hear(until="WATCHDOG")
        manager._socket.settimeout(60)
        process.send_signal(signal.SIGCONT)
        manager.hear(until="WATCHDOG")
        process.send_signal(signal.SIGTERM)
        manager.hear(until="STOPPING")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)


def test_it_says_nothing_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY="1")
    assert caplog.messages == []
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify(READY="1")
    assert ["could not be told READY" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [("3000000", None, 3.0), ("3000000", "1", None), ("", None, None), ("0", None, None), ("x", None, None)],
)
def test_the_watchdog_is_of_one_process(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, period: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_period() == period
