"""The kit for plugin authors: build a gateway from the shipped files with a few edits, and serve it for real."""

from __future__ import annotations

import asyncio
import re
import shutil
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from openclaw_gateway.assets import asset
from openclaw_gateway.clock import Clock
from openclaw_gateway.gateway import Gateway
from openclaw_gateway.serving.server import Server

__all__ = ["ManualClock", "build", "configuration", "served", "serving"]

REMOVED = object()


class ManualClock:
    """A clock that a test moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds


def configuration(
    directory: Path,
    *,
    edit: Mapping[str, Any] | None = None,
    toml: str | None = None,
    tiers: Mapping[str, str] | None = None,
) -> Path:
    """Write a configuration into `directory` and return its path.

    Starts from the shipped `openclaw.toml` (or from `toml`) on a free port. `edit` sets dotted keys; a value of
    `None` removes one. `tiers` are texts of tier files by name; without them the shipped ones are copied.
    """
    text = toml if toml is not None else asset("openclaw.toml").read_text()
    data: dict[str, Any] = tomllib.loads(text) if toml is None or edit else {}
    if toml is None:
        data["gateway"]["port"] = 0
        # A loaded machine is not what a test judges: wait for a connection instead of refusing after a second.
        data["plugins"]["database"]["pool_timeout"] = "10s"
    for dotted, value in (edit or {}).items():
        keys = [part.strip('"') for part in re.findall(r'"[^"]+"|[^.]+', dotted)]
        table = data
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        if value is None:
            table.pop(keys[-1], None)
        else:
            table[keys[-1]] = value
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "openclaw.toml"
    if toml is not None and not edit:
        path.write_text(toml)
    else:
        path.write_bytes(_toml(data))
    folder = directory / str(data.get("gateway", {}).get("tiers", "tiers"))
    if tiers is not None:
        folder.mkdir(exist_ok=True)
        for name, content in tiers.items():
            (folder / f"{name}.toml").write_text(content)
    elif not folder.exists():
        shutil.copytree(asset("tiers"), folder)
    return path


def build(path: Path, *, environ: Mapping[str, str] | None = None, clock: Clock | None = None) -> Gateway:
    """Build a gateway from a file; the process's own environment is not looked at. Raises ConfigError."""
    return Gateway.from_file(path, environ=environ if environ is not None else {}, clock=clock)


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """Open the gateway and serve it on a real socket in this loop; yields its URL."""
    async with served(gateway) as server:
        yield server.gateway.url


@asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[Server]:
    """Like `serving`, and yields the server: its `front` reloads."""
    ready = asyncio.Event()
    server = Server(gateway, ready=ready.set)
    async with server.front.serving():
        task = asyncio.create_task(server.serve_in_this_loop())
        waiting = asyncio.create_task(ready.wait())
        try:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
                raise RuntimeError("the server stopped before it was ready")
            yield server
        finally:
            waiting.cancel()
            server.should_exit = True
            await task


def _toml(data: Mapping[str, Any]) -> bytes:
    """Write plain data as TOML; keys are quoted, tables are dotted headers."""
    lines: list[str] = []

    def table(prefix: str, values: Mapping[str, Any]) -> None:
        if prefix:
            lines.append(f"[{prefix}]")
        for key, value in values.items():
            if not isinstance(value, Mapping):
                lines.append(f'"{key}" = {msgspec.json.encode(value).decode()}')
        for key, value in values.items():
            if isinstance(value, Mapping):
                table(f'{prefix}."{key}"' if prefix else f'"{key}"', value)

    table("", data)
    return "\n".join(lines).encode() + b"\n"
