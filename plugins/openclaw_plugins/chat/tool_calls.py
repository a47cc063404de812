"""Runs the skills that a model called, side by side, and tells it what came of each; nothing that fails is a fault.

Each run passes the one admission. What a skill says is given to the model as data of its call, bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from openclaw_gateway.api import Exchange, Execution, Refused, SkillRun, SkillRunner, StoreUnavailable, as_text
from openclaw_plugins.chat.rounds import Call

_encode = msgspec.json.Encoder().encode

_NO_MORE = "no more calls in this turn: answer with what you have"
_NOT_NOW = "it cannot be run at this moment"

#: told of a skill's name, the state of its run, and a detail
Heard = Callable[[str, str, str | None], None]


class ToolCalls:
    """Runs the calls of one turn."""

    __slots__ = ("_longest", "_ref", "_runner", "_session", "_skills", "_x", "executed", "heard")

    def __init__(
        self,
        runner: SkillRunner,
        x: Exchange,
        skills: Mapping[str, str],
        *,
        session: str | None,
        longest: int,
        ref: str | None,
    ) -> None:
        self._runner = runner
        self._x = x
        self._skills = skills
        self._session = session
        self._longest = longest
        self._ref = ref
        self.heard: Heard | None = None
        #: the skills that were run, each once
        self.executed: list[str] = []

    async def answer(self, calls: Sequence[Call], most: int, until: float) -> list[dict[str, Any]]:
        """Return the messages that answer the calls. `most` of them are run, and cut at `until` of the loop's time."""
        told: dict[int, str] = {}
        runs: dict[int, SkillRun] = {}
        try:
            for place, call in enumerate(calls):
                prepared = await self._prepare(call) if place < most else _problem(_NO_MORE)
                if isinstance(prepared, str):
                    told[place] = prepared
                    continue
                prepared.begin()
                runs[place] = prepared
                if prepared.info.name not in self.executed:
                    self.executed.append(prepared.info.name)
            waiting = {asyncio.ensure_future(run.execute()): place for place, run in runs.items()}
            if waiting:
                left = max(0.0, until - asyncio.get_running_loop().time())
                _, late = await asyncio.wait(waiting, timeout=left)
                for each in late:
                    runs[waiting[each]].cut()
                await asyncio.wait(waiting)  # at once, or by its own time-out where a skill does not let go
            told.update({place: self._told(ended) for ended, place in waiting.items()})
        except BaseException:
            for run in runs.values():
                run.stop()
            raise
        return [{"role": "tool", "tool_call_id": call.id, "content": told[place]} for place, call in enumerate(calls)]

    async def _prepare(self, call: Call) -> SkillRun | str:
        """Check and charge one call; a text where it cannot be run."""
        skill = self._skills.get(call.name)
        if skill is None:
            return _problem(f"there is no tool {call.name!r:.80}")
        try:
            params = msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return _problem("the arguments are no JSON object")
        heard = self.heard
        try:
            return await self._runner.prepare(
                self._x,
                skill,
                session_id=self._session,
                params=params,
                ref=self._ref,
                by_model=True,
                heard=None if heard is None else lambda state, detail: heard(skill, state, detail),
            )
        except Refused as error:
            listed = [f"{each['param']}: {each['message']}" for each in error.refusal.extra.get("problems", ())]
            return _problem("; ".join(listed) or error.refusal.message, code=error.refusal.code)
        except StoreUnavailable:
            return _problem(_NOT_NOW)

    def _told(self, ended: asyncio.Future[Execution]) -> str:
        try:
            execution = ended.result()
        except StoreUnavailable:
            return _problem(_NOT_NOW)
        if execution.status != "completed":
            return _problem(execution.error or "it did not complete", code=execution.status)
        text = as_text(execution.result)
        data = text.encode()
        if len(data) <= self._longest:
            return text
        return data[: self._longest].decode(errors="ignore") + f"\n[cut: {len(data)} bytes in all]"


def _problem(message: str, **more: str) -> str:
    return _encode({"error": {"message": message, **more}}).decode()
