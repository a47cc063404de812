"""A simulated store: what the scripts do, by the arithmetic of windows, beside an exact log of their charges."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from openclaw_gateway.api import Limit
from openclaw_plugins.counters.redis import RedisCounters
from openclaw_plugins.counters.window import Holders, Sliding


class Store:
    """What the scripts do, beside an exact log of what they charged."""

    def __init__(self, ttl: int, holds: Callable[[bool, str], None]) -> None:
        self._ttl = ttl
        self._holds = holds
        self.now = 0
        self.tallies: dict[str, Any] = {}
        self.logs: dict[str, deque[list[int]]] = {}
        self.losses: list[int] = []
        self._limits: dict[tuple[str, int, int], Limit] = {}
        self._charges: dict[tuple[int, str], list[int]] = {}

    def lose(self) -> None:
        self.tallies.clear()
        self.losses.append(self.now)

    def execute(self, task: Any, what: tuple[Any, ...]) -> Any:
        if what[0] == "ZREM":
            if what[1] in self.tallies:
                self.tallies[what[1]].release(what[2])
            return 1
        script, keys, arguments = what
        if script is RedisCounters.correct_script:
            return self._correct(task, keys, arguments)
        return (self._renew if script is RedisCounters.renew_script else self._admit)(task, keys, arguments)

    def charged(self, task: Any, key: str) -> list[int] | None:
        return self._charges.get((task.number, key))

    def within(self, key: str, window: int) -> int:
        """What the exact log holds of the window that ends now."""
        return sum(entry[1] for entry in self.logs.get(key, ()) if entry[0] > self.now - window)

    def beyond(self, key: str, window: int) -> int:
        """What of that was more than had been estimated."""
        return sum(more for at, _, more in self.logs[key] if at > self.now - window)

    def _admit(self, task: Any, keys: list[str], arguments: list[Any]) -> list[int]:
        rows = []
        for i, key in enumerate(keys):
            kind, height, window, amount, _ = arguments[1 + 5 * i : 6 + 5 * i]
            place = (kind, height, window)
            limit = self._limits.get(place)
            if limit is None:
                limit = self._limits[place] = Limit(
                    name=key, meter="m", kind="lease" if kind == "lease" else "rate", limit=height, window=window / 1000
                )
            tally = self.tallies.get(key)
            if tally is None:
                tally = self.tallies[key] = Holders(key) if kind == "lease" else Sliding(key, window)
            rows.append((key, limit, tally, amount, tally.ask(limit, amount, self.now)))
        rates_fit = not any(wait for _, limit, _, _, wait in rows if limit.kind == "rate")
        fits = not any(row[4] for row in rows)
        result: list[int] = []
        for key, limit, tally, amount, wait in rows:
            at = 0
            if limit.kind == "rate":
                window = round(limit.window * 1000)
                if wait:
                    self._holds(
                        wait == -1 or self.within(key, window + 2 * -(-window // 60)) + amount > limit.limit,
                        f"{key} refuses what fits",
                    )
                elif rates_fit:
                    tally.add(limit, amount)
                    at = tally.now
                    self._log(task, key, limit, window, amount)
            elif fits:
                tally.hold(amount, self._ttl)
            result += (wait, tally.used, max(0, tally.until - tally.now), at)
        if rates_fit:
            task.executed += 1
            self._holds(task.executed == 1, "one admission is charged twice")
        return result

    def _log(self, task: Any, key: str, limit: Limit, window: int, amount: int) -> None:
        log = self.logs.setdefault(key, deque())
        while log and log[0][0] <= self.now - 2 * window:
            log.popleft()
        entry = [self.now, amount, 0]
        log.append(entry)
        self._charges[task.number, key] = entry
        bound = limit.limit
        if losses := sum(at > self.now - window for at in self.losses):
            # a store that loses its data admits the limit once more, whatever calls took beyond their estimates
            bound = (1 + losses) * bound + self.beyond(key, window)
        self._holds(self.within(key, window) <= bound, f"{key} holds more than {bound}")

    def _correct(self, task: Any, keys: list[str], arguments: list[Any]) -> None:
        for i, key in enumerate(keys):
            _, height, window, amount, at = arguments[5 * i : 5 * i + 5]
            limit = self._limits["sliding", height, window]
            task.corrected += 1
            self._holds(task.corrected == 1, "one estimate is corrected twice")
            tally = self.tallies.get(key)
            if tally is None:
                if amount < 0:
                    self._charges[task.number, key][1] += amount
                    continue
                tally = self.tallies[key] = Sliding(key, window)
            tally.ask(limit, 0, self.now)
            tally.correct(limit, amount, at)
            if amount < 0:
                self._charges[task.number, key][1] += amount
            else:
                self.logs[key].append([self.now, amount, amount])

    def _renew(self, task: Any, keys: list[str], arguments: list[Any]) -> list[int]:
        result = []
        for i, key in enumerate(keys):
            holder, _, join = arguments[3 * i : 3 * i + 3]
            tally = self.tallies.setdefault(key, Holders(key))
            tally.ask(Limit(name=key, meter="m", kind="lease", limit=1), None, self.now)
            held = bool(join) or holder in tally
            if held:
                tally.hold(holder, self._ttl)
            result.append(int(held))
        return result
