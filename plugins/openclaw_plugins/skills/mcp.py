"""Skills that are tools of MCP servers: reached over streamable HTTP, or run as processes of this gateway.

A server that is away never keeps the gateway from starting, and its tools cannot be run until it is back.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import Duration, HealthCheck, Host, PluginConfig, Secret, Size, Skill, Spread, hookimpl
from openclaw_plugins.skills.mcp_server import Bounds, McpServer, Opened
from openclaw_plugins.skills.mcp_tool import Numbers
from openclaw_plugins.skills.places import BadPlace, place_of

_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,31}$")
_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class ServerConfig(PluginConfig, frozen=True, kw_only=True):
    """One server: `url` or `command`."""

    url: Annotated[
        str | None, Meta(description="Its streamable HTTP endpoint: a path at its target, or a whole URL.")
    ] = None
    target: Annotated[str | None, Meta(description="Name of the `[targets.<name>]` that it is at.")] = None
    headers: Annotated[dict[str, Secret], Meta(description="Sent with every request; values may be secrets.")] = (
        msgspec.field(default_factory=dict)
    )
    command: Annotated[
        tuple[str, ...], Meta(description="The program to run and its arguments, without a shell; it speaks on stdio.")
    ] = ()
    env: Annotated[
        dict[str, Secret], Meta(description="Its environment; of the gateway's own it gets `PATH` alone.")
    ] = msgspec.field(default_factory=dict)
    cwd: Annotated[str | None, Meta(description="Where the program runs, relative to this file.")] = None
    tools: Annotated[
        tuple[str, ...], Meta(min_length=1, description='Tools to offer, by their name at the server; "read_*" too.')
    ] = ("*",)
    timeout: Annotated[Duration, Meta(description="For one call of a tool; it is cancelled then.")] = Duration(30)
    connect: Annotated[Duration, Meta(description="For connecting, and for one listing of the tools.")] = Duration(10)
    max_message: Annotated[Size, Meta(description="Largest message of the server.")] = Size(2_000_000)


class McpSkills:
    """Offers the tools of MCP servers, each as `<server>.<tool>`."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        servers: Annotated[dict[str, ServerConfig], Meta(description="The servers, by the name that tools get.")] = (
            msgspec.field(default_factory=dict)
        )
        refresh: Annotated[
            Duration, Meta(description="How often tools are listed anew, and a silent loss is noticed.")
        ] = Duration(60)
        start_wait: Annotated[
            Duration, Meta(description="How long the start waits for servers; then it goes on without them.")
        ] = Duration(2)

    def __init__(self, config: Config, host: Host) -> None:
        if importlib.util.find_spec("mcp") is None:
            raise ValueError("it needs the package mcp: install openclaw-gateway[mcp]")
        self._config = config
        self._host = host
        numbers = Numbers(
            host.metric(
                Spread,
                "external_service_duration_seconds",
                "How long calls of services behind the gateway take.",
                ("target", "operation"),
                buckets=_BUCKETS,
            ),
            host.metric(
                Counter,
                "external_service_errors_total",
                "Calls of services behind the gateway that failed.",
                ("target", "operation", "error_type"),
            ),
        )
        self._changed: Callable[[], None] = lambda: None
        self._servers = [
            McpServer(
                name,
                self._transport(name, server),
                Bounds(server.tools, server.timeout, server.connect, config.refresh),
                host.logger,
                numbers,
                self._on_change,
            )
            for name, server in config.servers.items()
        ]

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(server.keep()) for server in self._servers]
        try:
            if tasks:
                first = [asyncio.create_task(server.first.wait()) for server in self._servers]
                _, late = await asyncio.wait(first, timeout=self._config.start_wait)
                for each in late:
                    each.cancel()
            yield
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=10)

    def skills(self) -> Sequence[Skill]:
        return [skill for server in self._servers for skill in server.skills]

    def on_change(self, call: Callable[[], None]) -> None:
        self._changed = call

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        return [HealthCheck(f"mcp:{server.name}", server.probe) for server in self._servers]

    def _on_change(self) -> None:
        self._changed()

    def _transport(self, name: str, server: ServerConfig) -> Opened:
        """Return what opens a connection. Raises ValueError where the table makes no sense."""
        where = f"servers.{name}"
        if _NAME.match(name) is None:
            raise ValueError(f"{where}: a name is of a-z, 0-9, _ and -, 32 at most")
        if (server.url is None) == (not server.command):
            raise ValueError(f"{where}: expected either `url` or `command`")
        if server.command:
            for key, value in (("target", server.target), ("headers", server.headers)):
                if value:
                    raise ValueError(f"{where}.{key}: it is for servers with a `url`")
            return self._process(where, name, server)
        for key, value in (("env", server.env), ("cwd", server.cwd)):
            if value:
                raise ValueError(f"{where}.{key}: it is for servers with a `command`")
        return self._http(where, server)

    def _process(self, where: str, name: str, server: ServerConfig) -> Opened:
        program, *arguments = server.command
        directory = self._host.config_dir / server.cwd if server.cwd is not None else Path(self._host.config_dir)
        found = shutil.which(program, path=os.environ.get("PATH"))
        if found is None and not (directory / program).is_file():
            raise ValueError(f"{where}.command: there is no program {program!r}")
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        environment.update({key: value.reveal() for key, value in server.env.items()})
        logger = self._host.logger

        def told(line: str) -> None:
            logger.info("mcp server %s: %s", name, line, extra={"fields": {"server": name}})

        def opened(gone: Callable[[], None]) -> AbstractAsyncContextManager[Any]:
            from openclaw_plugins.skills.mcp_stdio import process

            return process(
                (found or str(directory / program), *arguments),
                environment,
                directory,
                max_message=server.max_message,
                told=told,
                gone=gone,
            )

        return opened

    def _http(self, where: str, server: ServerConfig) -> Opened:
        assert server.url is not None
        target = None
        if server.target is not None:
            target = self._host.document.targets.get(server.target)
            if target is None:
                raise ValueError(f"{where}.target: there is no [targets.{server.target}]")
            if not server.url.startswith("/"):
                raise ValueError(f"{where}.url: expected a path that starts with / at its target")
        url = (target.url.rstrip("/") if target is not None else "") + server.url
        try:
            place = place_of(url)
        except BadPlace as error:
            raise ValueError(f"{where}.url: {error}") from None
        private = target is not None and target.private
        headers: Mapping[str, str] = {key: value.reveal() for key, value in server.headers.items()}

        def opened(gone: Callable[[], None]) -> AbstractAsyncContextManager[Any]:
            from openclaw_plugins.skills.mcp_http import streamable

            return streamable(place.url, headers, private=private, max_message=server.max_message)

        return opened
