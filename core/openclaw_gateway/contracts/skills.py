"""The Protocols of skills: what one is, where they come from, who runs them. No kind of skill is known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from openclaw_gateway.contracts.conversations import Message
    from openclaw_gateway.exchange import Exchange
    from openclaw_gateway.tiers import Tier

ExecutionStatus = Literal["pending", "running", "completed", "failed", "timeout", "cancelled", "lost"]


class SkillInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A skill as clients see it. `missing` says what keeps it from being run, by kind: "bin:curl", "env:TOKEN"."""

    name: str
    version: str
    description: str
    parameters: dict[str, Any]
    kind: str
    eligible: bool = True
    missing: tuple[str, ...] = ()
    #: whether a model may choose it by itself
    model_visible: bool = True
    #: whether a caller may run it by its name
    user_invocable: bool = True


class SkillFailed(Exception):
    """A skill could not do its work. `error_type` is one of a closed set of words; the text may be shown."""

    def __init__(self, message: str, *, error_type: str = "failed") -> None:
        self.error_type = error_type
        super().__init__(message)


class SkillParamsRefused(Exception):
    """Parameters that fit the schema and are wrong all the same: pairs of path and what is wrong there."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))


class SkillHistory(Protocol):
    """What was said in the session of a run; never another organisation's, nor another user's other sessions."""

    async def last(self, limit: int) -> Sequence[Message]:
        """The last messages of the session, oldest first; none where the run has no session.

        At most `limit`, and of long ones only as many as make a megabyte of JSON.
        """
        ...

    async def search(self, text: str, *, everywhere: bool = False, limit: int = 10) -> Sequence[Message]:
        """Messages that hold every word of `text`; `everywhere` looks into all sessions of the same user.

        Raises SkillFailed where the store cannot search.
        """
        ...


class SkillCall(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a skill: for whom, with what. `params` has passed the skill's schema.

    `progress` tells the listeners of the session how far it is; it may be called from any thread, and never waits.
    """

    execution_id: str
    organization: str
    user: str
    session_id: str | None
    params: Mapping[str, Any]
    progress: Callable[[str], None]
    history: SkillHistory
    request_id: str | None = None


@runtime_checkable
class Skill(Protocol):
    """Something that can be run by its name."""

    @property
    def info(self) -> SkillInfo: ...

    @property
    def timeout(self) -> float | None:
        """Seconds for one run; None takes the runner's own."""
        ...

    def check(self, params: Mapping[str, Any]) -> None:
        """Look at parameters that fit the schema, before anything is charged. Raises SkillParamsRefused."""
        ...

    async def run(self, call: SkillCall) -> Any:
        """Do the work; return what can be written as JSON. Raises SkillFailed; is cancelled when its time is up.

        A result that is an object with a text `text` is shown to a chat as that text.
        """
        ...


@runtime_checkable
class SkillSource(Protocol):
    """Brings skills of one kind."""

    def skills(self) -> Sequence[Skill]:
        """Return them all; asked when the source's lifespan is open, and again when it says that they changed."""
        ...


@runtime_checkable
class ChangingSkills(Protocol):
    """A source whose skills come and go while the gateway runs."""

    def on_change(self, call: Callable[[], None]) -> None:
        """Call it, on the loop, whenever `skills` would return something else. Asked once, at the start."""
        ...


class Execution(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A run of a skill as clients see it."""

    execution_id: str
    skill_name: str
    session_id: str | None
    status: ExecutionStatus
    result: Any
    duration_ms: int
    started_at: datetime
    error: str | None = None


class SkillRun(Protocol):
    """A run that nothing refuses any more, and whose charge is held until it ends.

    It counts where it completed, and where its client cut it; what failed by itself costs nothing.
    """

    @property
    def info(self) -> SkillInfo: ...

    def begin(self) -> None:
        """Start it now, and take its charge out of the exchange: before another run of that is prepared."""
        ...

    def stop(self) -> None:
        """End it now, for its client: it is kept as cancelled and charged. Nothing where it has ended."""
        ...

    def cut(self) -> None:
        """End it now, for the gateway: it is kept as cancelled and costs nothing."""
        ...

    async def execute(self) -> Execution:
        """Run to the end, whatever it is; once. Whoever cancels the wait cancels the run, and it is kept as that.

        Raises StoreUnavailable where the run could not be begun: then nothing ran and nothing is charged.
        """
        ...


@runtime_checkable
class SkillRunner(Protocol):
    """Finds skills by name and runs them, within the caller's limits, each run a row that comes to an end."""

    def find(self, x: Exchange, name: str) -> SkillInfo | None:
        """Return the skill, if the caller's tier has it."""
        ...

    def offered(self, tier: Tier) -> Sequence[SkillInfo]:
        """Return what a model may choose from for callers of a tier: the same object until it changes."""
        ...

    async def prepare(
        self,
        x: Exchange,
        name: str,
        *,
        session_id: str | None,
        params: Mapping[str, Any] | None = None,
        text: str = "",
        ref: str | None = None,
        heard: Callable[[str, str | None], None] | None = None,
        by_model: bool = False,
    ) -> SkillRun:
        """Check all that can refuse, and take the charge. Raises Refused; 404 for a skill that the caller has not.

        `by_model` says that a model chose it, which may choose others than its caller may name.

        Without `params` they are made of `text`: it becomes the parameter `input`, or the one that the skill
        requires, if that takes a text. `ref` comes back in the events of the session. `heard` is told of each state
        as it comes, and must not wait.
        """
        ...


@runtime_checkable
class MessageSearch(Protocol):
    """Finds stored messages by their words: a session store that can do so."""

    async def search(
        self, organization: str, *, text: str, session_id: str | None, user: str | None, limit: int
    ) -> Sequence[Message]:
        """Return messages that hold every word of `text`, best first, newest first among equals.

        Of one session where `session_id` says so, else of all living sessions of `user`. Raises Refused where
        the session is not the organisation's.
        """
        ...


def as_text(result: Any) -> str:
    """Show a result to whoever reads text: its `text`, or else its JSON."""
    if isinstance(result, str):
        return result
    if isinstance(result, Mapping) and isinstance(text := result.get("text"), str):
        return text
    return msgspec.json.encode(result).decode()
