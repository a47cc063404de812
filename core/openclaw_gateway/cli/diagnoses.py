"""What `doctor` looks at without opening anything: one function a finding, each with evidence and a fix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from openclaw_gateway.config.units import Secret
    from openclaw_gateway.gateway import Gateway

#: what examples and templates have where a secret belongs
_PLACEHOLDER = re.compile(r"(?i)change.?(me|this|it)|replace.?(me|this)|placeholder|example|your[-_ ]|default|password")
#: different characters of a text that nobody guesses; 32 random hexadecimal digits have fewer once in 10 ** 9
_FEWEST_CHARACTERS = 5
#: stands for "nothing to look at", and is no placeholder
_NONE = "0123456789abcdef"

Severity = Literal["error", "warning", "note"]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `id` is stable; `group` is security or operation; `fixable` says that `--fix` can mend it."""

    id: str
    group: Literal["security", "operation"]
    severity: Severity
    evidence: str
    fix: str
    fixable: bool = False


def diagnose(gateway: Gateway) -> Iterator[Diagnosis]:
    """Look at a gateway that was built and not opened."""
    for check in _CHECKS:
        yield from check(gateway)


def _no_authentication(gateway: Gateway) -> Iterator[Diagnosis]:
    if gateway.document.gateway.insecure_dev:
        yield Diagnosis(
            id="S001",
            group="security",
            severity="warning",
            evidence="gateway.insecure_dev is on: whoever reaches the port may do anything",
            fix="put an auth step into the pipeline and remove insecure_dev",
        )


def _open_without_tls(gateway: Gateway) -> Iterator[Diagnosis]:
    from openclaw_gateway.serving.addresses import loopback

    settings = gateway.document.gateway
    if not loopback(settings.host) and settings.tls is None and not settings.trusted_proxies:
        yield Diagnosis(
            id="S002",
            group="security",
            severity="warning",
            evidence=f"listens on {settings.host} without TLS, and no trusted proxy is named: keys travel in the clear",
            fix="set [gateway.tls], or name the proxy that ends TLS in gateway.trusted_proxies",
        )


def _readable_secrets(gateway: Gateway) -> Iterator[Diagnosis]:
    for path in secret_files(gateway):
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            yield Diagnosis(
                id="S003",
                group="security",
                severity="error",
                evidence=f"{path} can be read by others (mode {mode:03o})",
                fix=f"chmod 600 {path}",
                fixable=True,
            )


def _literal_secrets(gateway: Gateway) -> Iterator[Diagnosis]:
    for keys, secret in _secrets(gateway):
        if secret.reference == "(literal)" and keys in gateway.layers.file.positions:
            yield Diagnosis(
                id="S004",
                group="security",
                severity="warning",
                evidence=f"{gateway.layers.file.origin(keys)}: {'.'.join(keys)} is written into the file",
                fix='refer to it: "env:NAME" or "file:PATH"',
            )


def _placeholders(gateway: Gateway) -> Iterator[Diagnosis]:
    for keys, secret in _secrets(gateway):
        text = secret.reveal()
        if "://" in text:  # of the URL of a store, only its password; one without needs none
            text = urlsplit(text).password or _NONE
        if _PLACEHOLDER.search(text) or len(set(text)) < _FEWEST_CHARACTERS:
            yield Diagnosis(
                id="S009",
                group="security",
                severity="error",
                evidence=f"{'.'.join(keys)} is a placeholder or can be guessed (from {secret.reference})",
                fix="put a random one in its place: openssl rand -hex 32",
            )


def _unlimited(gateway: Gateway) -> Iterator[Diagnosis]:
    if gateway.document.gateway.unmetered:
        yield Diagnosis(
            id="S005",
            group="security",
            severity="warning",
            evidence=f"gateway.unmetered lets go without a limit: {', '.join(gateway.document.gateway.unmetered)}",
            fix="give every tier a limit on them, and remove them from unmetered",
        )


def _writable_config(gateway: Gateway) -> Iterator[Diagnosis]:
    for path in (gateway.layers.file.path, gateway.tier_files.folder):
        if path.stat().st_mode & 0o002:
            yield Diagnosis(
                id="S006",
                group="security",
                severity="error",
                evidence=f"{path} can be written by everybody: limits would be anyone's to set",
                fix=f"chmod o-w {path}",
                fixable=True,
            )


