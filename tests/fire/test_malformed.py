"""Malformed HTTP by name, from `corpus/http.json`: nothing is smuggled, nothing hangs, nothing is a fault of ours.

A payload is bytes as latin-1, a part of it perhaps `[text, times]`. Behind each comes a good request; `expect` says
what may become of the two. `refused`: one answer of 4xx, and the end of the connection. `served`: two answers. `waits`:
one answer of 4xx, and what comes behind it is taken for the body that was announced. `closed`: answered, and the
connection closed as asked. `refused or closed`: one answer, and the end. `either`: both answered, or one answer and the
end. Nothing else is right.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, TIERS

from openclaw_gateway.testing import build, configuration, serving

from .watch import Recorder, listening

CORPUS = json.loads((Path(__file__).parent / "corpus" / "http.json").read_text())
BEHIND = b"GET /open?behind HTTP/1.1\r\nHost: a\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def payload(case: dict[str, Any]) -> bytes:
    parts = case["bytes"] if isinstance(case["bytes"], list) else [case["bytes"]]
    text = "".join(part if isinstance(part, str) else part[0] * part[1] for part in parts)
    return text.encode("latin-1")


async def answers(port: int, data: bytes) -> tuple[list[int], bool]:
    """Send it and the good request; return the statuses that came, and whether the server closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    closed = False
    try:
        writer.write(data + BEHIND)
        async with asyncio.timeout(8):
            while not closed and len(STATUS.findall(found)) < 3:
                try:
                    async with asyncio.timeout(0.25 if STATUS.search(found) else 8):
                        piece = await reader.read(65_536)
                except TimeoutError:
                    break  # kept open, with nothing more to say
                closed = not piece
                found += piece
    except ConnectionError:
        closed = True
    finally:
        writer.transport.abort()
    return [int(status) for status in STATUS.findall(found) if status != b"100"], closed


def right(expect: str, statuses: list[int], closed: bool) -> bool:
    good = [status < 500 for status in statuses]
    refused = len(statuses) == 1 and 400 <= statuses[0] < 500 and closed
    both = len(statuses) == 2 and all(good) and not closed
    one = len(statuses) == 1 and all(good) and closed
    return {
        "refused": refused,
        "served": both,
        "waits": len(statuses) == 1 and 400 <= statuses[0] < 500,
        "closed": one,
        "refused or closed": one,
        "either": refused or both or one,
    }[expect]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("small")
async def test_no_payload_smuggles_hangs_or_breaks(tmp_path: Path, record_property: Recorder) -> None:
    edge = {"first_byte": "1s", "headers": "1s", "body_idle": "1s", "body_total": "2s"}
    path = configuration(tmp_path, toml=CONFIG, edit={"gateway.edge": edge}, tiers=TIERS)
    wrong: list[str] = []
    kinds: Counter[str] = Counter()
    async with serving(build(path)) as url:
        port = int(url.rsplit(":", 1)[1])

        async def one(case: dict[str, Any]) -> None:
            try:
                statuses, closed = await answers(port, payload(case))
            except TimeoutError:
                wrong.append(f"{case['name']}: hangs")
                return
            kinds[case["expect"]] += 1
            if not right(case["expect"], statuses, closed):
                wrong.append(
                    f"{case['name']}: {case['expect']}, and it was {statuses}, {'closed' if closed else 'open'}"
                )

        with listening() as heard:
            for start in range(0, len(CORPUS), 8):
                await asyncio.gather(*(one(case) for case in CORPUS[start : start + 8]))
        assert await answers(port, BEHIND) == ([200, 200], False)
    record_property("payloads", len(CORPUS))
    record_property("smuggled, hanging, 5xx", len(wrong))
    assert not wrong, "\n".join(wrong)
    assert not heard.faults, "\n".join(heard.faults)
    assert len(CORPUS) >= 200 and kinds["refused"] >= 150 and kinds["served"] >= 8


def test_names_are_unique() -> None:
    assert len({case["name"] for case in CORPUS}) == len(CORPUS)
