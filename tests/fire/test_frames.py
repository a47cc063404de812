"""The WebSocket protocol by name, from `corpus/websocket.json`: each case ends with its code, or is served.

A good `ping` frame follows each. `expect` is a close code, or two of them; `served` where the socket answers
`pong`; `error` where it answers an `error` frame, stays open and then answers `pong` (a turn may answer after it).
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from socket_kit import Raw, frame, raw

from openclaw_gateway.testing import build, served

from .test_sockets import Target, nothing_is_left
from .watch import Recorder, listening, wide

CORPUS = json.loads((Path(__file__).parent / "corpus" / "websocket.json").read_text())
PING = frame(1, b'{"type": "ping"}')


def sent(case: dict[str, Any]) -> bytes:
    return b"".join(
        frame(
            one["op"],
            payload(one),
            fin=bool(one.get("fin", 1)),
            rsv=one.get("rsv", 0),
            masked=bool(one.get("mask", 1)),
            length=bytes.fromhex(one["length"]) if "length" in one else None,
        )
        for one in case["frames"]
    )


def payload(one: dict[str, Any]) -> bytes:
    text = one.get("text", "")
    return bytes.fromhex(one.get("hex", "")) or (text if isinstance(text, str) else text[0] * text[1]).encode()


async def became(client: Raw) -> str:
    """What came of it: a close code, `served`, `error`, or how it ended otherwise."""
    error = False
    try:
        async with asyncio.timeout(5):
            while True:
                opcode, data = await client.frame()
                if opcode == 8:
                    return str(int.from_bytes(data[:2], "big")) if data else "1005"
                if opcode == 1:
                    kind = json.loads(data)["type"]
                    error = error or kind == "error"
                    if kind == "pong":
                        return "error" if error else "served"
    except (asyncio.IncompleteReadError, ConnectionError):
        return "ended without a code"
    except TimeoutError:
        return "silence"


@pytest.mark.timeout(300)
async def test_every_case_has_its_code(tmp_path: Path, record_property: Recorder) -> None:
    gateway = build(wide(tmp_path))
    wrong: list[str] = []
    async with served(gateway) as server:
        target = Target(gateway)
        session = await target.session()

        async def one(case: dict[str, Any]) -> None:
            async with raw(target, f"/ws?sessionId={session}", target.credential) as client:  # type: ignore[arg-type]
                assert client.status == 101, client.body
                client.writer.write(sent(case) + PING)
                found = await became(client)
            if found not in str(case["expect"]).split(" or "):
                wrong.append(f"{case['name']}: {case['expect']}, and it was {found}")

        with listening() as heard:
            # One at a time: an answer to one's turn is told to every socket of the session.
            for case in CORPUS:
                await one(case)
            await nothing_is_left(gateway, server)
    record_property("cases", len(CORPUS))
    record_property("wrong or missing codes", len(wrong))
    assert not wrong, "\n".join(wrong)
    assert not heard.faults, "\n".join(heard.faults)


def test_there_are_enough_of_them() -> None:
    assert len({case["name"] for case in CORPUS}) == len(CORPUS) >= 300
