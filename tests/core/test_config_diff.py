"""`config diff` says what a reload would change: the files beside what a real process serves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from openclaw_gateway.cli import main
from openclaw_gateway.config.effective import FILE
from openclaw_gateway.testing import configuration

COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()", "serve", "--config")
ACCEPTED = "a reload would be accepted; nothing was swapped"


def run(command: str, option: str, path: Path, *more: str) -> Result:
    return CliRunner().invoke(main, [command, option, "--config", str(path), *more], catch_exceptions=False)


def diff(path: Path, *more: str) -> Result:
    return run("config", "diff", path, *more)


async def until(holds: object) -> None:
    async with asyncio.timeout(30):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.05)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


async def test_what_a_reload_would_change_is_told_until_it_has(tmp_path: Path) -> None:
    path = configuration(tmp_path, edit={"plugins.jwt.secret": "env:TOKEN_SECRET_OF_THE_TEST"})
    os.environ["TOKEN_SECRET_OF_THE_TEST"] = "correct-horse-battery-staple-0123456789"
    served = tmp_path / ".openclaw" / FILE
    assert diff(path).exit_code == 2
    process = await asyncio.create_subprocess_exec(
        *COMMAND, str(path), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await until(served.exists)
        assert served.stat().st_mode & 0o777 == 0o600
        assert "battery-staple" not in served.read_text()
        same = diff(path)
        assert (same.exit_code, same.output) == (0, "the files are what is served\n")

        change(tmp_path / "tiers" / "teams.toml", "limit = 500", "limit = 600")
        change(path, '"drain_timeout" = "30s"', '"drain_timeout" = "20s"')
        changed = diff(path)
        assert changed.exit_code == 1
        assert changed.output.splitlines()[:2] == [
            "gateway.drain_timeout: 30s -> 20s",
            "tiers.teams.ratelimit.requests.limit: 500 -> 600",
        ]
        told = json.loads(diff(path, "--json").output)["changes"]
        assert told[0] == {"key": "gateway.drain_timeout", "served": "30s", "file": "20s"}

        rehearsed = await asyncio.to_thread(run, "reload", "--dry-run", path)
        assert rehearsed.exit_code == 0
        assert rehearsed.output.splitlines() == [*changed.output.splitlines()[:2], ACCEPTED]
        # Secrets are the gateway's: whoever asks it does not need them.
        stranger = CliRunner(env={"TOKEN_SECRET_OF_THE_TEST": None})
        asked = await asyncio.to_thread(stranger.invoke, main, ["reload", "--dry-run", "--config", str(path)])
        assert (asked.exit_code, asked.output) == (0, rehearsed.output)
        change(path, '"drain_timeout" = "20s"', '"drain_timeout" = "soon"')
        refused = await asyncio.to_thread(run, "reload", "--dry-run", path)
        assert refused.exit_code == 1 and "gateway.drain_timeout: not a valid value" in refused.output
        change(path, '"drain_timeout" = "soon"', '"drain_timeout" = "20s"')
        change(path, '"drain_timeout" = "20s"', '"drain_timeout" = "20s"\n"watch" = "1h"')
        told = json.loads((await asyncio.to_thread(run, "reload", "--dry-run", path, "--json")).output)
        assert told["needRestart"] == ["gateway.watch"] and told["generation"] == 1
        change(path, '\n"watch" = "1h"', "")
        assert diff(path).output == changed.output

        before = served.stat().st_ino
        process.send_signal(signal.SIGHUP)
        await until(lambda: served.stat().st_ino != before)
        assert diff(path).exit_code == 0
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        del os.environ["TOKEN_SECRET_OF_THE_TEST"]
    assert not served.exists()
