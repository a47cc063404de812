"""Which skills a model is offered, and under which names: what the operator listed, the tier opens, and can be run.

It runs none. A tool of the client's keeps its name; a skill of that name is then not offered.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import Duration, PluginConfig, Size, SkillInfo, SkillRunner, Tier

#: what OpenAI and Anthropic take as the name of a function
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64


class ToolLoopConfig(PluginConfig, frozen=True, kw_only=True):
    """`[plugins.chat.tool_loop]`: models call skills by themselves, and the gateway runs them."""

    skills: Annotated[
        tuple[str, ...],
        Meta(min_length=1, description='Skills that models are offered, of those that the tier opens; "docs.*" too.'),
    ]
    models: Annotated[
        tuple[str, ...] | None, Meta(description="Models, by alias, that are offered them; by default all.")
    ] = None
    rounds: Annotated[int, Meta(ge=1, le=50, description="How often in a turn a model may call and is answered.")] = 5
    calls: Annotated[int, Meta(ge=1, le=200, description="Most runs of skills in a turn.")] = 10
    time: Annotated[
        Duration, Meta(description="After which a turn begins no further round, and a skill that runs is cut.")
    ] = Duration(60)
    result: Annotated[Size, Meta(description="Most of one result that a model is given; the rest is cut off.")] = Size(
        32_000
    )


class Offer(msgspec.Struct, frozen=True):
    """What one turn is offered: the definitions of the tools, and which skill a function's name means."""

    tools: Sequence[Mapping[str, Any]]
    skills: Mapping[str, str]


class Offers:
    """The offers of all tiers, made once and again when the skills change."""

    def __init__(self, config: ToolLoopConfig, runner: SkillRunner) -> None:
        self._config = config
        self._runner = runner
        self._made: dict[str, tuple[Sequence[SkillInfo], Offer]] = {}

    def of(self, tier: Tier, alias: str, request: Mapping[str, Any]) -> Offer | None:
        """Return what a request is offered; None where that is nothing.

        A client that wants no tools, several answers, or the functions of old gets what it asked for and no loop.
        """
        models = self._config.models
        if models is not None and alias not in models:
            return None
        if request.get("tool_choice") == "none" or request.get("n") not in (None, 1) or "functions" in request:
            return None
        offer = self._of(tier)
        taken = {_name(tool) for tool in request.get("tools") or ()}
        if not taken.isdisjoint(offer.skills):
            offer = Offer(
                [tool for tool in offer.tools if _name(tool) not in taken],
                {name: skill for name, skill in offer.skills.items() if name not in taken},
            )
        return offer if offer.tools else None

    def check(self, tiers: Mapping[str, Tier], logger: logging.Logger) -> None:
        """Log names of the configuration that nothing answers to."""
        known = {info.name for tier in tiers.values() for info in self._runner.offered(tier)}
        for wanted in self._config.skills:
            if not any(fnmatchcase(name, wanted) for name in known):
                logger.warning("tool_loop.skills: no skill %r that a model could be offered", wanted)

    def _of(self, tier: Tier) -> Offer:
        offered = self._runner.offered(tier)
        made = self._made.get(tier.name)
        if made is None or made[0] is not offered:
            wanted = [info for info in offered if any(fnmatchcase(info.name, each) for each in self._config.skills)]
            made = self._made[tier.name] = (offered, _offer(wanted))
        return made[1]


def _offer(infos: Sequence[SkillInfo]) -> Offer:
    skills: dict[str, str] = {}
    tools = []
    for info in infos:
        name = _NOT_IN_NAMES.sub("_", info.name)
        if len(name) > _LONGEST_NAME or name in skills:
            mark = hashlib.sha256(info.name.encode()).hexdigest()[:8]
            name = f"{name[: _LONGEST_NAME - 9]}_{mark}"
        skills[name] = info.name
        function = {"name": name, "description": info.description, "parameters": info.parameters}
        tools.append({"type": "function", "function": function})
    return Offer(tools, skills)


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
