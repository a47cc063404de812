"""The routes of skills, and the runner that other plugins ask: it finds, checks, charges and starts, and knows no kind.

What refuses does so before anything is charged. A run is charged with the end of its row: where it completed, or
its client cut it short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath
from msgspec import Meta

from openclaw_gateway.api import (
    PRINCIPAL,
    SESSION_ID,
    SKILLS,
    TIER,
    Accounts,
    ChangingSkills,
    Database,
    Duration,
    EventBus,
    Exchange,
    Execution,
    Fact,
    GatewayError,
    HealthCheck,
    Host,
    PluginConfig,
    Refusal,
    Refused,
    SessionStore,
    Size,
    SkillInfo,
    SkillSource,
    Tier,
    bad_request,
    conflict,
    declared,
    decode,
    exchange_of,
    hookimpl,
    needs,
    not_found,
    read_body,
    unavailable,
)
from openclaw_plugins.skills.executions import Executions
from openclaw_plugins.skills.numbers import Numbers
from openclaw_plugins.skills.registry import Registry
from openclaw_plugins.skills.runs import Run, Runs

_PATH = "/api/v1/skills"
_ONE = _PATH + "/{name:str}"
_NO_SKILL = not_found("no such skill")


class SkillList(msgspec.Struct, frozen=True):
    """The skills that the caller's tier may run, by name."""

    skills: list[SkillInfo]


