"""Samples mutants of a module from a seed, and says which of them its tests do not notice.

`python3 .ci/dev.py run python tests/mutants/sample.py MODULE --tests TEST [TEST ...] [-k EXPRESSION] [--count N]
[--seed S]`. Planted bugs (`planted.py`) are those that were thought of; these are the others. It works on a copy of the
tree. Who survives is to be looked at by hand: some mutants change nothing that anybody can see.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("core", "plugins", "migrations", "tiers", "tests", "openclaw.toml", "pyproject.toml")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Every mutant: its line, what was done, and the module."""
    for index, node in enumerate(ast.walk(tree)):
        for kind in kinds(node):
            other = copy.deepcopy(tree)
            target = next(found for i, found in enumerate(ast.walk(other)) if i == index)
            changed(target, kind)
            yield getattr(node, "lineno", 0), kind, other


def kinds(node: ast.AST) -> list[str]:
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            return [f"{type(op).__name__} is {SWAPS[type(op)].__name__}"]
        case ast.Constant(value=bool()):
            return ["the opposite"]
        case ast.Constant(value=int()):
            return ["one more"]
        case ast.If() | ast.While():
            return ["the condition is turned round"]
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Delete():
            return ["left out"]
    return []


def changed(node: ast.AST, kind: str) -> None:
    match node:
        case ast.Compare(ops=[op]):
            node.ops = [SWAPS[type(op)]()]  # type: ignore[list-item]
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if kind != "left out":
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value)):
            node.value = value + 1
        case ast.If() | ast.While():
            node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
        case ast.Expr():
            node.value = ast.Constant(value=None)
        case ast.AugAssign() | ast.Delete():
            node.__class__ = ast.Pass  # type: ignore[assignment]
            node.__dict__ = {key: value for key, value in node.__dict__.items() if key.endswith(("lineno", "offset"))}


def main() -> int:
    options = _options()
    path = ROOT / options.module
    source = path.read_text()
    every = list(mutants(ast.parse(source)))
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    chosen_tests = ["-k", options.k, *options.tests]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="gateway-mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, tree / name)
        if run(tree, chosen_tests):
            sys.exit("the tests fail without a mutant")
        for line, kind, mutant in chosen:
            (tree / options.module).write_text(ast.unparse(mutant))
            if not run(tree, chosen_tests):
                survivors.append(f"{options.module}:{line}: {kind}: {source.splitlines()[line - 1].strip()}")
        (tree / options.module).write_text(source)
    noticed = len(chosen) - len(survivors)
    sys.stdout.write("".join(f"{one}\n" for one in sorted(survivors)))
    sys.stdout.write(f"{options.module}: seed {options.seed}, {noticed} of {len(chosen)} noticed, of {len(every)}\n")
    return 0


def run(tree: Path, tests: list[str]) -> bool:
    """Whether a test fails, or does not end."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / "core"), str(tree / "plugins")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=60", "-p", "no:randomly", *tests]
    try:
        return bool(subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=300).returncode)
    except subprocess.TimeoutExpired:
        return True


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(prog="tests/mutants/sample.py", description=__doc__)
    command.add_argument("module", help="a path from the root of the checkout")
    command.add_argument("--tests", nargs="+", required=True, help="what pytest takes")
    command.add_argument("-k", default="", help="which of them: pytest's expression")
    command.add_argument("--count", type=int, default=20)
    command.add_argument("--seed", type=int, default=20260)
    return command.parse_args()


if __name__ == "__main__":
    sys.exit(main())
