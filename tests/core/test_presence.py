"""Where a gateway is found, and what makes it reload: SIGHUP, and files that have changed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from process_kit import COMMAND, process

from openclaw_gateway.errors import StartFailed
from openclaw_gateway.serving.presence import OUTCOME_FILE, PID_FILE, REHEARSAL_FILE, fingerprint, present, serving

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")


class Reloads:
    """Counts the reloads that were asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.changed = asyncio.Condition()

    async def __call__(self) -> dict[str, Any]:
        async with self.changed:
            self.count += 1
            self.changed.notify_all()
        return {"ok": True, "generation": 1 + self.count, "problems": []}

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: self.count >= count)


def files(folder: Path) -> tuple[Path, Path]:
    tiers = folder / "tiers"
    tiers.mkdir()
    (tiers / "a.toml").write_text("limit = 1\n")
    config = folder / "openclaw.toml"
    config.write_text("[gateway]\n")
    return config, tiers


async def test_a_signal_is_a_reload_whose_outcome_is_left(tmp_path: Path) -> None:
    reloads = Reloads()
    data = tmp_path / "data"
    async with present(data, reloads, Reloads(), files=files(tmp_path), watch=0):
        assert (data / PID_FILE).read_text() == str(os.getpid())
        assert data.stat().st_mode & 0o777 == 0o700
        os.kill(os.getpid(), signal.SIGHUP)
        await reloads.until(1)
        async with asyncio.timeout(20):
            while not (data / OUTCOME_FILE).exists():
                await asyncio.sleep(0.01)
        assert json.loads((data / OUTCOME_FILE).read_text())["generation"] == 2
    assert not (data / PID_FILE).exists()


async def test_the_other_signal_is_a_rehearsal_and_no_reload(tmp_path: Path) -> None:
    reloads, rehearsals = Reloads(), Reloads()
    async with present(tmp_path, reloads, rehearsals, files=files(tmp_path), watch=0):
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(20):
            while not (tmp_path / REHEARSAL_FILE).exists():
                await asyncio.sleep(0.01)
    assert (rehearsals.count, reloads.count) == (1, 0)
    assert not (tmp_path / OUTCOME_FILE).exists()


async def test_the_file_of_who_came_after_us_is_left_alone(tmp_path: Path) -> None:
    async with present(tmp_path, Reloads(), Reloads(), files=files(tmp_path), watch=0):
        (tmp_path / PID_FILE).write_text("1")
    assert (tmp_path / PID_FILE).read_text() == "1"


