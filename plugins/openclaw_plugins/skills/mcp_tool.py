"""One tool of an MCP server as a skill: its call, its progress, and what its result is worth to a client of text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from prometheus_client import Counter

from openclaw_gateway.api import SkillCall, SkillFailed, SkillInfo, Spread

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult

LONGEST_ERROR = 500


class Numbers(msgspec.Struct, frozen=True):
    """How long calls of servers take, and how they fail."""

    seconds: Spread
    errors: Counter


class Server(Protocol):
    """Where a tool is."""

    name: str
    numbers: Numbers
    client: Client | None

    def lost(self) -> None:
        """Say that a call went wrong: the connection is looked after now."""
        ...


class McpSkill:
    """One tool."""

    def __init__(self, server: Server, tool: str, info: SkillInfo, timeout: float, *, away: bool = False) -> None:
        self._server = server
        self.tool = tool
        self.timeout: float | None = timeout
        if away:
            info = msgspec.structs.replace(info, eligible=False, missing=(f"server:{server.name}",))
        self.info = info

    def check(self, params: Mapping[str, Any]) -> None:
        """What fits the tool's schema is for the server to judge."""

    async def run(self, call: SkillCall) -> Any:
        server = self._server
        seconds, error_type = time.perf_counter(), "cancelled"
        try:
            result = await self._call(call)
            error_type = ""
            return result
        except SkillFailed as failed:
            error_type = failed.error_type
            raise
        finally:
            server.numbers.seconds.labels(server.name, "tool").observe(time.perf_counter() - seconds)
            if error_type:
                server.numbers.errors.labels(server.name, "tool", error_type).inc()

    async def _call(self, call: SkillCall) -> Any:
        from mcp.shared.exceptions import MCPError
        from mcp.types import CONNECTION_CLOSED

        client = self._server.client
        if client is None:
            raise SkillFailed("the server is away", error_type="unreachable")

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            call.progress(message or (f"{progress:g} of {total:g}" if total is not None else f"{progress:g}"))

        try:
            result = await client.call_tool(self.tool, dict(call.params), progress_callback=progressed)
        except MCPError as error:
            self._server.lost()
            if error.code == CONNECTION_CLOSED:
                raise SkillFailed("the connection to the server was lost", error_type="connection_lost") from error
            message = f"the server refused the call: {error.message}"[:LONGEST_ERROR]
            raise SkillFailed(message, error_type="refused") from error
        except Exception as error:
            self._server.lost()
            raise SkillFailed("the server's answer cannot be understood", error_type="malformed") from error
        return _result(result)


def _result(result: CallToolResult) -> Any:
    """Texts as they are; of other content its kind, for no client of text can use it."""
    parts = [
        block.text if block.type == "text" else f"[{getattr(block, 'mime_type', None) or block.type}]"
        for block in result.content
    ]
    text = "\n".join(parts)
    if result.is_error:
        raise SkillFailed(text[:LONGEST_ERROR] or "the tool failed", error_type="tool")
    if result.structured_content is None:
        return {"text": text}
    return {"text": text, "structured": result.structured_content}
