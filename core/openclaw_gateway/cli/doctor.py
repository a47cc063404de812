"""`doctor`: what is wrong or risky with this installation, each with evidence and a fix; changes nothing unasked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from openclaw_gateway.cli.context import PROBLEM_FOUND, config_option, json_option, located, print_json

if TYPE_CHECKING:
    from openclaw_gateway.gateway import Gateway

Severity = Literal["error", "warning", "note"]


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `id` is stable; `group` is security or operation; `fixable` says that `--fix` can mend it."""

    id: str
    group: Literal["security", "operation"]
    severity: Severity
    evidence: str
    fix: str
    fixable: bool = False


@click.command()
@config_option
@json_option
@click.option("--fix", is_flag=True, help="Mend what can be mended without a choice of yours.")
@click.option("--deep", is_flag=True, help="Also open every plugin and ask its health checks.")
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a zip file for a report of a problem, without any secret.",
)
def doctor(config: Path | None, as_json: bool, fix: bool, deep: bool, bundle: Path | None) -> None:
    """Look for what is wrong or risky; exit 1 where an error is found."""
    from openclaw_gateway.config.layers import Layers, TomlFile
    from openclaw_gateway.errors import ConfigError
    from openclaw_gateway.gateway import Gateway

    path, _ = located(config)
    gateway = None
    try:
        gateway = Gateway(Layers(TomlFile(path, str(path))))
    except ConfigError as error:
        found = [
            Diagnosis(id="O001", group="operation", severity="error", evidence=str(p), fix="mend the file; see check")
            for p in error.problems
        ]
    else:
        found = list(_diagnose(gateway))
        if deep:
            found += _deep(gateway)
        if fix:
            found = [d for d in found if not (d.fixable and _mend(gateway, d))]
    if bundle is not None:
        _bundle(bundle, gateway, found)
    if as_json:
        print_json({"findings": found})
    else:
        for d in found:
            click.echo(f"{d.id} {d.severity}: {d.evidence}\n     fix: {d.fix}{' (--fix does it)' if d.fixable else ''}")
        click.echo(f"{len(found)} finding{'s' if len(found) != 1 else ''}")
    sys.exit(PROBLEM_FOUND if any(d.severity == "error" for d in found) else 0)


def _bundle(file: Path, gateway: Gateway | None, found: list[Diagnosis]) -> None:
    from openclaw_gateway.cli.bundle import write_bundle

    try:
        write_bundle(file, gateway, found)
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--bundle") from None


def _diagnose(gateway: Gateway) -> Iterator[Diagnosis]:
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
    from openclaw_gateway.addresses import loopback

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
    for path in _secret_files(gateway):
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
    from openclaw_gateway.config.units import Secret

    for definition in gateway.definitions:
        for name in getattr(definition.config, "__struct_fields__", ()):
            value = getattr(definition.config, name)
            if isinstance(value, Secret) and value.reference == "(literal)":
                keys = ("plugins", definition.id, name)
                if keys in gateway.layers.file.positions:
                    yield Diagnosis(
                        id="S004",
                        group="security",
                        severity="warning",
                        evidence=f"{gateway.layers.file.origin(keys)}: {'.'.join(keys)} is written into the file",
                        fix='refer to it: "env:NAME" or "file:PATH"',
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
    if not os.access(present, os.W_OK):
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
    from openclaw_gateway.addresses import loopback

    alone = [d.id for d in gateway.definitions if getattr(gateway.instances[d.id], "shared", True) is False]
    if alone and not loopback(gateway.document.gateway.host):
        yield Diagnosis(
            id="O005",
            group="operation",
            severity="note",
            evidence=f"{', '.join(alone)}: state of this process alone; a second replica would count by itself",
            fix="run one replica, or use the shared stores (PostgreSQL, Valkey)",
        )


_CHECKS: tuple[Callable[[Gateway], Iterator[Diagnosis]], ...] = (
    _no_authentication,
    _open_without_tls,
    _readable_secrets,
    _literal_secrets,
    _unlimited,
    _writable_config,
    _data_dir,
    _descriptors,
    _one_process_stores,
)


def _deep(gateway: Gateway) -> list[Diagnosis]:
    import asyncio

    from openclaw_gateway.errors import StartFailed

    async def ask() -> list[Diagnosis]:
        found = []
        async with gateway.running():
            for check in gateway.health_checks:
                try:
                    async with asyncio.timeout(5):
                        await check.probe()
                except Exception as error:  # noqa: BLE001 - whatever a probe raises is the finding
                    severity: Severity = "error" if check.gate == "ready" else "warning"
                    evidence = f"{check.name}: {type(error).__name__}: {error}"
                    found.append(
                        Diagnosis(
                            id="O006", group="operation", severity=severity, evidence=evidence, fix="see the part named"
                        )
                    )
        return found

    try:
        return asyncio.run(ask())
    except StartFailed as error:
        fix = "do what the message names, then run doctor again"
        return [Diagnosis(id="O007", group="operation", severity="error", evidence=str(error), fix=fix)]


def _mend(gateway: Gateway, diagnosis: Diagnosis) -> bool:
    if diagnosis.id == "S003":
        for path in _secret_files(gateway):
            path.chmod(0o600)
        return True
    if diagnosis.id == "S006":
        for path in (gateway.layers.file.path, gateway.tier_files.folder):
            path.chmod(path.stat().st_mode & ~0o002)
        return True
    return False


def _secret_files(gateway: Gateway) -> Iterator[Path]:
    folder = _folder(gateway)
    if folder.is_dir():
        yield from (p for p in sorted(folder.iterdir()) if p.suffix in {".secret", ".pepper", ".db"} and p.is_file())


def _folder(gateway: Gateway) -> Path:
    return gateway.config_dir / gateway.document.gateway.data_dir
