"""aimock, an upstream that its makers keep in step with the vendors' own, as a process that plays lists of faults."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

#: one answer in aimock's terms: a `response`, and how it comes
Play = dict[str, Any]


class Aimock:
    """`url` speaks OpenAI's protocol and Anthropic's; what its models play is told over HTTP."""

    def __init__(self, origin: str) -> None:
        self.url = f"{origin}/v1"
        self._control = f"{origin}/__aimock"

    async def plays(self, models: dict[str, Sequence[Play]]) -> None:
        """Each model plays its list, one answer a call, and the last for ever. A model is told once."""
        fixtures = []
        for model, plays in models.items():
            for number, play in enumerate(plays[:-1]):
                fixtures.append({"match": {"model": model, "sequenceIndex": number}, **play})
            fixtures.append({"match": {"model": model}, **plays[-1]})
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._control}/fixtures", json={"fixtures": fixtures}) as answer,
        ):
            assert answer.status == 200, await answer.text()

    async def calls(self, *models: str) -> tuple[int, ...]:
        """How often each of the models has answered, or has failed to on purpose."""
        async with aiohttp.ClientSession() as session, session.get(f"{self._control}/journal") as answer:
            asked = [entry["body"]["model"] for entry in await answer.json()]
        return tuple(asked.count(model) for model in models)


@contextmanager
def aimock(packages: Path) -> Iterator[Aimock]:
    """Run it on a free port, from a folder with its package."""
    command = ["node", packages / "node_modules/@copilotkit/aimock/dist/cli.js", "--port", "0"]
    nothing = packages / "package.json"  # it wants a file to start with, and takes one that has no answers in it
    said: queue.Queue[str] = queue.Queue()
    with subprocess.Popen(
        [*command, "--fixtures", nothing], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda lines: [said.put(line) for line in lines], args=(process.stdout,))
        reader.start()
        try:
            while not (found := re.search(r"listening on (http://\S+)", said.get(timeout=20))):
                pass
            yield Aimock(found[1])
        finally:
            process.kill()
            reader.join()