def _data_dir(gateway: Gateway) -> Iterator[Diagnosis]:
    import os
    import shutil

    folder = _folder(gateway)
    present = folder if folder.exists() else folder.parent
    if not (present.is_dir() and os.access(present, os.W_OK)):
        yield Diagnosis(
            id="O002",
            group="operation",
            severity="error",
            evidence=f"{present} cannot be written",
            fix="change its owner, or gateway.data_dir",
        )
    elif (free := shutil.disk_usage(present).free) < 512 * 2**20:
        yield Diagnosis(
            id="O003",
            group="operation",
            severity="warning",
            evidence=f"{free // 2**20} MiB are free under {present}",
            fix="make room before the store fills the disk",
        )


def _descriptors(gateway: Gateway) -> Iterator[Diagnosis]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = gateway.document.gateway.edge.max_connections + 200
    if soft < wanted:
        yield Diagnosis(
            id="O004",
            group="operation",
            severity="note",
            evidence=f"{soft} open files are allowed, and edge.max_connections asks for about {wanted}",
            fix=f"ulimit -n {wanted} (LimitNOFILE= in a systemd unit), or lower max_connections",
        )


def _one_process_stores(gateway: Gateway) -> Iterator[Diagnosis]:
    from openclaw_gateway.serving.addresses import loopback
    from openclaw_gateway.serving.listeners import unshared

    alone = unshared(gateway.instances)
    if alone and not loopback(gateway.document.gateway.host):
        yield Diagnosis(
            id="O005",
            group="operation",
            severity="note",
            evidence=f"{', '.join(alone)}: state of this process alone; a second replica would count by itself",
            fix="run one replica, or use the shared stores (PostgreSQL, Valkey)",
        )


def _open_operations(gateway: Gateway) -> Iterator[Diagnosis]:
    from openclaw_gateway.serving.addresses import loopback

    settings = gateway.document.gateway
    if settings.operations is None:
        if not loopback(settings.host):
            yield Diagnosis(
                id="S007",
                group="security",
                severity="note",
                evidence=f"/metrics and /health answer anybody who reaches {settings.host}:{settings.port}",
                fix="give them a listener of their own, [gateway.operations], or have the proxy not pass them",
            )
    elif not loopback(settings.operations.host):
        yield Diagnosis(
            id="S008",
            group="security",
            severity="note",
            evidence=f"whoever reaches {settings.operations.host}:{settings.operations.port} sees every part's health",
            fix="let only monitoring and the orchestrator reach it, by a firewall or a network policy",
        )


def _too_many_workers(gateway: Gateway) -> Iterator[Diagnosis]:
    import os

    # The processors that this process may use, where the system can say.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = gateway.document.gateway.workers
    if workers > usable:
        yield Diagnosis(
            id="O008",
            group="operation",
            severity="note",
            evidence=f"gateway.workers is {workers}, and {usable} processors can be used: they take turns",
            fix=f"gateway.workers = {usable}",
        )


_CHECKS: tuple[Callable[[Gateway], Iterator[Diagnosis]], ...] = (
    _no_authentication,
    _open_without_tls,
    _readable_secrets,
    _literal_secrets,
    _placeholders,
    _unlimited,
    _writable_config,
    _data_dir,
    _descriptors,
    _one_process_stores,
    _open_operations,
    _too_many_workers,
)


def _secrets(gateway: Gateway) -> Iterator[tuple[tuple[str, ...], Secret]]:
    """Walk the secrets that plugins are configured with, those in tables included."""
    from openclaw_gateway.config.units import Secret

    def walk(value: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Secret]]:
        if isinstance(value, Secret):
            yield keys, value
        elif isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, (*keys, str(name)))
        else:
            for name in getattr(value, "__struct_fields__", ()):
                yield from walk(getattr(value, name), (*keys, name))

    for definition in gateway.definitions:
        yield from walk(definition.config, ("plugins", definition.id))


def secret_files(gateway: Gateway) -> Iterator[Path]:
    """Walk the files in data_dir that hold secrets."""
    folder = _folder(gateway)
    if folder.is_dir():
        yield from (p for p in sorted(folder.iterdir()) if p.suffix in {".secret", ".pepper", ".db"} and p.is_file())


def _folder(gateway: Gateway) -> Path:
    return gateway.config_dir / gateway.document.gateway.data_dir
