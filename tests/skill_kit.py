"""What the tests of skills share: skills that do as they are told, offered like installed ones."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta
from socket_kit import Place
from sqlalchemy import text

from openclaw_gateway.api import SkillCall, SkillFailed
from openclaw_plugins.skills import python


class Act:
    """Does what its parameter says."""

    version = "2.1"
    timeout = 0.5
    began: list[str] = []  # noqa: RUF012 - what the tests look at
    cancelled: list[str] = []  # noqa: RUF012

    class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        how: str
        times: Annotated[int, Meta(ge=1, le=5)] = 1

    async def run(self, params: Params, call: SkillCall) -> Any:
        self.began.append(call.execution_id)
        if params.how == "meet":
            async with asyncio.timeout(2):
                while len(self.began) < params.times:
                    await asyncio.sleep(0.005)
        if params.how == "sleep":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.append(call.execution_id)
                raise
        if params.how == "stubborn":
            while True:
                try:
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    if self.cancelled:
                        raise
        if params.how == "fail":
            raise SkillFailed("it would not", error_type="unwilling")
        if params.how == "raise":
            raise RuntimeError("secret cause")
        if params.how == "large":
            return "x" * 2_000_000
        if params.how == "odd":
            return {"o": object()}
        if params.how == "surrogate":
            return "\ud800"
        if params.how == "progress":
            for i in range(params.times):
                call.progress(f"step {i + 1}")
                await asyncio.sleep(0.01)
        return {"text": f"did {params.how}", "times": params.times, "nul": "\x00"}


class Threaded:
    """Works in a thread."""

    class Params(msgspec.Struct, frozen=True, kw_only=True):
        seconds: float = 0.0

    timeout = 0.3

    def run(self, params: Params, call: SkillCall) -> Any:
        call.progress("in a thread")
        time.sleep(params.seconds)
        return {"slept": params.seconds}


class Exact:
    """Wants a number, which no text of a user becomes."""

    class Params(msgspec.Struct, frozen=True, kw_only=True):
        number: int

    async def run(self, params: Params, call: SkillCall) -> Any:
        return params.number


OFFERED = {"act": Act, "threaded": Threaded, "exact": Exact}


class Offered(EntryPoint):
    """An entry point whose class is at hand."""

    def load(self) -> Any:
        return OFFERED[self.name]


def offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer these skills beside the installed ones."""
    real = python.entry_points(group=python.GROUP)
    extra = [Offered(name, f"skill_kit:{cls.__name__}", python.GROUP) for name, cls in OFFERED.items()]
    monkeypatch.setattr(python, "entry_points", lambda group: [*real, *extra])
    Act.cancelled.clear()
    Act.began.clear()


async def execute(here: Place, skill: str, session: str | None, /, **params: Any) -> tuple[int, Any]:
    body: dict[str, Any] = {"params": params, **({"sessionId": session} if session is not None else {})}
    return await here.ask("POST", f"/api/v1/skills/{skill}/execute", body)


async def rows(here: Place) -> list[Any]:
    """Every run that was written down, oldest first."""
    database = here.gateway.plugin("database")
    async with database.transaction(None, operation="select", table="t") as connection:
        found = await connection.execute(text("SELECT * FROM openclaw_skill_executions ORDER BY started_at"))
        return list(found.mappings())


async def used(here: Place, session: str) -> int:
    """How much of the session's quota of runs is used, held ones included."""
    database = here.gateway.plugin("database")
    async with database.transaction(None, operation="select", table="t") as connection:
        found = await connection.execute(
            text("SELECT used + held FROM openclaw_usage WHERE limit_name = 'quota.skills' AND subject = :subject"),
            {"subject": session},
        )
        return int(found.scalar() or 0)
