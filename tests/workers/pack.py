"""A gateway of several worker processes, on one PostgreSQL and one Valkey."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from servers import free_port

from openclaw_gateway.testing import configuration

TIER = """
[ratelimit.requests]
limit = 1_000_000
per = "minute"
[ratelimit.ws_messages]
limit = 1_000_000
per = "minute"
[quota.sessions]
limit = 100_000
per = "month"
[quota.messages]
limit = 1_000_000
per = "month"
[concurrency.sessions]
limit = 1000
[concurrency.ws_connections]
limit = 100
"""
_WITHIN = 60.0
COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()")


class Pack:
    """Starts `serve` and looks at it from outside: by its ports, its log and its processes."""

    def __init__(
        self,
        folder: Path,
        database: str,
        valkey: str,
        *,
        workers: int = 2,
        edit: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port, self.operations = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "gateway.log"
        self._marked = 0
        self._environ = {**os.environ, **(environ or {})}
        changes: dict[str, Any] = {
            "gateway.port": self.port,
            "gateway.workers": workers,
            # Longer than a busy machine takes for any of the tests.
            "gateway.drain_timeout": "100s",
            "gateway.edge": {"body_idle": "100s"},
            "gateway.operations": {"port": self.operations},
            "plugins.database.url": database,
            "plugins.database.auto_upgrade": True,
            "plugins.redis.url": valkey,
            "plugins.redis.timeout": "1s",
            "plugins.counters.use": "counters.redis",
            "plugins.counters.replicas": 2,
            "plugins.events.use": "events.redis",
            "plugins.ws_tickets.redis": "redis",
            "plugins.sessions.sweep_every": "1s",
            **(edit or {}),
        }
        self.config = configuration(folder, edit=changes, tiers={"t": TIER})
        self.process: subprocess.Popen[bytes] | None = None
        self._headers: dict[str, str] = {}

    def start(self) -> None:
        self.mark()
        with self.log.open("ab") as log:
            command = [*COMMAND, "serve", "--config", self.config]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._environ)
        # All serve when the supervisor says so, and no request before that.
        self.until(lambda: " serves " in self.told())

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def mark(self) -> None:
        """Forget what it has said until now."""
        self._marked = self.log.stat().st_size if self.log.exists() else 0

    def told(self) -> str:
        """What it has said since the mark."""
        return self.log.read_bytes()[self._marked :].decode()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; return the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(_WITHIN)

    def end(self) -> None:
        """End whatever is left."""
        if self.process is not None and self.runs:
            self.process.kill()
            self.process.wait(_WITHIN)

    @property
    def headers(self) -> dict[str, str]:
        if not self._headers:
            minted = self.command("token", "--org", "acme", "--user", "ada", "--tier", "t")
            self._headers = {"Authorization": f"Bearer {minted.stdout.split()[-1]}"}
        return self._headers

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        name, *rest = arguments
        command = [*COMMAND, name, "--config", str(self.config), *rest]
        return subprocess.run(command, check=check, capture_output=True, text=True, env=self._environ)

    def get(
        self, path: str, *, operations: bool = False, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Ask on a connection of its own, so that any worker may answer."""
        port = self.operations if operations else self.port
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, body: Any) -> Any:
        headers = {**self.headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/health", operations=True)[1])
        return found

    def workers(self) -> list[dict[str, Any]]:
        """The workers, once all of them serve; any of them says it, with what it saw within the last second."""
        found: list[dict[str, Any]] = []
        self.until(lambda: bool(found.extend(self.health()["checks"]["workers"]["facts"]["workers"]) or found))
        return found

    def replaced(self, pid: int) -> None:
        """Wait until another process has the place of this one."""
        self.until(lambda: all(state["pid"] != pid for state in self.workers()))

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All series of one scrape, as Prometheus reads them; no series is there twice."""
        status, body = self.get("/metrics", operations=True)
        assert status == 200
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(body.decode()):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, key
                found[key] = sample.value
        return found

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WITHIN
        while True:
            try:
                if holds():
                    return
            except (OSError, KeyError, ValueError):
                pass
            alive = self.process is not None and self.process.poll() is None
            assert alive and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.05)
