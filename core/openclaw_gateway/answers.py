"""What plugins answer where a hook asks them, looked at before it is used: a wrong type is told with plugin and hook.

It says what is wrong; whether that stops a start, or is one line in the log, is for who asked.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from openclaw_gateway.contracts.capabilities import Accounts, Counters
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.hooks import HealthCheck
from openclaw_gateway.meters import Charge, Limit
from openclaw_gateway.structs import Finding


class HookFailed(Exception):
    """A plugin raised, or answered what cannot be used; `finding` says so."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(f"{finding.path}: {finding.message}")
        self.finding = finding


def raised(id: str, what: str, error: BaseException) -> Finding:
    """Say what a plugin has raised where it was asked for `what`, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Finding(
        ("plugins", id),
        f"{what} failed: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})",
    )


def asked(id: str, hook: str, function: Callable[..., Any], *given: Any) -> Any:
    """Ask a plugin, and return what it answers. Raises HookFailed; ConfigError and StartFailed are passed on."""
    try:
        return function(*given)
    except (ConfigError, StartFailed):
        raise
    except Exception as error:
        raise HookFailed(raised(id, f"its hook {hook!r}", error)) from error


def listed(id: str, hook: str, function: Callable[..., Any], *given: Any) -> list[Any]:
    """Ask a plugin for a list, and return it. Raises as `asked` does, and HookFailed where it is no such list."""
    fits, expected = _ITEMS[hook]
    answer = asked(id, hook, function, *given)
    plural = isinstance(answer, Iterable) and not isinstance(answer, (str, bytes, Mapping))
    items = asked(id, hook, list, answer) if plural else []  # a generator raises only now
    wrong = [_kind(item) for item in items if not fits(item)]
    if not plural or wrong:
        found = f"{wrong[0]} in it" if plural else _kind(answer)
        raise HookFailed(_misanswered(id, hook, found, expected))
    return items


def gathered(
    plugins: Mapping[str, Mapping[str, Callable[..., Any]]], hook: str
) -> tuple[list[tuple[str, Any]], list[Finding]]:
    """Ask every plugin that has this hook for a list; return all items with their plugins' ids, and what is wrong."""
    items, findings = list[tuple[str, Any]](), list[Finding]()
    for id, implementations in plugins.items():
        if hook in implementations:
            try:
                items += [(id, item) for item in listed(id, hook, implementations[hook])]
            except HookFailed as error:
                findings.append(error.finding)
    return items, findings


def misplaced(instances: Mapping[str, Any]) -> list[Finding]:
    """Find plugins whose `migrations` are in no folder: a schema would be taken for whole without their tables."""
    findings = []
    for id, instance in instances.items():
        if hasattr(instance, "migrations"):
            try:
                folder = asked(id, "migrations", instance.migrations)
            except HookFailed as error:
                findings.append(error.finding)
                continue
            if not isinstance(folder, Path) or not folder.is_dir():
                found = f"{folder}, which is no folder" if isinstance(folder, Path) else _kind(folder)
                findings.append(_misanswered(id, "migrations", found, "the Path of a folder of Alembic revisions"))
    return findings


def named_alike(checks: Iterable[tuple[str, HealthCheck]]) -> list[Finding]:
    """Find health checks of one name, given with their plugins: /health shows one result a name."""
    owners: dict[str, str] = {}
    findings = []
    for id, check in checks:
        other = owners.get(check.name)
        owners[check.name] = id
        if other is not None:
            said = "gives two checks one name" if other == id else f"names a check as {other!r} does"
            expected = "a name of its own for each, the plugin's id in it say"
            findings.append(Finding(("plugins", id), f"its hook 'health' {said}", f'"{check.name}"', expected))
    return findings


async def awaited(hook: str, function: Callable[..., Any], *given: Any) -> None:
    """Ask a plugin for an awaitable, and wait for it. Raises TypeError where it is none."""
    answer = function(*given)
    if not inspect.isawaitable(answer):
        raise misanswered(hook, answer, "an awaitable")
    await answer


def entered(lifespan: Callable[[], Any]) -> AbstractAsyncContextManager[None]:
    """Ask a plugin for its lifespan. Raises TypeError where it is no context manager."""
    answer = lifespan()
    if not isinstance(answer, AbstractAsyncContextManager):
        raise misanswered("lifespan", answer, "an asynchronous context manager (@asynccontextmanager)")
    return answer


def misanswered(hook: str, answer: Any, expected: str) -> TypeError:
    """Return the error for a hook's answer that the runner cannot use."""
    if inspect.iscoroutine(answer):
        answer.close()  # else it is complained of a second time, elsewhere
    return TypeError(f"{hook} returned {_kind(answer)}; expected {expected}")


def _misanswered(id: str, hook: str, found: str, expected: str) -> Finding:
    return Finding(("plugins", id), f"its hook {hook!r} returned what it must not", found, expected)


def _kind(value: Any) -> str:
    """Name a type, and never the value: it may be what no log should hold."""
    name = type(value).__name__
    return "nothing (None)" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _is_charge(item: Any) -> bool:
    return isinstance(item, Charge) and isinstance(item.limit, Limit) and isinstance(item.account, (Counters, Accounts))


def _is_check(item: Any) -> bool:
    well = isinstance(item, HealthCheck) and isinstance(item.name, str)
    return well and callable(item.probe) and item.gate in ("ready", "info")


def _is_handler(item: Any) -> bool:
    return callable(item) or hasattr(item, "routes")  # what Litestar makes of it is its own to say


#: hook → what its items must be, and how that is said
_ITEMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "routes": (_is_handler, "a list of Litestar route handlers"),
    "charges": (_is_charge, "a list of Charge, each with a Limit and the Counters or Accounts that count it"),
    "health": (_is_check, 'a list of HealthCheck, each with a name, a probe and the gate "ready" or "info"'),
    "notices": (lambda item: isinstance(item, str), "a list of texts"),
}
