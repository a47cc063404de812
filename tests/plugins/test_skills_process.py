"""A real process that is killed while a skill runs: the run comes to an end all the same, and costs nothing."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from process_kit import process
from upstreams import Pause, scripted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


async def test_a_run_whose_process_was_killed_is_lost_and_costs_nothing(tmp_path: Path) -> None:
    async with scripted() as service:
        service.script = [Pause(60)]
        edit: dict[str, Any] = {
            "targets.slow.url": service.url,
            "targets.slow.private": True,
            "skills.wait.provider": "http_skills",
            "skills.wait.description": "Waits.",
            "skills.wait.target": "slow",
            "skills.wait.url": "/wait",
            "skills.wait.timeout": "60s",
            "plugins.skills.reap_every": "200ms",
            "plugins.accounts.reap_every": "200ms",
        }
        async with process(tmp_path, **edit) as here:
            session = await here.session()
            url = here.url + "/api/v1/skills/wait/execute"
            async with aiohttp.ClientSession(headers=here.headers) as http:
                asking = asyncio.ensure_future(http.post(url, json={"sessionId": session}))
                async with asyncio.timeout(10):
                    while not service.received:
                        await asyncio.sleep(0.02)
                here.process.kill()
                await here.process.wait()
                with pytest.raises(aiohttp.ClientError):
                    await asking
        (file,) = (tmp_path / ".openclaw").glob("*.db")
        with sqlite3.connect(file) as database:
            assert database.execute("SELECT status FROM openclaw_skill_executions").fetchall() == [("running",)]
            # so much time has passed
            database.execute("UPDATE openclaw_skill_executions SET deadline_at = started_at")
            database.execute("UPDATE openclaw_holds SET expires_at = '2001-01-01 00:00:00.000000'")
        database.close()
        async with process(tmp_path, **edit):
            async with asyncio.timeout(20):
                while (found := _rows(file)) != ([("lost",)], 0):
                    assert found[0] in ([("running",)], [("lost",)])
                    await asyncio.sleep(0.05)


def _rows(file: Path) -> tuple[list[Any], int]:
    database = sqlite3.connect(file)
    try:
        statuses = database.execute("SELECT status FROM openclaw_skill_executions").fetchall()
        used = database.execute("SELECT sum(used + held) FROM openclaw_usage WHERE limit_name = 'quota.skills'")
        return statuses, used.fetchone()[0]
    finally:
        database.close()
