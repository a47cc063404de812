"""All skills by name: what a caller's tier may see and run. It runs none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from openclaw_gateway.api import Skill, SkillInfo, SkillParamsRefused, SkillSource, StartFailed, Tier
from openclaw_plugins.skills.parameters import ParameterSchema, Problem


class Known(msgspec.Struct, frozen=True):
    """A skill with its schema."""

    skill: Skill
    schema: ParameterSchema

    @property
    def info(self) -> SkillInfo:
        return self.skill.info

    def problems(self, params: Mapping[str, Any]) -> Sequence[Problem]:
        """Return what is wrong with parameters: first what the schema says, then what the skill itself does."""
        found = self.schema.problems(params)
        if not found:
            try:
                self.skill.check(params)
            except SkillParamsRefused as refused:
                return [(f"params.{path}" if path else "params", message) for path, message in refused.problems]
        return found


class Registry:
    """The skills of all sources; of two with one name, that of the earlier source is taken."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}
        #: what a tier opens → what its models may choose from
        self._offered: dict[frozenset[str] | None, Sequence[SkillInfo]] = {}

    def fill(self, sources: Iterable[tuple[str, SkillSource]], logger: logging.Logger) -> None:
        """Ask every source, now or anew. Raises StartFailed for a skill whose schema is none."""
        before, self._known, self._offered = self._known, {}, {}
        for id, source in sources:
            for skill in source.skills():
                name = skill.info.name
                if name in self._known:
                    if not before:
                        logger.warning("the skill %s of %s is hidden by an earlier one of that name", name, id)
                    continue
                old = before.get(name)
                try:
                    # To check a schema takes long, and most are the same as before.
                    same = old is not None and old.info.parameters == skill.info.parameters
                    schema = old.schema if old is not None and same else ParameterSchema(skill.info.parameters)
                    self._known[name] = Known(skill, schema)
                except ValueError as error:
                    raise StartFailed(f"the skill {name!r} of {id!r} has no good schema: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str, tier: Tier) -> Known | None:
        """Return a skill that the tier has; what it has not is not told from what is not there."""
        if tier.skills is not None and name not in tier.skills:
            return None
        return self._known.get(name)

    def offered(self, tier: Tier) -> Sequence[SkillInfo]:
        """Return what a model may choose from: what the tier has, can be run here, and is meant for models."""
        offered = self._offered.get(tier.skills)
        if offered is None:
            offered = [info for info in self.of(tier) if info.eligible and info.model_visible]
            self._offered[tier.skills] = offered
        return offered

    def of(self, tier: Tier) -> list[SkillInfo]:
        return [known.info for name, known in sorted(self._known.items()) if tier.skills is None or name in tier.skills]
