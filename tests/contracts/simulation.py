"""Replicas on one store in simulated time: every delay, loss and crash is drawn from a seed, so that it comes again.

What is judged is the code that serves: `counters.redis`, its failure policies, receipts and the arithmetic of windows.
Simulated are time, the way to the store and the store, which answers with that same arithmetic; that the Lua script
says the same is proved by the contract of the counters.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from openclaw_gateway.api import Duration, Host, Limit, StoreBusy, StoreUnavailable, Take
from openclaw_gateway.config.document import Document, GatewaySettings
from openclaw_gateway.receipt import Receipt
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.counters.window import Sliding

from .simulated_store import Store

REPLICAS = 4
#: milliseconds: of a call to the store, and of a lease
TIMEOUT, TTL = 100, 30_000
#: share of its time to live after which a holder that could not renew its lease stops
FENCE = 5 / 6


class Pause(msgspec.Struct):
    """Some milliseconds in which a task does nothing."""

    ms: int

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


class Sent(msgspec.Struct):
    """A call on its way to the store and back; `over` once its task has heard or given up."""

    what: tuple[Any, ...]
    task: Task | None = None
    over: bool = False

    def __await__(self) -> Generator[Sent, Any, Any]:
        return (yield self)


class Task:
    """One request on one process, from its admission to its last release."""

    __slots__ = ("actual", "coroutine", "corrected", "estimate", "executed", "number", "process", "until")

    def __init__(self, number: int, process: Process, estimate: int, actual: int) -> None:
        self.number = number
        self.process = process
        self.estimate = estimate
        self.actual = actual
        self.coroutine: Coroutine[Any, Any, None] | None = None
        #: how often the store charged and corrected it
        self.executed = self.corrected = 0
        #: when it stops to believe that it has a place
        self.until = 0.0


class Link:
    """The capability `redis`, on the simulated way to the store."""

    timeout, prefix, degraded = TIMEOUT / 1000, "s:", False

    def prepare(self, script: str, keys: list[str], arguments: list[Any]) -> tuple[Any, ...]:
        return script, keys, arguments

    async def run(self, prepared: tuple[Any, ...]) -> Any:
        return await Sent(prepared)

    async def call(self, key: str | None, *command: Any) -> Any:
        return await Sent(command)

    def feed(self, received: Any, restored: Any) -> Any:
        raise AssertionError("counters publish nothing")


class Process:
    """A replica: the plugin that counts, on a clock of its own. `restarted` ones have forgotten everything."""

    def __init__(self, world: World, skew: float) -> None:
        self.world = world
        self.skew = skew
        self.tasks: dict[int, Task] = {}
        #: what it admitted by itself while the store did not answer: limit's name → [time, amount]
        self.alone: dict[str, deque[list[float]]] = {}
        host = Host(
            "counters",
            document=Document(gateway=GatewaySettings(pipeline=())),
            config_dir=Path(),
            tiers={},
            instances={"redis": Link()},
            registry=CollectorRegistry(),
            clock=self,
            metrics={},
        )
        self.counters = RedisCounters(RedisCounters.Config(replicas=REPLICAS, lease_ttl=Duration(TTL / 1000)), host)

    def now(self) -> float:
        return (self.world.now + self.skew) / 1000

    monotonic = now


class Broken(AssertionError):
    """An invariant that did not hold."""


class World:
    """One schedule: what arrives when, what is lost, who dies. The same seed gives the same history."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now = 0
        self.decisions = 0
        #: what happened, in order, for one history to be compared with another
        self.trace: list[tuple[Any, ...]] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = 0
        self._tasks: list[Task] = []
        policies = [rng.choice(("closed", "open", "local")) for _ in range(3)]
        window = rng.choice((1.0, 7.0, 60.0))
        self.window = round(window * 1000)
        self.requests = Limit(
            name="r.requests",
            meter="requests",
            kind="rate",
            limit=rng.choice((1, 5, 40)),
            window=window,
            on_backend_failure=policies[0],
        )
        self.tokens = Limit(
            name="r.tokens",
            meter="tokens",
            kind="rate",
            limit=rng.choice((50, 300)),
            window=window,
            on_backend_failure=policies[1],
        )
        self.places = Limit(
            name="c.places",
            meter="places",
            kind="lease",
            limit=rng.choice((1, 3)),
            on_backend_failure=policies[2],
        )
        self.store = Store(TTL, self.holds)
        self.skew = rng.randrange(10**6)  # of the store's clock
        self.lossy = rng.choice((0.0, 0.02, 0.3))
        #: share of the requests that want a place
        self.placed = rng.choice((0.05, 0.4, 1.0))
        self.down = (0, 0)
        self.processes = [Process(self, rng.randrange(10**6)) for _ in range(REPLICAS)]

    def holds(self, true: bool, what: str) -> None:
        if not true:
            raise Broken(f"{what}, at {self.now} ms of the schedule {self.seed}")

    def run(self, calls: int) -> None:
        """Let so many requests arrive, and everything that follows from them happen."""
        rng, at = self.rng, 0
        for _ in range(calls):
            if rng.random() < 0.3:
                at += rng.choice((1, 17, self.window // 60, self.window // 7, self.window))
            self._at(at, self._arrive)
        for _ in range(rng.randrange(4)):
            self._at(rng.randrange(at + 1), self._crash)
        if rng.random() < 0.3:
            self._at(rng.randrange(at + 1), self.store.lose)
        if rng.random() < 0.5:
            begins = rng.randrange(at + 1)
            self.down = (begins, begins + rng.randrange(1, self.window * 2))
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            self.store.now = self.now + self.skew
            event()
        self._rests()

    # --- what happens -----------------------------------------------------------------------------

    def _at(self, ms: int, event: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (ms, self._numbers, event))

    def _arrive(self) -> None:
        rng = self.rng
        estimate = rng.randrange(1, 40)
        actual = rng.choice((0, estimate, rng.randrange(60)))
        task = Task(self._numbers, rng.choice(self.processes), estimate, actual)
        self._numbers += 1
        self.decisions += 1
        self._tasks.append(task)
        task.process.tasks[task.number] = task
        task.coroutine = self._serve(task, rng.random() < self.placed, rng.randrange(9), rng.random() < 0.1)
        self._go(task, None)

    def _crash(self) -> None:
        place = self.rng.randrange(REPLICAS)
        for task in self.processes[place].tasks.values():
            assert task.coroutine is not None
            task.coroutine.close()
            task.until = 0
        self.processes[place].tasks.clear()
        self.processes[place] = Process(self, self.rng.randrange(10**6))
        self.trace.append((self.now, "crash", place))

    def _go(self, task: Task, value: Any) -> None:
        """Let a task go on until it waits again."""
        if task.number not in task.process.tasks:
            return  # it died meanwhile
        assert task.coroutine is not None
        try:
            resume = task.coroutine.throw if isinstance(value, Exception) else task.coroutine.send
            waits = resume(value)
        except StopIteration:
            del task.process.tasks[task.number]
            return
        if isinstance(waits, Pause):
            self._at(self.now + waits.ms, lambda: self._go(task, None))
        else:
            waits.task = task
            self._send(waits)

    def _send(self, sent: Sent) -> None:
        rng = self.rng

        def hear(value: Any) -> None:
            if not sent.over:
                sent.over = True
                assert sent.task is not None
                self._go(sent.task, value)

        def arrive() -> None:
            value = self.store.execute(sent.task, sent.what)
            if not rng.random() < self.lossy:
                self._at(self.now + rng.choice((0, 1, 3, 40)), lambda: hear(value))

        if self.down[0] <= self.now < self.down[1]:
            self._at(self.now, lambda: hear(StoreUnavailable("redis", "down")))
        elif rng.random() < 0.005:
            self._at(self.now, lambda: hear(StoreBusy("redis", "full")))
        else:
            self._at(self.now + TIMEOUT, lambda: hear(StoreUnavailable("redis", "too late")))
            if not rng.random() < self.lossy:
                late = rng.random() < self.lossy
                self._at(self.now + (rng.randrange(3_000) if late else rng.choice((0, 1, 3, 40))), arrive)

    async def _serve(self, task: Task, place: bool, renewals: int, fails: bool) -> None:
        counters, begun = task.process.counters, self.now
        takes = [Take(self.requests, "-"), Take(self.tokens, "-", task.estimate)]
        if place:
            takes.append(Take(self.places, "-", lease=str(task.number)))
        balances = await counters.admit("o", takes)
        refused = any(balance.refused for balance in balances)
        self.trace.append((self.now, task.number, refused, *(b.used for b in balances)))
        if refused:
            return
        receipt = Receipt("o")
        receipt.estimated(counters, takes[1:2], balances[1:2])
        alone = self._admitted(task, takes, balances)
        if place:
            receipt.leased(counters, takes[2:])
            await self._hold(task, receipt, begun, renewals)
        else:
            await Pause(self.rng.choice((0, 20, 500, self.window)))
        receipt.settle("tokens", task.actual)
        for entry in alone:
            entry[1] = min(entry[1], 0 if fails else task.actual)
        if fails:
            task.actual = 0
        await (receipt.void() if fails else receipt.commit())
        await receipt.release_leases()

    async def _hold(self, task: Task, receipt: Receipt, begun: int, renewals: int) -> None:
        task.until = begun + FENCE * TTL
        # of limits that are closed, nobody has a place but by the store
        if self.places.on_backend_failure == "closed" and not self.store.losses:
            believe = sum(t.until > self.now for p in self.processes for t in p.tasks.values())
            self.holds(believe <= self.places.limit, f"{believe} believe to have one of {self.places.limit} places")
        for _ in range(renewals):
            await Pause(TTL // 3)
            asked = self.now
            try:
                if not await receipt.renew_leases():
                    break
            except StoreUnavailable:
                continue
            if self.now >= task.until:
                break
            task.until = asked + FENCE * TTL
        task.until = 0

    # --- what always holds ------------------------------------------------------------------------

    def _admitted(self, task: Task, takes: list[Take], balances: Any) -> list[list[float]]:
        """Judge an admission; return what this process counted by itself of what is estimated."""
        estimated = []
        degraded = any(balance.degraded for balance in balances)
        self.holds(degraded or task.executed == 1, "what was admitted was not charged")
        for take, balance in zip(takes, balances, strict=True):
            limit: Limit = take.limit
            policy = limit.on_backend_failure
            self.holds(not balance.degraded or policy != "closed", f"{limit.name} is closed and admits")
            if balance.degraded and policy == "local" and limit.kind == "rate":
                entry = self._alone(task, limit, take.amount)
                if limit is self.tokens:
                    estimated.append(entry)
        return estimated

    def _alone(self, task: Task, limit: Limit, amount: int) -> list[float]:
        log = task.process.alone.setdefault(limit.name, deque())
        while log and log[0][0] <= self.now - self.window:
            log.popleft()
        entry: list[float] = [self.now, amount]
        log.append(entry)
        share = -(-limit.limit // REPLICAS)
        self.holds(sum(e[1] for e in log) <= share, f"a process admits more than its share of {limit.name}, {share}")
        return entry

    def _rests(self) -> None:
        """Once all is over: estimates are what they turned out to be, and nothing is kept for the dead."""
        key = self.processes[0].counters._key("o", Take(self.tokens, "-"))
        for task in self._tasks:
            entry = self.store.charged(task, key)
            if entry is not None and task.corrected and task.actual < task.estimate:
                self.holds(entry[1] == task.actual, f"{key} keeps {entry[1]} of what took {task.actual}")
        self.store.now += max(TTL, 2 * self.window) + 1
        for key, tally in self.store.tallies.items():
            tally.ask(self.places, 0 if isinstance(tally, Sliding) else None, self.store.now)
            self.holds(tally.used == 0, f"{tally.used} of {key} are never free again")
