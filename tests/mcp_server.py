"""A real MCP server, made with the official SDK, whose tools do what tests need. `python mcp_server.py stdio|PORT`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests")
NOTES = Path(os.environ["NOTES"]) if "NOTES" in os.environ else None


def note(text: str) -> None:
    if NOTES is not None:
        with NOTES.open("a") as file:
            file.write(text + "\n")


@server.tool()
async def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
async def steps(count: int, ctx: Context[Any, Any]) -> str:
    """Goes so many steps and tells of each."""
    for i in range(count):
        await ctx.report_progress(i + 1, count, f"step {i + 1}")
    return "there"


@server.tool()
async def hang() -> str:
    """Never answers; notes when it is cancelled."""
    note("began")
    try:
        await asyncio.sleep(60)
    except BaseException:
        note("cancelled")
        raise
    return "late"


@server.tool()
async def large(size: int) -> str:
    """Says a lot."""
    return "x" * size


@server.tool()
async def fails() -> str:
    """Fails."""
    raise ToolError("not today")


@server.tool()
async def crash() -> str:
    """Ends the whole server."""
    os._exit(3)


@server.tool()
async def environment() -> list[str]:
    """Names what is in its environment."""
    return sorted(os.environ)


@server.tool()
async def learn(name: str, ctx: Context[Any, Any]) -> str:
    """Makes another tool, and says that there is one."""

    async def learnt() -> str:
        """What was learnt."""
        return f"I know {name}"

    server.add_tool(learnt, name=name)
    await ctx.notify_tools_changed()
    return "learnt"


if __name__ == "__main__":
    sys.stderr.write("hello on stderr\n")
    note(f"started {os.getpid()}")
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
