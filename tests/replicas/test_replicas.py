"""Two gateways behind a balancer are one: order, places, tickets, a death under load, and a rolling restart."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fire.watch import SCALE, Recorder
from replicas.fleet import LEASE_TTL, Fleet
from servers import Postgres, start_valkey
from socket_kit import said, say
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(scope="module")
def fleet(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    name = postgres.create()
    with start_valkey() as valkey:
        found = Fleet(tmp_path_factory.mktemp("fleet"), postgres.url(name), valkey.url)
        try:
            found.start()
            yield found
        finally:
            found.end()
    postgres.drop(name)


class Client:
    """Listens and speaks through the balancer, comes back after a cut with the last seq, and keeps what it got."""

    def __init__(self, fleet: Fleet, session: str) -> None:
        self._fleet = fleet
        self._session = session
        self.events: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        #: how each of its sockets ended: whether it was told, and the code
        self.ends: list[tuple[bool, int | None]] = []
        self.waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()

    @property
    def last(self) -> int | None:
        return self.events[-1]["seq"] if self.events else None

    @property
    def told(self) -> list[str]:
        return [event["content"] for event in self.events if event["type"] == "message"]

    async def run(self) -> None:
        while True:
            try:
                async with self._fleet.connect(self._session, after=self.last) as socket:
                    self._socket = socket
                    self._connected.set()
                    await self._listen(socket)
            except (ConnectionClosed, OSError, InvalidHandshake, TimeoutError):
                pass
            self._connected.clear()
            for future in self.waiting.values():
                if not future.done():
                    future.cancel()
            await asyncio.sleep(0.1)

    async def ask(self, content: str) -> bool:
        """Say something; return whether its answer came, which is what acknowledges it."""
        await self._connected.wait()
        assert self._socket is not None
        future = self.waiting[content] = asyncio.get_running_loop().create_future()
        try:
            await say(self._socket, "message", id=content, content=content)
            async with asyncio.timeout(20):
                await future
            return True
        except (ConnectionClosed, asyncio.CancelledError):
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return False
        finally:
            del self.waiting[content]

    async def _listen(self, socket: ClientConnection) -> None:
        told = False
        try:
            async for text in socket:
                frame = json.loads(text)
                told = told or frame["type"] == "going_away"
                if frame["type"] == "error":
                    self.errors.append(frame)
                if "seq" in frame:
                    self.events.append(frame)
                waiting = self.waiting.get(frame.get("ref", ""))
                if frame["type"] == "message" and waiting is not None and not waiting.done():
                    waiting.set_result(frame)
        finally:
            self.ends.append((told, socket.close_code))


@asynccontextmanager
async def clients(fleet: Fleet, session: str, count: int) -> AsyncIterator[list[Client]]:
    found = [Client(fleet, session) for _ in range(count)]
    tasks = [asyncio.create_task(client.run()) for client in found]
    try:
        async with asyncio.timeout(10):
            for client in found:
                await client._connected.wait()
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def post(fleet: Fleet, session: str, content: str) -> bool:
    """Say something by REST; return whether it was acknowledged."""
    path = f"/api/v1/sessions/{session}/messages"
    try:
        await asyncio.to_thread(fleet.ask, "POST", path, {"content": content})
    except OSError:
        return False
    return True


async def until(condition: Any, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)


async def test_sockets_on_both_hear_the_same_once_and_in_order(fleet: Fleet) -> None:
    session = fleet.session()
    async with clients(fleet, session, 4) as four:
        assert [fleet.open_sockets(number) for number in (0, 1)] == [2, 2]
        said_there = [f"ask {i}" for i in range(10)]
        posted = [f"post {i}" for i in range(10)]
        done = await asyncio.gather(
            *(four[i % 4].ask(content) for i, content in enumerate(said_there)),
            *(post(fleet, session, content) for content in posted),
        )
        assert all(done)
        await until(lambda: all(len(client.told) == 20 for client in four))
        first = four[0].events
        assert all(client.events == first for client in four)
        numbers = [event["seq"] for event in first]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        # The model echoes what was said.
        assert sorted(four[0].told) == sorted(said_there + posted)


async def test_five_sockets_are_five_on_both_together(fleet: Fleet) -> None:
    session = fleet.session()
    async with AsyncExitStack() as stack:
        for i in range(5):
            await stack.enter_async_context(fleet.connect(session, number=i % 2))
        for number in (0, 1):
            with pytest.raises(InvalidStatus) as refused:
                await fleet.connect(session, number=number)
            assert refused.value.response.status_code == 429
    async with asyncio.timeout(5):  # places are free at once
        while True:
            with suppress(InvalidStatus):
                async with fleet.connect(session, number=0):
                    return


async def test_a_ticket_of_one_opens_one_socket_on_the_other(fleet: Fleet) -> None:
    session = fleet.session()
    ticket = fleet.ask("POST", "/api/v1/ws-tickets", {"sessionId": session}, number=0)["ticket"]
    async with fleet.connect(session, number=1, ticket=ticket) as socket:
        await say(socket, "ping")
        await said(socket, "pong")
    for number in (0, 1):
        with pytest.raises(InvalidStatus) as refused:
            await fleet.connect(session, number=number, ticket=ticket)
        assert refused.value.response.status_code == 401
    another = fleet.ask("POST", "/api/v1/ws-tickets", {"sessionId": session}, number=1)["ticket"]
    tries = await asyncio.gather(
        *(_opens(fleet, session, number % 2, another) for number in range(8)),
    )
    assert sum(tries) == 1


async def test_a_death_under_load_loses_nothing_that_was_acknowledged(fleet: Fleet, record_property: Recorder) -> None:
    await dying(fleet, deaths=1)
    record_property("deaths, with nothing lost, missed or doubled", 1)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_many_deaths_under_load_lose_nothing_that_was_acknowledged(
    fleet: Fleet, record_property: Recorder
) -> None:
    await dying(fleet, deaths=20)
    record_property("deaths, with nothing lost, missed or doubled", 20)


async def dying(fleet: Fleet, *, deaths: int) -> None:
    """Kill one gateway after the other while clients speak and listen."""
    session = fleet.session()
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def speak(client: Client, name: str) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            if await client.ask(f"{name} {i}"):
                acknowledged.append(f"{name} {i}")

    async def write(name: str) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            if await post(fleet, session, f"{name} {i}"):
                acknowledged.append(f"{name} {i}")

    async with clients(fleet, session, 4) as four:
        speaking = [asyncio.create_task(speak(client, f"socket {n}")) for n, client in enumerate(four)]
        speaking += [asyncio.create_task(write(f"rest {n}")) for n in range(2)]
        for death in range(deaths):
            await asyncio.sleep(1.0)
            before = len(acknowledged)
            fleet.kill(death % 2)
            died = time.monotonic()
            # All go on through the other one.
            await until(lambda b=before: len(acknowledged) >= b + 20)  # type: ignore[misc]
            await until(lambda: all(client._connected.is_set() for client in four), within=LEASE_TTL + 3)
            assert time.monotonic() - died < LEASE_TTL + 5
            fleet.start_gateway(death % 2)
        stop.set()
        await asyncio.wait(speaking)
        for task in speaking:
            task.result()
        stored = [message["content"] for message in fleet.history(session) if message["role"] == "user"]
        assert set(acknowledged) <= set(stored)
        assert len(stored) == len(set(stored))
        last = max(client.last or 0 for client in four)
        await until(lambda: all(client.last == last for client in four))
        for client in four:
            whole(client)
    # The places of the dead are free once their time is over.
    await until(lambda: fleet.open_sockets(0) + fleet.open_sockets(1) == 0)
    await asyncio.sleep(LEASE_TTL)
    async with AsyncExitStack() as stack:
        for i in range(5):
            await stack.enter_async_context(fleet.connect(session, number=i % 2))


async def test_a_rolling_restart_is_told_and_nobody_misses_anything(fleet: Fleet, record_property: Recorder) -> None:
    await rolling(fleet, 1, record_property)


@pytest.mark.long
@pytest.mark.timeout(7_200)
async def test_many_rolling_restarts_are_told_and_nobody_misses_anything(
    fleet: Fleet, record_property: Recorder
) -> None:
    await rolling(fleet, max(2, round(100 * SCALE)), record_property)


async def rolling(fleet: Fleet, rounds: int, record_property: Recorder) -> None:
    """Stop both gateways in turn, so many times, while clients listen and somebody writes."""
    session = fleet.session()
    slowest = 0.0
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def write() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            if await post(fleet, session, f"post {i}"):
                acknowledged.append(f"post {i}")
            await asyncio.sleep(0.01)

    async with clients(fleet, session, 4) as four:
        assert await post(fleet, session, "post 0")
        await until(lambda: all(client.told for client in four))
        writing = asyncio.create_task(write())
        for number in (0, 1) * rounds:
            ended = sum(len(client.ends) for client in four)
            begun = time.monotonic()
            process = fleet.term(number)
            assert await asyncio.to_thread(process.wait, 20) in (0, -15)
            slowest = max(slowest, time.monotonic() - begun)
            assert sum(len(client.ends) for client in four) > ended
            await until(lambda: all(client._connected.is_set() for client in four))
            await asyncio.to_thread(fleet.start_gateway, number)
        stop.set()
        await writing
        assert await post(fleet, session, "the last")
        await until(lambda: all(client.told[-1] == "the last" for client in four))
        for client in four:
            whole(client)
            assert set(acknowledged) <= set(client.told)
            assert all(end == (True, 1001) for end in client.ends), client.ends
        assert sum(len(client.ends) for client in four) >= 4
    record_property("restarts", 2 * rounds)
    record_property("acknowledged meanwhile", len(acknowledged))
    record_property("acknowledgements lost, frames missed, closes without a code", 0)
    record_property("worst seconds until one had stopped", round(slowest, 1))


def whole(client: Client) -> None:
    """Its events are without a hole, and none came twice."""
    numbers = [event["seq"] for event in client.events]
    holes = [(a, b) for a, b in itertools.pairwise(numbers) if b != a + 1]
    assert holes == [], (holes, client.errors, client.ends)
    assert [error for error in client.errors if error["code"] == "RESUME_UNAVAILABLE"] == []


async def _opens(fleet: Fleet, session: str, number: int, ticket: str) -> bool:
    try:
        async with fleet.connect(session, number=number, ticket=ticket) as socket:
            await say(socket, "ping")
            await said(socket, "pong")
            return True
    except InvalidStatus as refused:
        assert refused.response.status_code == 401
        return False


def test_the_folder_of_the_fleet_holds_no_token(fleet: Fleet) -> None:
    log = Path(fleet.config).with_name("gateways.log").read_text()
    assert fleet.headers["Authorization"].split()[-1] not in log
    assert "ticket=" not in log
