"""One MCP server: its connection, kept and made again; its tools, as skills. It never fails the gateway.

A connection belongs to one task from its beginning to its end. Calls come from any task, and are cancelled by theirs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from openclaw_gateway.api import SkillInfo
from openclaw_plugins.skills.mcp_tool import LONGEST_ERROR, McpSkill, Numbers
from openclaw_plugins.skills.parameters import ParameterSchema

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import Tool

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0
_MOST_TOOLS = 128
#: names of one server over the life of the process: each is a series of metrics
_MOST_NAMES = 256
_MOST_PAGES = 20
_LONGEST_DESCRIPTION = 1_024
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")

#: opens a transport; what it is given is called when the server says no more
Opened = Callable[[Callable[[], None]], AbstractAsyncContextManager[Any]]


class Bounds(msgspec.Struct, frozen=True):
    """What of a server is offered, and the seconds that it has."""

    tools: Sequence[str]
    timeout: float
    connect: float
    refresh: float


class McpServer:
    """One server. `keep` runs as long as the plugin does."""

    def __init__(
        self,
        name: str,
        opened: Opened,
        bounds: Bounds,
        logger: logging.Logger,
        numbers: Numbers,
        changed: Callable[[], None],
    ) -> None:
        self.name = name
        self.bounds = bounds
        self.numbers = numbers
        self._opened = opened
        self._logger = logger
        self._changed = changed
        self.skills: list[McpSkill] = []
        #: None while it is away
        self.client: Client | None = None
        #: set when it was there for the first time
        self.first = asyncio.Event()
        self._problem: str | None = "not connected yet"
        self._skipped: list[str] = []
        self._names: set[str] = set()
        self._look = asyncio.Event()

    async def probe(self) -> Mapping[str, Any]:
        """Facts for the health of the gateway. Raises where the server is away."""
        if self._problem is not None:
            raise ConnectionError(self._problem)
        return {"tools": len(self.skills), "skipped": self._skipped}

    async def keep(self) -> None:
        """Connect, and again whenever the connection is lost, with pauses that grow."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                await self._connection()
                problem = "the connection was lost"
            except TimeoutError:
                problem = "it did not answer in time"
            except Exception as error:
                problem = _shown(error)
                self._logger.debug("mcp server %s", self.name, exc_info=error)
            self._leave(problem)
            if time.monotonic() - began > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret is made of it
            pause = min(pause * 2, _LONGEST_PAUSE)

    def lost(self) -> None:
        """Say that a call met no server: the connection is looked after now."""
        self._look.set()

    def _gone(self) -> None:
        self._leave("the connection was lost")
        self._look.set()

    def _leave(self, problem: str) -> None:
        """Nothing can be run there any more, until it is back."""
        if self._problem != problem:
            self._logger.warning("mcp server %s is away: %s", self.name, problem)
        self._problem, self.client = problem, None
        self._offer([McpSkill(self, skill.tool, skill.info, self.bounds.timeout, away=True) for skill in self.skills])

    async def _connection(self) -> None:
        """One connection, from its beginning to its loss."""
        from mcp import Client
        from mcp.types import Implementation, ToolListChangedNotification

        async def heard(message: Any) -> None:
            if isinstance(message, ToolListChangedNotification):
                self._look.set()

        # Some messages of a server would be answered by those who sit before a screen; nobody does here.
        client = Client(
            self._opened(self._gone),
            message_handler=heard,
            client_info=Implementation(name="openclaw-gateway", version="1"),
            cache=None,
        )
        async with asyncio.timeout(self.bounds.connect) as limit:
            async with client:
                self._look.clear()
                await self._refresh(client)
                limit.reschedule(None)
                self.client, self._problem = client, None
                self.first.set()
                self._logger.info("mcp server %s is there, with %d tools", self.name, len(self.skills))
                listening = asyncio.create_task(self._listen(client))
                try:
                    await self._stay(client)
                finally:
                    self.client = None
                    listening.cancel()
                    await asyncio.wait([listening])

    async def _stay(self, client: Client) -> None:
        """List the tools anew when they changed, and now and then; return when the server is gone."""
        while True:
            try:
                async with asyncio.timeout(self.bounds.refresh):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            if self.client is None:
                raise ConnectionError("the connection was lost")
            async with asyncio.timeout(self.bounds.connect):
                await self._refresh(client)

    async def _listen(self, client: Client) -> None:
        """Hear of changes from servers that tell them to those who ask; others send them by themselves."""
        from mcp.client.subscriptions import ListenNotSupportedError

        pause = _FIRST_PAUSE
        while True:
            try:
                async with client.listen(tools_list_changed=True) as events:
                    pause = _FIRST_PAUSE
                    async for _ in events:
                        self._look.set()
            except ListenNotSupportedError:
                return
            except Exception as error:
                self._logger.debug("mcp server %s: no news of its tools", self.name, exc_info=error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
            self._look.set()

    async def _refresh(self, client: Client) -> None:
        tools: list[Tool] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None or len(tools) > _MOST_TOOLS:
                break
        self._offer(self._read(tools))

    def _read(self, tools: Sequence[Tool]) -> list[McpSkill]:
        """Make skills of tools; what cannot be one is skipped and named."""
        skills: dict[str, McpSkill] = {}
        self._skipped = []
        for tool in tools:
            if not any(fnmatchcase(tool.name, each) for each in self.bounds.tools):
                continue
            name = f"{self.name}.{_NOT_IN_NAMES.sub('_', tool.name)[:128]}"
            reason = None
            if len(skills) >= _MOST_TOOLS or (name not in self._names and len(self._names) >= _MOST_NAMES):
                reason = "more tools than are taken of one server"
            elif name in skills:
                reason = "another tool has this name"
            else:
                try:
                    ParameterSchema(schema := _schema(tool))
                except ValueError as error:
                    reason = f"no good schema: {error}"
            if reason is not None:
                self._skipped.append(f"{name}: {reason}"[:LONGEST_ERROR])
                continue
            self._names.add(name)
            info = SkillInfo(
                name=name,
                version="1",
                description=" ".join((tool.description or tool.title or tool.name).split())[:_LONGEST_DESCRIPTION],
                parameters=schema,
                kind="mcp",
            )
            skills[name] = McpSkill(self, tool.name, info, self.bounds.timeout)
        self._skipped = self._skipped[:_MOST_TOOLS]
        return list(skills.values())

    def _offer(self, skills: list[McpSkill]) -> None:
        if [skill.info for skill in skills] != [skill.info for skill in self.skills]:
            self.skills = skills
            self._changed()


def _schema(tool: Tool) -> dict[str, Any]:
    schema = {"type": "object", "properties": {}, **tool.input_schema}
    if schema["type"] != "object" or not isinstance(schema["properties"], dict):
        raise ValueError("expected the schema of an object")
    return schema


def _shown(error: BaseException) -> str:
    """Say what went wrong with a connection: the first cause of a group, without its trace."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
