"""Skills that are folders with a SKILL.md: instructions for a model. Nothing of a folder is ever run or installed.

To run such a skill is to be given its instructions and the names of the files beside them.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openclaw_gateway.api import HealthCheck, Host, PluginConfig, Skill, SkillCall, SkillInfo, hookimpl
from openclaw_plugins.skills.manifest import Manifest, Requirements, Unreadable, read_manifest

_DEPTH = 6
_CANDIDATES = 300
_SKILLS = 200
_LARGEST = 256_000
_RESOURCES = 100
#: entries of one root that are looked at, so that a mistaken root cannot stop the start
_ENTRIES = 50_000


class Diagnostic(msgspec.Struct, frozen=True):
    """Something of a folder that an operator should know; `skipped` where there is no skill for it."""

    folder: str
    message: str
    skipped: bool


class FolderSkills:
    """Offers the skills of some folders, read once at the start."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.folder_skills]`"""

        roots: Annotated[
            tuple[str, ...],
            Meta(
                description="Folders of skill folders, relative to this file; of two skills with one name the earlier "
                "root's is taken. One that is not there has none."
            ),
        ] = ("skills",)

    def __init__(self, config: Config, host: Host) -> None:
        self._roots = [host.config_dir / root for root in config.roots]
        self._host = host
        self._skills: list[Skill] = []
        self.diagnostics: list[Diagnostic] = []

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        self._skills, self.diagnostics = load(self._roots)
        for found in self.diagnostics:
            fields = {"folder": found.folder, "skipped": found.skipped}
            level = self._host.logger.warning if found.skipped else self._host.logger.info
            level("%s: %s", found.folder, found.message, extra={"fields": fields})
        yield

    def skills(self) -> Sequence[Skill]:
        return self._skills

    @hookimpl
    def health(self) -> Sequence[HealthCheck]:
        async def probe() -> Mapping[str, Any]:
            skipped = [f"{found.folder}: {found.message}" for found in self.diagnostics if found.skipped]
            return {"loaded": len(self._skills), "skipped": skipped[:_RESOURCES]}

        return [HealthCheck(self._host.id, probe)]


class FolderSkill:
    """One folder, as it was when it was read."""

    timeout: float | None = None

    def __init__(self, manifest: Manifest, resources: Sequence[str]) -> None:
        self._manifest = manifest
        self._resources = tuple(resources)
        missing = missing_of(manifest.requirements)
        self.info = SkillInfo(
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            parameters={
                "type": "object",
                "properties": {"input": {"type": "string", "description": "What the skill is wanted for."}},
                "additionalProperties": False,
            },
            kind="folder",
            eligible=not missing,
            missing=missing,
            model_visible=manifest.model_visible,
            user_invocable=manifest.user_invocable,
        )

    def check(self, params: Mapping[str, Any]) -> None:
        """Everything that fits the schema is good."""

    async def run(self, call: SkillCall) -> Any:
        return {"text": self._manifest.instructions, "resources": self._resources}


def load(roots: Sequence[Path]) -> tuple[list[Skill], list[Diagnostic]]:
    """Read all skills of some roots, and say what was odd."""
    skills: dict[str, Skill] = {}
    diagnostics: list[Diagnostic] = []
    for root in roots:
        taken = 0
        for count, file in enumerate(_found(root)):
            shown = str(file.parent.relative_to(root.parent))
            if count >= _CANDIDATES or taken >= _SKILLS:
                diagnostics.append(Diagnostic(shown, "more skills than are read of one root", skipped=True))
                break
            try:
                skill, notes = _read(file, root)
            except Unreadable as error:
                diagnostics.append(Diagnostic(shown, str(error), skipped=True))
                continue
            diagnostics += [Diagnostic(shown, note, skipped=False) for note in notes]
            if skill.info.name in skills:
                diagnostics.append(Diagnostic(shown, f"hidden by an earlier {skill.info.name!r}", skipped=True))
                continue
            skills[skill.info.name] = skill
            taken += 1
    return list(skills.values()), diagnostics


def missing_of(wanted: Requirements) -> tuple[str, ...]:
    """Say what of the requirements this machine has not."""
    missing = []
    platforms = {sys.platform, "macos" if sys.platform == "darwin" else sys.platform}
    if wanted.os and not platforms & {name.lower() for name in wanted.os}:
        missing.append(f"os:{'|'.join(wanted.os)}")
    if wanted.always:
        return tuple(missing)
    missing += [f"bin:{name}" for name in wanted.bins if shutil.which(name) is None]
    if wanted.any_bins and not any(shutil.which(name) for name in wanted.any_bins):
        missing.append(f"anyBin:{'|'.join(wanted.any_bins)}")
    missing += [f"env:{name}" for name in wanted.env if not os.environ.get(name)]
    # There is no OpenClaw configuration here in which such a key could be set.
    missing += [f"config:{name}" for name in wanted.config]
    return tuple(missing)


def _found(root: Path) -> Iterator[Path]:
    """Yield every SKILL.md in order; what is in a skill's folder belongs to it, and is no further skill."""
    left = _ENTRIES
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        left -= len(entries)
        if left < 0:
            return
        names = {entry.name.lower(): entry for entry in reversed(entries)}
        exact = next((entry for entry in entries if entry.name == "SKILL.md"), names.get("skill.md"))
        if exact is not None and not exact.is_dir():
            yield Path(exact.path)
            if depth:
                continue
        if depth < _DEPTH:
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in reversed(entries)
                if not entry.name.startswith(".") and entry.name != "node_modules" and entry.is_dir()
            ]


def _read(file: Path, root: Path) -> tuple[FolderSkill, Sequence[str]]:
    try:
        real = file.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            raise Unreadable("it leads out of its root")
        found = real.stat()
        # Opening a pipe or a device would wait for ever.
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("SKILL.md is no file")
        if found.st_size > _LARGEST:
            raise Unreadable(f"SKILL.md is larger than {_LARGEST} bytes")
        data = real.read_bytes()
    except (OSError, RuntimeError) as error:
        raise Unreadable("it cannot be read") from error
    manifest = read_manifest(data[:_LARGEST], file.parent.name)
    return FolderSkill(manifest, list(_resources(file))), manifest.notes


def _resources(file: Path) -> Iterator[str]:
    """Yield the names of the files beside a SKILL.md, as far as they are of interest."""
    count = 0
    for folder, folders, files in os.walk(file.parent):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        for name in sorted(files):
            path = Path(folder, name)
            if path == file or name.startswith("."):
                continue
            count += 1
            if count > _RESOURCES:
                return
            yield path.relative_to(file.parent).as_posix()
