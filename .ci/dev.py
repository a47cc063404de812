#!/usr/bin/env python3
"""Makes an environment from the hashed locks and runs the gateway or its checks in it; leaves the system's Python be.

Needs Python 3.11 and pip, or Python 3.11 and uv: no venv package, no make, no compiler, nothing installed before.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("dev: Python 3.11 or newer is needed, and this is %d.%d (%s)" % (*sys.version_info[:2], sys.executable))

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD_LOCK = HERE / "requirements-build.lock"
RUN_LOCK = HERE / "requirements.lock"
TEST_LOCK = HERE / "requirements-test.lock"
MODEL_LOCK = HERE / "requirements-model.lock"
SDK_LOCK = HERE / "requirements-sdks.lock"

# How old a release has to be before a lock takes it.
AGE = timedelta(days=7)
# What each lock is resolved from. The model is locked without its dependencies: see docs/decisions/0001-packaging.md.
LOCKS = {
    RUN_LOCK: ["pyproject.toml"],
    BUILD_LOCK: ["--group", "build", "--constraint", ".ci/requirements.lock"],
    TEST_LOCK: ["pyproject.toml", "--group", "build", "--group", "test", "--constraint", ".ci/requirements.lock"],
    MODEL_LOCK: ["--group", "model", "--no-deps"],
    SDK_LOCK: ["--group", "sdks"],
}
LINTERS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)


def main() -> NoReturn:
    command = argparse.ArgumentParser(prog="dev.py", description=__doc__, allow_abbrev=False)
    commands = command.add_subparsers(dest="what", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "serve the gateway; further arguments go to `openclaw-gateway serve`"),
        ("test", "linters and tests; with arguments only pytest, which gets them"),
        ("lint", "linters alone"),
        ("run", "run a command of the test environment: run mypy core"),
        ("lock", "resolve the locks anew with uv; further arguments go to `uv pip compile`: lock --upgrade"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    chosen, rest = command.parse_known_args(sys.argv[1:2])[0].what, sys.argv[2:]

    if chosen == "serve":
        replace_with(environment(ROOT / ".venv", BUILD_LOCK, RUN_LOCK) / "openclaw-gateway", "serve", *rest)
    if chosen == "lock":
        lock(rest)
        sys.exit(0)
    tools = environment(ROOT / ".venv-test", TEST_LOCK, MODEL_LOCK)
    if chosen == "run":
        if not rest:
            command.error("run: which command?")
        replace_with(tools / rest[0], *rest[1:])
    failed = [] if chosen == "test" and rest else lint(tools)
    if failed:
        say("failed: " + ", ".join(failed))
    if chosen == "test":
        # The tests come last: what they sum up is the last line of the run.
        # Most of them wait for real servers, so more processes than cores share the time.
        how = rest or ["-n", "3", "--dist", "worksteal", "--durations", "10"]
        tests = subprocess.run([tools / "python", "-m", "pytest", *how], cwd=ROOT, check=False)
        sys.exit(tests.returncode or bool(failed))
    sys.exit(bool(failed))


def environment(folder: Path, *locks: Path) -> Path:
    """The folder of commands of an environment that holds exactly these locks and this checkout."""
    commands = folder / "bin"
    stamp, project_stamp = folder / "locks.sha256", folder / "project.sha256"
    wanted = fingerprint(sys.version, str(folder), *(lock.read_text() for lock in locks))
    project_wanted = fingerprint(wanted, (ROOT / "pyproject.toml").read_text())
    if read(stamp) != wanted or not (commands / "python").exists():
        say(f"setting up {folder.name}: under a minute the first time, nothing afterwards")
        create(folder)
        for lock_file in locks:
            install(folder, "--require-hashes", "--no-deps", "--requirement", str(lock_file))
        stamp.write_text(wanted)
    if read(project_stamp) != project_wanted:
        install(folder, "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
        call([commands / "python", "-m", "compileall", "-q", str(ROOT / "core"), str(ROOT / "plugins")])
        project_stamp.write_text(project_wanted)
    return commands


def create(folder: Path) -> None:
    """An empty environment without pip in it: Debian splits ensurepip off, and the pip outside can install into it."""
    if importlib.util.find_spec("venv") is None:
        sys.exit(f"dev: {sys.executable} has no venv module; on Debian: apt-get install python3")
    call([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])


def install(folder: Path, *arguments: str) -> None:
    """By uv where it is there; it reads none of pip's settings, so where it gets nowhere, pip has its turn."""
    *others, last = installers(folder)
    for installer in others:
        if subprocess.run([*installer, *arguments], cwd=ROOT, check=False).returncode == 0:
            return
        say("that did not go through; trying pip")
    call([*last, *arguments])


def installers(folder: Path) -> list[list[str]]:
    python, found = str(folder / "bin" / "python"), []
    uv = shutil.which("uv")
    if uv is not None:
        found.append([uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python])
    if importlib.util.find_spec("pip") is not None:
        version = importlib.metadata.version("pip")
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (22, 3):
            pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
            found.append([*pip, "install", "--quiet"])
        elif uv is None:
            sys.exit(f"dev: pip 22.3 or newer is needed, and {sys.executable} has {version}")
    elif uv is None:
        sys.exit(
            f"dev: neither pip nor uv is there for {sys.executable}; on Debian: apt-get install python3-pip, "
            f"elsewhere: {sys.executable} -m ensurepip"
        )
    return found


def lint(tools: Path) -> list[str]:
    failed = []
    for name, *arguments in LINTERS:
        say(" ".join([name, *arguments]))
        if subprocess.run([tools / name, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(name)
    return failed


def lock(arguments: list[str]) -> None:
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("dev: the locks are resolved with uv, and there is none on PATH: pip install uv")
    if not any(argument.startswith("--exclude-newer=") or argument == "--exclude-newer" for argument in arguments):
        # A release that was stolen or is broken is mostly found within days. What mends a weakness need not wait:
        # lock --exclude-newer-package NAME=DATE
        arguments = ["--exclude-newer", (datetime.now(UTC) - AGE).strftime("%Y-%m-%dT%H:%M:%SZ"), *arguments]
    for lock_file, inputs in LOCKS.items():
        say(f"resolving {lock_file.name}")
        options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
        # A lock names no place to fetch from: the hashes decide, whichever mirror answers.
        options += ["--no-config", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
        call([uv, "pip", "compile", *options, *arguments, *inputs, "--output-file", str(lock_file.relative_to(ROOT))])
        places = places_named(lock_file.read_text())
        if places:
            sys.exit(f"dev: {lock_file.name} names a host or a path of this machine: {places[0]}")


def places_named(text: str) -> list[str]:
    """The lines of a lock that say where to fetch from, instead of what to fetch."""
    requirement = re.compile(r"[a-z0-9][a-z0-9-]*==[^\s/:@]+( ; [^/:@]+)?( \\)?")
    fingerprint_line = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    return [line for line in text.splitlines() if not (requirement.fullmatch(line) or fingerprint_line.fullmatch(line))]


def replace_with(program: Path, *arguments: str) -> NoReturn:
    """Becomes the program, so that signals and exit codes are the program's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execv(program, [str(program), *arguments])
    except FileNotFoundError:
        sys.exit(f"dev: there is no {program.name} in {program.parent.parent.name}")


def call(command: list[str | Path]) -> None:
    completed = subprocess.run(command, cwd=ROOT, check=False)
    if completed.returncode:
        sys.exit(f"dev: this failed with {completed.returncode}: {' '.join(map(str, command))}")


def fingerprint(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def say(text: str) -> None:
    sys.stderr.write(f"dev: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
