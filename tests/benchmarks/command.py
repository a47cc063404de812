"""The command: starts every subject, measures them in turn, prints the page and writes it to docs/reference.

Nothing is written where a run was narrowed with `--only`, or where the gateway or the mock upstream failed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import uvloop
from servers import free_port

from benchmarks import peers, sockets
from benchmarks.crosscheck import Check, checked
from benchmarks.inside import TIER
from benchmarks.measure import Conditions, carried, cold_start, help_time, rounds
from benchmarks.parts import all_parts
from benchmarks.plots import plots
from benchmarks.report import OURS, Run, page, problems, with_sockets
from benchmarks.subjects import Absent, Subject, bare, conventional, gateway, nginx, shared_stores, upstream
from benchmarks.workers import Workers, all_workers
from openclaw_gateway.testing import configuration

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/performance.md"


def main() -> int:
    options = _options()
    if options.sockets:
        return _only_sockets(options.short)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder, ExitStack() as stack:
        where = Path(folder)
        where.chmod(0o755)
        run = Run(
            command="python3 .ci/dev.py run python tests/benchmarks" + (" --short" if options.short else ""),
            count=options.rounds or (3 if options.short else 5),
            seconds=options.seconds or (1.0 if options.short else 3.0),
            subjects=[],
            samples={},
            memory={},
            absent={},
            cold={},
            parts=[],
            sockets=None,
            carried={},
            conditions=Conditions(),
        )
        _start(run, where, stack, options)
        run.samples = rounds(run.subjects, count=run.count, seconds=run.seconds, conditions=run.conditions, say=_say)
        run.memory = {subject.name: subject.memory() for subject in run.subjects if subject.name != "direct"}
        run.carried = carried(run.subjects, counts=(100, 300) if options.short else (100, 300, 1_000), say=_say)
        run.checks = _checks(run, where, options)
        _say("cold start")
        run.cold = _cold(where, 3 if options.short else 5)
        if not options.only:
            # on the loop that serves, for its share of a part is as large as a part
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                run.parts = runner.run(all_parts(short=options.short, say=_say))
    if not options.only or options.only == "workers":
        run.workers = _workers(run)
    if not options.only:
        with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
            run.sockets = sockets.measure(Path(folder), short=options.short, say=_say)
    text = page(run)
    sys.stdout.write(text)
    wrong = problems(run.samples, [s.name for s in run.subjects if s.ours or s.name == "direct"])
    for problem in wrong:
        _say(f"failed: {problem}")
    if wrong or options.only:
        return 1 if wrong else 0
    PAGE.write_text(text)
    for name, drawn in plots(run).items():
        (PAGE.parent / name).write_text(drawn)
    _say(f"written: {PAGE}")
    return 0


def _only_sockets(short: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        found = sockets.measure(Path(folder), short=short, say=_say)
    command = "python3 .ci/dev.py run python tests/benchmarks --sockets" + (" --short" if short else "")
    text = with_sockets(PAGE.read_text(), found, command)
    sys.stdout.write("\n".join(sockets.section(found)) + "\n")
    PAGE.write_text(text)
    _say(f"written: {PAGE}")
    return 0


def _options() -> Any:
    command = argparse.ArgumentParser(prog="tests/benchmarks", description=__doc__)
    command.add_argument("--short", action="store_true", help="two minutes, without peers; says less, and shows it")
    command.add_argument("--sockets", action="store_true", help="sockets alone; writes their section of the page")
    command.add_argument("--rounds", type=int, help="rounds over all subjects")
    command.add_argument("--seconds", type=float, help="length of one window")
    command.add_argument("--only", help="subjects whose name holds this text, beside the direct call; prints only")
    command.add_argument("--peers-in", type=Path, help="keep the peers' environments there, to use them again")
    return command.parse_args()


def _start(run: Run, where: Path, stack: ExitStack, options: Any) -> None:
    """Start every subject that can be had; the others are absent, with their reason."""

    def add(name: str, started: Callable[[], AbstractContextManager[Subject]]) -> None:
        if options.only and options.only not in name:
            return
        _say(f"starting {name}")
        try:
            run.subjects.append(stack.enter_context(started()))
        except Absent as why:
            run.absent[name] = str(why)

    direct = stack.enter_context(upstream())
    run.subjects.append(direct)
    to = direct.port
    add("nginx", lambda: nginx(where / "nginx", to))
    add("raw ASGI echo", lambda: bare("raw", "reads the body and sends it back"))
    add("bare Litestar", lambda: bare("litestar", "the same in one `@asgi` handler"))
    add("conventional Litestar", lambda: conventional(to))
    rates = "key, tier, rates in memory, JSON log, metrics, proxied call"
    add("gateway, rates only", lambda: gateway(where / "rates", "gateway, rates only", rates, to, {}, quota=False))
    whole = f"{rates}, quota in SQLite"
    add("gateway, embedded", lambda: gateway(where / "embedded", "gateway, embedded", whole, to, {}))
    if not options.only or options.only in "gateway, PostgreSQL and Valkey":
        try:
            edits = stack.enter_context(shared_stores())
        except (ImportError, OSError) as why:
            run.absent["gateway, PostgreSQL and Valkey"] = str(why)
        else:
            name, does = "gateway, PostgreSQL and Valkey", "as embedded: rates in Valkey, quota in PostgreSQL"
            add(name, lambda: gateway(where / "shared", name, does, to, edits))
    if options.short:
        run.absent["Envoy, Caddy, LiteLLM, Portkey, Express"] = "peers are part of the long form"
        return
    home = options.peers_in or where / "peers"
    add("Envoy", lambda: peers.envoy(home / "envoy", to))
    add("Caddy", lambda: peers.caddy(home / "caddy", to))
    add("LiteLLM proxy", lambda: peers.litellm(home / "litellm", to))
    try:
        nodes = peers.nodes(home / "node")
    except Absent as why:
        run.absent["Portkey, Express"] = str(why)
        return
    for node in nodes:
        add(f"Portkey gateway, {node.name}", lambda node=node: peers.portkey(home / "portkey", to, node))
        for secret in ("string secret", "KeyObject"):
            name = f"Express, {secret}, {node.name}"
            add(name, lambda secret=secret, node=node: peers.express(home / "express", to, secret, node))


def _checks(run: Run, where: Path, options: Any) -> list[Check]:
    """Ask some of the subjects by k6 too."""
    if options.short or options.only:
        return []
    try:
        k6 = peers.k6((options.peers_in or where / "peers") / "k6")
    except Absent as why:
        run.absent["k6"] = str(why)
        return []
    some = [s for s in run.subjects if s.name.startswith(("raw ", "conventional ")) or s.name == OURS]
    return checked(some, k6, where, count=run.count, seconds=run.seconds, say=_say)


def _workers(run: Run) -> list[Workers]:
    """Measured when all else has ended: they take every core."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder, ExitStack() as stack:
        try:
            edits = stack.enter_context(shared_stores())
        except (ImportError, OSError) as why:
            run.absent["one worker beside two"] = str(why)
            return []
        to = stack.enter_context(upstream()).port
        return all_workers(Path(folder), to, edits, count=run.count, seconds=run.seconds, say=_say)


def _cold(where: Path, count: int) -> dict[str, list[float]]:
    port = free_port()
    config = configuration(where / "cold", tiers={"bench": TIER}, edit={"gateway.port": port})
    first = cold_start(config, port)
    return {
        "first `serve` of an embedded gateway, which makes its database, to its first connection": [first],
        "`serve`, embedded, to its first connection": [cold_start(config, port) for _ in range(count)],
        "`--help`": [help_time() for _ in range(count)],
    }


def _say(text: str) -> None:
    sys.stderr.write(f"benchmarks: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