class Other:
    """Another process that serves from a folder: it has begun to when this is made, and is killed with the block."""

    _CODE = """
import asyncio, sys
from pathlib import Path
from openclaw_gateway.serving.presence import present

async def main():
    folder = Path(sys.argv[1])
    async with present(folder, None, None, files=(folder, folder), watch=0):
        print(flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""

    def __init__(self, folder: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", self._CODE, str(folder)], stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"\n"
        self.pid = self.process.pid

    def stop(self) -> None:
        self.process.communicate(timeout=60)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


async def test_who_is_found_is_one_that_serves_in_whatever_order_they_stop(tmp_path: Path) -> None:
    named = tmp_path / PID_FILE
    with Other(tmp_path) as first, Other(tmp_path) as second, Other(tmp_path) as third:
        assert serving(tmp_path) == [third.pid, second.pid, first.pid]
        second.stop()
        assert named.read_text() == str(third.pid)
        third.stop()
        assert named.read_text() == str(first.pid)
        first.stop()
    assert not named.exists()
    assert serving(tmp_path) == []


async def test_a_process_that_was_killed_serves_no_more(tmp_path: Path) -> None:
    with Other(tmp_path) as killed:
        pass
    assert (tmp_path / PID_FILE).read_text() == str(killed.pid)
    async with present(tmp_path, Reloads(), Reloads(), files=files(tmp_path), watch=0, alone=["counters"]):
        assert serving(tmp_path) == [os.getpid()]
    assert [path.name for path in tmp_path.glob("*serving*")] == []


async def test_who_would_count_by_itself_does_not_serve_beside_another(tmp_path: Path) -> None:
    with Other(tmp_path) as first:
        with pytest.raises(StartFailed, match=f"process {first.pid} serves .* counters, events would count"):
            async with present(
                tmp_path, Reloads(), Reloads(), files=files(tmp_path), watch=0, alone=["counters", "events"]
            ):
                pass
        assert (tmp_path / PID_FILE).read_text() == str(first.pid)


@pytest.mark.parametrize("folder", ["openclaw.toml", "openclaw.toml/below", "/proc/self"])
async def test_where_nothing_can_be_written_no_gateway_starts(tmp_path: Path, folder: str) -> None:
    found = files(tmp_path)
    with pytest.raises(StartFailed, match=r"nothing can be written to gateway\.data_dir, "):
        async with present(tmp_path / folder, Reloads(), Reloads(), files=found, watch=0):
            pass


async def test_a_second_gateway_on_memory_is_refused_and_the_first_goes_on_to_be_found(tmp_path: Path) -> None:
    config = ("--config", str(tmp_path / "openclaw.toml"))

    def run(*command: str) -> tuple[int, str]:
        done = subprocess.run([*COMMAND, *command, *config], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    async with process(tmp_path) as first:
        status, said = await asyncio.to_thread(run, "serve", "--port", "0")
        assert status == 1
        assert said.startswith(f"not started: process {first.process.pid} serves from ")
        status, said = await asyncio.to_thread(run, "reload")
        assert (status, said) == (0, "reloaded: generation 2\n")
        assert (await asyncio.to_thread(run, "config", "diff"))[0] == 0
    # It was killed. What has its number now, this process say, must not get a signal that ends it.
    (tmp_path / ".openclaw" / PID_FILE).write_text(str(os.getpid()))
    status, said = await asyncio.to_thread(run, "reload")
    assert status == 2
    assert said.startswith("no gateway serves this configuration")


async def test_reload_finds_who_still_serves_where_the_last_one_was_killed(tmp_path: Path) -> None:
    config, _ = files(tmp_path)
    reloads, data = Reloads(), tmp_path / ".openclaw"
    async with present(data, reloads, Reloads(), files=(config, tmp_path), watch=0):
        with Other(data) as killed:
            pass
        assert (data / PID_FILE).read_text() == str(killed.pid)
        command = [*COMMAND, "reload", "--config", str(config)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "reloaded: generation 2\n")
    assert reloads.count == 1


async def test_changed_contents_are_a_reload_and_a_touch_is_none(tmp_path: Path) -> None:
    config, tiers = files(tmp_path)
    reloads = Reloads()
    async with present(tmp_path / "data", reloads, Reloads(), files=(config, tiers), watch=0.02):
        await asyncio.sleep(0.1)  # until the first look is over; what changes before it is no change
        config.touch()
        (tiers / "notes.txt").write_text("no tier")
        await asyncio.sleep(0.1)
        assert reloads.count == 0
        config.write_text("[gateway]\nport = 1\n")
        await reloads.until(1)
        (tiers / "b.toml").write_text("limit = 2\n")
        await reloads.until(2)
        (tiers / "a.toml").unlink()
        await reloads.until(3)
        config.unlink()
        await reloads.until(4)
        await asyncio.sleep(0.1)
        assert reloads.count == 4  # one that is refused is not tried again and again


def test_a_fingerprint_tells_names_and_contents_apart(tmp_path: Path) -> None:
    config, tiers = files(tmp_path)
    before = fingerprint(config, tiers)
    (tiers / "a.toml").rename(tiers / "c.toml")
    after = fingerprint(config, tiers)
    assert before != after == fingerprint(config, tiers)