class ExecuteSkill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The body of POST /skills/{name}/execute."""

    session_id: Annotated[str, Meta(description="The session for which it runs.")]
    params: Annotated[dict[str, Any], Meta(description="As the skill's `parameters` say.")] = {}


class Skills:
    """Serves skills as own resources, and runs them for whoever asks."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = (PRINCIPAL, TIER)

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.skills]`"""

        sources: Annotated[
            tuple[Annotated[str, needs(SkillSource)], ...],
            Meta(description="Plugins that bring skills; of two skills with one name the earlier source's is taken."),
        ] = ()
        sessions: Annotated[str, needs(SessionStore), Meta(description="Where the sessions are kept.")] = "sessions"
        database: Annotated[str, needs(Database), Meta(description="Where runs are written down.")] = "database"
        accounts: Annotated[str, needs(Accounts), Meta(description="Where runs are charged.")] = "accounts"
        events: Annotated[
            str | None, needs(EventBus), Meta(description="What tells listeners of a session how a run goes on.")
        ] = None
        timeout: Annotated[Duration, Meta(description="For one run of a skill that says nothing else.")] = Duration(30)
        max_params: Annotated[Size, Meta(description="Largest body of a request to run a skill.")] = Size(262_144)
        max_output: Annotated[Size, Meta(description="Largest result, as JSON.")] = Size(1_000_000)
        running: Annotated[int, Meta(ge=1, description="Runs of this process at the same time.")] = 64
        running_per_organization: Annotated[
            int, Meta(ge=1, description="Runs of one organisation in this process at the same time.")
        ] = 16
        reap_every: Annotated[
            Duration, Meta(description="How often runs of processes that have ended are looked for.")
        ] = Duration(15)
        keep: Annotated[
            Duration, Meta(description="How long a run without a session is kept; others go with their session.")
        ] = Duration(30 * 86_400)

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._host = host
        self._sources = [(id, host.get(id, SkillSource)) for id in config.sources]
        for name, skill in host.document.skills.items():
            if skill.provider not in config.sources:
                raise ValueError(f"skills.{name}.provider: {skill.provider!r} is not among the sources of this plugin")
        self._sessions = host.get(config.sessions, SessionStore)
        self._executions = Executions(
            host.get(config.database, Database), host.get(config.accounts, Accounts), host.clock
        )
        self._registry = Registry()
        self._numbers = Numbers(host)
        self._runs = Runs(
            host,
            self._executions,
            self._sessions,
            host.get(config.events, EventBus) if config.events is not None else None,
            self._numbers,
            timeout=config.timeout,
            max_output=config.max_output,
        )

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._fill()
        for _, source in self._sources:
            if isinstance(source, ChangingSkills):
                source.on_change(self._fill)
        for tier in self._host.tiers.values():
            for name in sorted(tier.skills or ()):
                if name not in self._registry:
                    self._host.logger.warning("the tier %s opens the skill %s, which no source has", tier.name, name)
        reaper = asyncio.create_task(self._keep_reaping())
        try:
            yield
        finally:
            reaper.cancel()
            await asyncio.wait([reaper])
            await self._runs.cut(5.0)

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        async def probe() -> Mapping[str, Any]:
            return {"skills": len(self._registry), "running": len(self._runs)}

        return [HealthCheck("skills", probe)]

    # --- for other plugins ----------------------------------------------------------------------

    def find(self, x: Exchange, name: str) -> SkillInfo | None:
        """Return the skill, if the caller's tier has it."""
        known = self._registry.find(name, x[TIER])
        return known.info if known is not None else None

    def offered(self, tier: Tier) -> Sequence[SkillInfo]:
        """Return what a model may choose from for callers of a tier."""
        return self._registry.offered(tier)

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
    ) -> Run:
        """Check all that can refuse, then charge. Raises Refused."""
        known = self._registry.find(name, x[TIER])
        if known is None:
            raise Refused(_NO_SKILL)
        if not (by_model or known.info.user_invocable):
            raise Refused(conflict("the skill is not run by its name; only a model may choose it"))
        if not known.info.eligible:
            raise Refused(conflict(f"the skill cannot be run here; it lacks {', '.join(known.info.missing)}"))
        if params is None:
            params = known.schema.from_text(text)
        if problems := known.problems(params):
            raise Refused(_misfit(problems))
        organization = x[PRINCIPAL].organization
        if session_id is not None:
            # In its canonical form, or each spelling of an id would have a quota of its own.
            session_id = (await self._sessions.get(organization, session_id)).session_id
        refused = await self._host.gateway.admission.charge(x, SKILLS, session=session_id)
        if refused is not None:
            raise Refused(refused)
        # Looked at last: between here and the start of the run nobody else gets a turn.
        if (
            len(self._runs) >= self._config.running
            or self._runs.of(organization) >= self._config.running_per_organization
        ):
            raise Refused(unavailable("as many skills run as may run at the same time; try again shortly"))
        return Run(self._runs, x, known, params, session_id, ref, heard)

    # --- routes ---------------------------------------------------------------------------------

    @hookimpl
    def routes(self) -> list[Any]:
        @get(
            _PATH,
            **declared(
                access="authenticated",
                summary="List the skills that the caller may run",
                answer=SkillList,
                errors=(401, 403, 429),
            ),
        )
        async def list_skills(request: Request[Any, Any, Any]) -> Response[bytes]:
            return _answer(SkillList(self._registry.of(exchange_of(request)[TIER])))

        @get(
            _ONE,
            **declared(access="authenticated", summary="Show a skill", answer=SkillInfo, errors=(401, 403, 404, 429)),
        )
        async def show_skill(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
            info = self.find(exchange_of(request), name)
            if info is None:
                raise Refused(_NO_SKILL)
            return _answer(info)

        @post(
            _ONE + "/execute",
            status_code=200,
            **declared(
                access="authenticated",
                charges_later=(SKILLS,),
                names_session=True,
                summary="Run a skill, and wait for its end",
                body=ExecuteSkill,
                answer=Execution,
                errors=(400, 401, 403, 404, 409, 413, 429, 503, 504),
            ),
        )
        async def execute_skill(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
            x = exchange_of(request)
            if self.find(x, name) is None:
                raise Refused(_NO_SKILL)
            body = await read_body(request.receive, self._config.max_params, request.scope["headers"])
            asked = decode(body, ExecuteSkill)
            admission = self._host.gateway.admission
            if admission.counts_sessions(x):
                named = await self._sessions.get(x[PRINCIPAL].organization, asked.session_id)
                await admission.in_session(x, named.session_id)
            else:
                x[SESSION_ID] = asked.session_id
            run = await self.prepare(x, name, session_id=asked.session_id, params=asked.params)
            execution = await run.execute()
            if execution.status == "timeout":
                raise Refused(_timed_out(execution))
            return _answer(execution)

        return [list_skills, show_skill, execute_skill]

    def _fill(self) -> None:
        self._registry.fill(self._sources, self._host.logger)

    async def _keep_reaping(self) -> None:
        while True:
            try:
                for name in await self._executions.reap(self._config.keep):
                    # A skill that is not configured any more gets no series of its own.
                    self._numbers.lost(name if name in self._registry else "(other)")
            except GatewayError as error:
                self._host.logger.warning("runs of skills could not be reaped", exc_info=error)
            await asyncio.sleep(self._config.reap_every)


def _misfit(problems: Sequence[tuple[str, str]]) -> Refusal:
    (path, message), *_ = problems
    listed = [{"param": path, "message": message} for path, message in problems]
    return bad_request(f"{path}: {message}", param=path, problems=listed)


def _timed_out(execution: Execution) -> Refusal:
    return Refusal(
        status=504,
        code="UPSTREAM_TIMEOUT",
        type="server_error",
        message=f"the skill was cut: {execution.error}",
        extra={"execution": msgspec.to_builtins(execution)},
    )


def _answer(value: Any) -> Response[bytes]:
    return Response(msgspec.json.encode(value), status_code=200, media_type="application/json")
