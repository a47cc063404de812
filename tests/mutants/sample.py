"""Samples mutants of every module of the list from a seed, and says which of them its tests do not notice.

`python3 .ci/dev.py run python tests/mutants [MODULE ...] [--count N] [--seed S] [--minutes M]`. Planted bugs
(`planted.py`) are those that were thought of; these are the others. It works on a copy of the tree. Who survives is to
be looked at by hand: a test is missing, or code is dead, or nobody can see the mutant; that then is recorded in
`targets.py`, with the reason. It ends with 1 where one survives that nobody has looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
from mutants.mutation import Mutant, mutant, places
from mutants.targets import EQUIVALENT, TARGETS, Target
from mutants.tree import copied, environment

#: seconds after which a mutant that has not ended counts as noticed: it hangs
_LONGEST = 60
#: what the tests load of other people's, loaded once and before anything of ours: most of the time goes there
_FOREIGN = ("pytest", "hypothesis", "litestar", "sqlalchemy.ext.asyncio", "redis.asyncio", "prometheus_client")

#: the plugins of pytest that the tests need; the others take longer to load than a mutant to judge
_PYTEST = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin")


class Sampled(msgspec.Struct, frozen=True):
    """What became of the mutants of one module. `drawn` is how many were to be tried, `every` how many there are."""

    module: str
    every: int
    drawn: int
    noticed: int
    equivalent: int
    survivors: tuple[Mutant, ...]

    @property
    def tried(self) -> int:
        return self.noticed + self.equivalent + len(self.survivors)

    def __str__(self) -> str:
        cut = f" (of {self.drawn} drawn: no time for the others)" if self.tried < self.drawn else ""
        return (
            f"{self.module}: {self.noticed} of {self.tried} noticed{cut}, {self.equivalent} equivalent, "
            f"{len(self.survivors)} survived; {self.every} in all"
        )


def sampled(target: Target, tree: Path, *, count: int, seed: int, until: float = float("inf")) -> Sampled:
    """Try `count` mutants of a module in a copy of the checkout, until that moment of the monotonic clock."""
    path = tree / target.module
    whole = path.read_text()
    every = places(whole)
    drawn = random.Random(f"{seed}/{target.module}").sample(every, min(count, len(every)))
    known = {(one.where, one.was, one.becomes) for one in EQUIVALENT if one.module == target.module}
    if failed(tree, target, keep=True):
        raise AssertionError(f"{target.module}: its tests fail without a mutant")
    # A mutant of the same length in the same second would pass for what is compiled.
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    noticed = equivalent = 0
    survivors = []
    try:
        for place in drawn:
            if time.monotonic() > until:
                break
            one = mutant(whole, place)
            if (one.where, one.was, one.becomes) in known:
                equivalent += 1
                continue
            path.write_text(one.source)
            if failed(tree, target):
                noticed += 1
            else:
                survivors.append(one)
    finally:
        path.write_text(whole)
    return Sampled(target.module, len(every), len(drawn), noticed, equivalent, tuple(survivors))


def failed(tree: Path, target: Target, *, keep: bool = False) -> bool:
    """Whether a test of the copy fails, or does not end; in a child of this process, which has loaded nothing of it.

    `keep` what is compiled, for those that come after.
    """
    for name in _FOREIGN:
        importlib.import_module(name)
    child = os.fork()
    if not child:
        os._exit(_judge(tree, target, keep))
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _judge(tree: Path, target: Target, keep: bool) -> int:
    """The child: 0 where the tests pass. Only a judgement leaves it: anything else that goes wrong is a failure."""
    os.setpgid(0, 0)
    os.chdir(tree)
    os.environ.update(environment(tree))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = not keep
    sys.path[:0] = [str(tree / "core"), str(tree / "plugins")]
    for name in [name for name in sys.modules if name.split(".")[0] == "mutants"]:
        del sys.modules[name]
    import pytest

    options = [
        *(word for name in _PYTEST for word in ("-p", name)),
        "-q",
        "-x",
        "--timeout=40",
        "-k",
        target.only,
        *target.tests,
    ]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = int(pytest.main(options))
    except BaseException:
        said.write(traceback.format_exc())
        code = 2
    if os.environ.get("MUTANTS_SAY"):
        os.write(2, said.getvalue()[-3000:].encode())
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    chosen = [target for target in TARGETS if not options.modules or target.module in options.modules]
    if unknown := set(options.modules) - {target.module for target in chosen}:
        sys.exit(f"mutants: no target {', '.join(sorted(unknown))}; there are\n" + "\n".join(t.module for t in TARGETS))
    until = time.monotonic() + 60 * options.minutes
    survived = 0
    with tempfile.TemporaryDirectory(prefix="gateway-mutants-") as folder:
        tree = copied(Path(folder))
        for target in chosen:
            if time.monotonic() > until:
                sys.stdout.write(f"{target.module}: not tried, the time is up\n")
                continue
            found = sampled(target, tree, count=options.count, seed=options.seed, until=until)
            survived += len(found.survivors)
            for one in found.survivors:
                sys.stdout.write(
                    f"{target.module}:{one.line}: {one.where}\n  was      {one.was}\n  becomes  {one.becomes}\n"
                )
            sys.stdout.write(f"{found}\n")
            sys.stdout.flush()
    sys.stdout.write(f"seed {options.seed}: {survived} survived that nobody has looked at\n")
    return 1 if survived else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    command = argparse.ArgumentParser(prog="tests/mutants", description=__doc__)
    command.add_argument("modules", nargs="*", metavar="MODULE", help="paths from the root of the checkout; else all")
    command.add_argument("--count", type=int, default=20, help="mutants a module")
    command.add_argument("--seed", type=int, default=20260)
    command.add_argument("--minutes", type=float, default=30, help="when to stop")
    return command.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
