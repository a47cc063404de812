"""Runs skills: each in a task of its own, cut when its time is up, bounded in what it may return, and written down.

Whoever waits for a run may leave; the run still comes to an end, and its row says which.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from uuid_utils import uuid7

from openclaw_gateway.api import (
    PRINCIPAL,
    REQUEST_ID,
    SKILLS,
    EventBus,
    Exchange,
    Execution,
    ExecutionStatus,
    Hold,
    Host,
    Message,
    MessageSearch,
    Refused,
    SessionStore,
    SkillCall,
    SkillFailed,
    SkillInfo,
    StoreUnavailable,
    end_span,
    start_span,
)
from openclaw_plugins.skills.executions import Executions
from openclaw_plugins.skills.registry import Known
from openclaw_plugins.skills.telling import Telling

if TYPE_CHECKING:
    from openclaw_plugins.skills.numbers import Numbers

#: for a skill that was told to end
_GRACE = 1.0
_LONGEST_ERROR = 1_000
#: bytes of messages that one look into a history reads
_HISTORY = 1_000_000


class Runs:
    """All runs of this process, and what they have in common."""

    def __init__(
        self,
        host: Host,
        executions: Executions,
        sessions: SessionStore,
        events: EventBus | None,
        numbers: Numbers,
        *,
        timeout: float,
        max_output: int,
    ) -> None:
        self.host = host
        self.executions = executions
        self.sessions = sessions
        self.events = events
        self.numbers = numbers
        self.timeout = timeout
        self.max_output = max_output
        self._running: dict[asyncio.Task[Execution], Run] = {}
        self._of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._running)

    def of(self, organization: str) -> int:
        """How many of an organisation run."""
        return self._of[organization]

    def start(self, run: Run) -> asyncio.Task[Execution]:
        task = asyncio.create_task(run.whole())
        self._running[task] = run
        self._of[run.organization] += 1
        task.add_done_callback(self._ended)
        return task

    async def cut(self, within: float) -> None:
        """End what still runs: it is kept as cancelled."""
        for run in self._running.values():
            run.cut()
        if self._running:
            await asyncio.wait(set(self._running), timeout=within)

    def _ended(self, task: asyncio.Task[Execution]) -> None:
        run = self._running.pop(task)
        self._of[run.organization] -= 1
        if not self._of[run.organization]:
            del self._of[run.organization]
        if not task.cancelled():
            task.exception()  # whoever waited was told; where nobody does any more, it is in the row


class Run:
    """One run of a skill, charged to its exchange and not yet begun."""

    def __init__(
        self,
        runs: Runs,
        x: Exchange,
        known: Known,
        params: Mapping[str, Any],
        session_id: str | None,
        ref: str | None,
        heard: Callable[[str, str | None], None] | None,
    ) -> None:
        self._runs = runs
        self._x = x
        self._known = known
        self._params = params
        self._session_id = session_id
        self._ref = ref
        self._heard = heard
        self._id = str(uuid7())
        self._holds: Sequence[Hold] = ()
        self._task: asyncio.Task[Execution] | None = None
        self._work: asyncio.Task[Any] | None = None
        self._stopped = False
        #: whether it is charged where it does not complete: where its client cut it
        self._counts = False
        self.organization = x[PRINCIPAL].organization

    @property
    def info(self) -> SkillInfo:
        return self._known.info

    def begin(self) -> None:
        """Start it now. Its charge is its own from here on."""
        if self._x.receipt is not None:
            self._holds = self._x.receipt.take_holds(SKILLS.name)
        self._task = self._runs.start(self)

    async def execute(self) -> Execution:
        """Run to the end. Cancelling the wait cancels the run."""
        if self._task is None:
            self.begin()
        assert self._task is not None
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self.stop()
            raise

    def stop(self) -> None:
        """Tell the run to end now, for its client; it is kept as cancelled."""
        self._counts = True
        self.cut()

    def cut(self) -> None:
        """Tell the run to end now, for the gateway."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()

    async def whole(self) -> Execution:
        """Everything of a run, from its row to its row. Raises StoreUnavailable where it cannot be begun."""
        runs, name = self._runs, self.info.name
        at_most = self._known.skill.timeout or runs.timeout
        started_at = await self._begin(at_most)
        body = {"type": "skill", "ref": self._ref, "name": name, "executionId": self._id}
        telling = Telling(runs.events, self.organization, self._session_id, body, self._heard)
        telling.tell("started")
        started = runs.host.clock.monotonic()
        said = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
        span = start_span(f"execute_tool {name}", said, kind="internal")
        status, result, error, error_type = await self._attempt(telling, at_most)
        end_span(span, error_type)
        seconds = runs.host.clock.monotonic() - started
        runs.numbers.ended(name, status, seconds, error_type)
        execution = Execution(
            execution_id=self._id,
            skill_name=name,
            session_id=self._session_id,
            status=status,
            result=result,
            duration_ms=round(seconds * 1000),
            started_at=started_at,
            error=error,
        )
        await self._end(execution)
        telling.tell("completed" if status == "completed" else "failed", error)
        await telling.close()
        return execution

    async def _begin(self, at_most: float) -> Any:
        try:
            return await self._runs.executions.begin(
                self._id,
                organization=self.organization,
                user=self._x[PRINCIPAL].user,
                session_id=self._session_id,
                skill=self.info.name,
                params=self._params,
                at_most=at_most,
            )
        except BaseException:
            await self._runs.executions.forgive(self._holds)
            raise

    async def _attempt(self, telling: Telling, at_most: float) -> tuple[ExecutionStatus, Any, str | None, str | None]:
        """Return status, result, what to tell and the kind of error."""
        call = SkillCall(
            execution_id=self._id,
            organization=self.organization,
            user=self._x[PRINCIPAL].user,
            session_id=self._session_id,
            params=self._params,
            progress=telling.progress,
            history=_History(self._runs.sessions, self.organization, self._x[PRINCIPAL].user, self._session_id),
            request_id=self._x.get(REQUEST_ID),
        )
        work = self._work = asyncio.ensure_future(self._known.skill.run(call))
        if self._stopped:
            work.cancel()
        done, _ = await asyncio.wait({work}, timeout=at_most)
        if not done:
            work.cancel()
            done, _ = await asyncio.wait({work}, timeout=_GRACE)
            if not done:
                self._log("a skill does not end when it is cancelled")
                work.add_done_callback(lambda late: late.cancelled() or late.exception())
            elif not work.cancelled():
                work.exception()
            return "timeout", None, f"it did not end within {at_most:g} seconds", "timeout"
        if work.cancelled():
            return "cancelled", None, "it was cancelled before it ended", "cancelled"
        failure = work.exception()
        if isinstance(failure, SkillFailed):
            return "failed", None, str(failure)[:_LONGEST_ERROR], failure.error_type
        if isinstance(failure, Refused):
            return "failed", None, failure.refusal.message, "refused"
        if failure is not None:
            self._log("a skill failed", failure)
            return "failed", None, "the skill failed; the cause is in the gateway's log", "exception"
        return self._bounded(work.result())

    def _bounded(self, result: Any) -> tuple[ExecutionStatus, Any, str | None, str | None]:
        try:
            written = msgspec.json.encode(result)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self._log("the result of a skill cannot be written as JSON", error)
            return "failed", None, "its result cannot be written as JSON", "result"
        if len(written) > self._runs.max_output:
            return "failed", None, f"its result is larger than {int(self._runs.max_output)} bytes", "output_too_large"
        return "completed", msgspec.json.decode(written), None, None

    async def _end(self, execution: Execution) -> None:
        try:
            await self._runs.executions.end(
                execution.execution_id,
                self.organization,
                status=execution.status,
                result=execution.result,
                error=execution.error,
                duration_ms=execution.duration_ms,
                holds=self._holds,
                counts=execution.status == "completed" or (execution.status == "cancelled" and self._counts),
            )
        except StoreUnavailable as error:
            self._log("the end of a run could not be kept", error)

    def _log(self, message: str, error: BaseException | None = None) -> None:
        fields = {"requestId": self._x.get(REQUEST_ID), "skill": self.info.name, "executionId": self._id}
        self._runs.host.logger.error(message, exc_info=error, extra={"fields": fields})


class _History:
    """The history of one session, and the sessions of one user; the organisation is not for the skill to choose."""

    def __init__(self, sessions: SessionStore, organization: str, user: str, session_id: str | None) -> None:
        self._sessions = sessions
        self._organization = organization
        self._user = user
        self._session_id = session_id

    async def last(self, limit: int) -> Sequence[Message]:
        if self._session_id is None:
            return ()
        return await self._sessions.history(self._organization, self._session_id, limit=limit, max_bytes=_HISTORY)

    async def search(self, text: str, *, everywhere: bool = False, limit: int = 10) -> Sequence[Message]:
        store = self._sessions
        if not isinstance(store, MessageSearch):
            raise SkillFailed("the session store cannot be searched", error_type="unsupported")
        if self._session_id is None and not everywhere:
            return ()
        session_id = None if everywhere else self._session_id
        return await store.search(self._organization, text=text, session_id=session_id, user=self._user, limit=limit)
