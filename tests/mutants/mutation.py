"""Small changes to a module, one at a time: every place where a comparison, a number or a call could be wrong.

It reads and writes source text only; it neither runs nor judges a mutant.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import msgspec

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

#: arguments that decide nothing: how a class is made, that two lists are of one length, where a histogram is cut
_NOT_DECIDING = ("frozen", "kw_only", "slots", "strict", "buckets")


class Mutant(msgspec.Struct, frozen=True):
    """`was` of `where` has become `becomes`, both as the parser writes the line; `line` is that of the source."""

    line: int
    where: str
    was: str
    becomes: str
    source: str


def places(source: str) -> list[tuple[int, str]]:
    """Every place of a module that can be changed, and how: what `mutant` takes."""
    tree = ast.parse(source)
    closed = {id(node) for part in _left_alone(tree) for node in ast.walk(part)}
    return [
        (index, kind) for index, node in enumerate(ast.walk(tree)) if id(node) not in closed for kind in _kinds(node)
    ]


def mutant(source: str, place: tuple[int, str]) -> Mutant:
    """The module with the one change."""
    index, kind = place
    tree = ast.parse(source)
    whole = ast.unparse(tree)
    scopes = _scopes(tree)
    node = next(found for i, found in enumerate(ast.walk(tree)) if i == index)
    line = getattr(node, "lineno", 0)
    _change(node, kind)
    changed = ast.unparse(tree)
    lines = zip(whole.splitlines(), changed.splitlines(), strict=True)
    was, becomes = next(pair for pair in lines if pair[0] != pair[1])
    return Mutant(line, _where(scopes, line), was.strip(), becomes.strip(), changed)


def _left_alone(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in _NOT_DECIDING:
            yield node.value
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "PluginConfig" for base in node.bases):
            # Defaults and bounds of settings: the reference is made of them, and tests/docs compares it to the letter.
            yield from (part for part in node.body if isinstance(part, ast.AnnAssign))


def _kinds(node: ast.AST) -> list[str]:
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            return ["swapped"]
        case ast.AugAssign(op=op) if type(op) in SWAPS:
            return ["swapped", "left out"]
        case ast.Constant(value=bool()):
            return ["the opposite"]
        case ast.Constant(value=int()):
            return ["one more"]
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return []
        case ast.If() | ast.While():
            return ["turned round"]
        case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Delete():
            return ["left out"]
    return []


def _change(node: ast.AST, kind: str) -> None:
    match node:
        case ast.Compare(ops=[op]):
            node.ops = [SWAPS[type(op)]()]  # type: ignore[list-item]
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if kind == "swapped":
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


def _scopes(tree: ast.Module) -> list[tuple[int, int, str]]:
    """First line, last line and qualified name of every class and function, inner ones after outer ones."""
    found: list[tuple[int, int, str]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{prefix}{child.name}"
                found.append((child.lineno, child.end_lineno or child.lineno, name))
                visit(child, f"{name}.")
            else:
                visit(child, prefix)

    visit(tree, "")
    return found


def _where(scopes: list[tuple[int, int, str]], line: int) -> str:
    return next((name for first, last, name in reversed(scopes) if first <= line <= last), "")
