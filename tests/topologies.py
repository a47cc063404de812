"""Valkey in more than one piece, from the same wheel: a cluster of three, a primary and replica behind Sentinels."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Valkey

_WAIT = 20.0


class Cluster:
    """Three primaries, and one replica of the first where asked for."""

    def __init__(self, nodes: list[Valkey]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def owner(self, slot: int) -> int:
        """The place of the node that holds a slot."""
        id = _owner(_client(self.nodes[1].port), slot)
        return next(i for i, n in enumerate(self.nodes) if _client(n.port).execute_command("CLUSTER", "MYID") == id)

    def move(self, slot: int) -> int:
        """Give an empty slot to the next node; return the place of its new owner."""
        clients = [_client(node.port) for node in self.nodes[:3]]
        owner = self.owner(slot)
        to = (owner + 1) % 3
        id = clients[to].execute_command("CLUSTER", "MYID").decode()
        for client in (clients[to], clients[owner], *clients):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", id)
        return to


@contextmanager
def start_cluster(*, replica: bool = False) -> Iterator[Cluster]:
    """Run a cluster for as long as the block."""
    # Without full coverage the nodes that live serve on while a dead one is replaced.
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
    with _servers(4 if replica else 3, *options) as nodes:
        clients = [_client(node.port) for node in nodes]
        bounds = [0, 5461, 10923, 16384]
        for client, first, end in zip(clients[:3], bounds, bounds[1:], strict=False):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        _until(lambda: all(b"cluster_state:ok" in c.execute_command("CLUSTER", "INFO") for c in clients[:3]))
        if replica:
            first = clients[0].execute_command("CLUSTER", "MYID").decode()
            _until(lambda: _replicates(clients[3], first))
            _until(lambda: b"master_link_status:up" in _raw(nodes[3].port, "INFO", "replication"))
        yield Cluster(nodes)


class Sentinels:
    """A primary, its replica, and three that watch them."""

    name = "main"

    def __init__(self, primary: Valkey, replica: Valkey, ports: list[int]) -> None:
        self.primary = primary
        self.replica = replica
        self._ports = ports

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self._ports) + f"/{self.name}"


@contextmanager
def start_sentinels() -> Iterator[Sentinels]:
    """Run them for as long as the block."""
    with _servers(2) as (primary, replica):
        _client(replica.port).execute_command("REPLICAOF", "127.0.0.1", primary.port)
        _until(lambda: b"master_link_status:up" in _raw(replica.port, "INFO", "replication"))
        watch = (
            f"sentinel monitor {Sentinels.name} 127.0.0.1 {primary.port} 2\n"
            f"sentinel down-after-milliseconds {Sentinels.name} 500\n"
            f"sentinel failover-timeout {Sentinels.name} 2000\n"
        )
        folder = Path(tempfile.mkdtemp(prefix="gateway-st-"))
        watchers = []
        try:
            for i in range(3):
                watcher = Valkey(folder)
                file = folder / f"{i}.conf"
                file.write_text(f"port {watcher.port}\nbind 127.0.0.1\n{watch}")
                command = [watcher._binary, file, "--sentinel"]
                watchers.append((watcher.port, subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)))
            ports = [port for port, _ in watchers]
            _until(lambda: all(_agreed(port) for port in ports))
            yield Sentinels(primary, replica, ports)
        finally:
            for _, process in watchers:
                process.kill()
                process.wait(20)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _servers(count: int, *options: str) -> Iterator[list[Valkey]]:
    folder = Path(tempfile.mkdtemp(prefix="gateway-vk-"))
    nodes: list[Valkey] = []
    try:
        for i in range(count):
            own = folder / str(i)
            own.mkdir()
            node = Valkey(own)
            node.start("--repl-diskless-sync-delay", "0", *options)
            nodes.append(node)
        yield nodes
    finally:
        for node in nodes:
            node.stop(9)
        shutil.rmtree(folder, ignore_errors=True)


def _client(port: int) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=2, retry=Retry(NoBackoff(), 0))


def _raw(port: int, *command: str) -> bytes:
    """The answer as it comes, which the client would make a table of."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall((" ".join(command) + "\r\n").encode())
        return connection.recv(65_536)


def _owner(client: redis.Redis, slot: int) -> Any:
    for first, last, owner, *_ in client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return owner[2]
    raise AssertionError(f"nobody owns slot {slot}")


def _replicates(client: redis.Redis, id: str) -> bool:
    try:
        client.execute_command("CLUSTER", "REPLICATE", id)
    except redis.ResponseError:
        return False
    return True


def _agreed(port: int) -> bool:
    slaves = _raw(port, "SENTINEL", "REPLICAS", Sentinels.name)
    return _raw(port, "SENTINEL", "CKQUORUM", Sentinels.name).startswith(b"+OK") and b"runid" in slaves


def _until(holds: Any) -> None:
    deadline = time.monotonic() + _WAIT
    while True:
        try:
            if holds():
                return
        except (OSError, redis.RedisError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
