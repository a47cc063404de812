"""Skills written in Python: classes that installed distributions offer by the entry point group `openclaw.skills`.

A class has a docstring, `Params` (a Struct) and `run(params, call)`. Coroutines are cancelled when their time is up;
a plain function runs in a bounded pool of threads, and a thread cannot be stopped: its run ends as timed out, and its
place is taken until it returns.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Host, PluginConfig, Skill, SkillCall, SkillInfo, SkillParamsRefused, hookimpl

GROUP = "openclaw.skills"


class PythonSkills:
    """Offers the skills of installed distributions."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.python_skills]`"""

        only: Annotated[
            tuple[str, ...] | None, Meta(description="Names of the skills to offer; by default all that are installed.")
        ] = None
        threads: Annotated[
            int, Meta(ge=1, le=256, description="Runs at the same time of skills that are no coroutines.")
        ] = 8

    def __init__(self, config: Config, host: Host) -> None:
        self._config = config
        self._threads: ThreadPoolExecutor | None = None
        offered = _offered()
        wanted = config.only if config.only is not None else tuple(sorted(offered))
        for name in wanted:
            if name not in offered:
                raise ValueError(
                    f"no installed skill has the name {name!r}; expected one of {', '.join(sorted(offered))}"
                )
        self._skills = [PythonSkill(name, _loaded(offered[name]), self._pool) for name in wanted]

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._threads = ThreadPoolExecutor(self._config.threads, thread_name_prefix="skill")
        try:
            yield
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def skills(self) -> Sequence[Skill]:
        return self._skills

    def _pool(self) -> ThreadPoolExecutor:
        assert self._threads is not None
        return self._threads


class PythonSkill:
    """One class that an entry point names. Raises ValueError where it has not the shape of a skill."""

    def __init__(self, name: str, cls: Any, pool: Any) -> None:
        self._pool = pool
        self._params = getattr(cls, "Params", None)
        description = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        if not (inspect.isclass(cls) and callable(getattr(cls, "run", None)) and description):
            raise ValueError(f"the skill {name!r} is no class with a docstring and a method `run`")
        if not (inspect.isclass(self._params) and issubclass(self._params, msgspec.Struct)):
            raise ValueError(f"the skill {name!r} has no `Params`, a Struct of msgspec")
        made: Any = cls()
        self._run = made.run
        self._asynchronous = inspect.iscoroutinefunction(self._run)
        self.timeout: float | None = getattr(cls, "timeout", None)
        self.info = SkillInfo(
            name=name,
            version=str(getattr(cls, "version", "1")),
            description=description,
            parameters=schema_of(self._params),
            kind="python",
        )

    def check(self, params: Mapping[str, Any]) -> None:
        try:
            msgspec.convert(params, self._params)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at `$")
            # msgspec's words may quote a value, and the path tells enough
            told = message if message.startswith("Expected") else "not a valid value"
            raise SkillParamsRefused([(place.rstrip("`").lstrip("."), told)]) from None

    async def run(self, call: SkillCall) -> Any:
        params = msgspec.convert(call.params, self._params)
        if self._asynchronous:
            return await self._run(params, call)
        return await asyncio.get_running_loop().run_in_executor(self._pool(), self._run, params, call)


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a Struct with its own properties at the top, as clients and models want it."""
    (reference,), components = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    name = reference["$ref"].rsplit("/", 1)[1]
    schema: dict[str, Any] = components.pop(name)
    for key in ("title", "description"):  # they speak of the class
        schema.pop(key, None)
    schema.setdefault("additionalProperties", False)
    return {**schema, "$defs": components} if components else schema


def _offered() -> dict[str, EntryPoint]:
    offered: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if (other := offered.get(point.name)) is not None and other.value != point.value:
            raise ValueError(f"the skill {point.name!r} is offered by more than one distribution")
        offered[point.name] = point
    return offered


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ValueError(f"the skill {point.name!r} cannot be imported from {point.value}: {error}") from error
