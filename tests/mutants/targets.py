"""What is mutated, which tests judge it, and the mutants that change nothing that anybody can see, with the reason."""

from __future__ import annotations

import msgspec

_CORE = "core/openclaw_gateway"
_PLUGINS = "plugins/openclaw_plugins"
_LIMITS = ("tests/plugins/test_ratelimit.py", "tests/plugins/test_quota.py", "tests/plugins/test_concurrency.py")
_COUNTERS = ("tests/contracts/test_counters.py", "tests/contracts/test_simulation.py")
_ACCOUNTS = ("tests/contracts/test_accounts.py",)
_EVENTS = ("tests/contracts/test_quota_events.py",)
_PERIODS = ("tests/plugins/test_account_periods.py",)
_LANE = ("tests/plugins/test_account_lane.py",)
_RUNNER = ("tests/core/test_runner.py", "tests/core/test_runner_endings.py", "tests/plugins/test_charges.py")
#: of the contract those that take the least time and see the most
_SEEING = "any_trace or all_or_nothing or resolved_once or leases or expired or shadow or told or passes"
_TASKS = (
    "reaper or transaction or on_its_way or given_back or looked_for or disowned or forgotten or month_is or standings"
)
_SQLITE = f"sqlite and ({_SEEING} or {_TASKS})"


class Target(msgspec.Struct, frozen=True):
    """A module and the tests that judge its mutants: few and quick, for they run once for each mutant.

    `only` is pytest's expression; what only PostgreSQL shows is judged by `planted.py` and by the whole suite.
    """

    module: str
    tests: tuple[str, ...]
    only: str = ""


class Equivalent(msgspec.Struct, frozen=True):
    """A mutant that no test can notice, or that none should; `reason` says why."""

    module: str
    where: str
    was: str
    becomes: str
    reason: str


TARGETS = (
    Target(f"{_PLUGINS}/counters/window.py", _COUNTERS, "not valkey"),
    Target(f"{_PLUGINS}/counters/memory.py", _COUNTERS, "not valkey"),
    Target(
        f"{_PLUGINS}/counters/redis.py",
        ("tests/contracts/test_counters.py", "tests/plugins/test_counters_redis_faults.py"),
        "(valkey or this_process or may_evict or may_not_be_asked or over_an_outage)"
        " and not retrying and not reset_after",
    ),
    Target(f"{_PLUGINS}/counters/redis_fallback.py", ("tests/plugins/test_counters_fallback.py",)),
    Target(f"{_PLUGINS}/ratelimit/__init__.py", ("tests/plugins/test_ratelimit.py",)),
    Target(
        f"{_PLUGINS}/ratelimit/headers.py",
        ("tests/plugins/test_ratelimit.py", "tests/plugins/test_chat_tokens.py"),
        "ratelimit or (memory and what_the_upstream_counted)",
    ),
    Target(f"{_PLUGINS}/quota.py", ("tests/plugins/test_quota.py",)),
    Target(f"{_PLUGINS}/concurrency.py", ("tests/plugins/test_concurrency.py",)),
    Target(f"{_PLUGINS}/accounts/ledger.py", (*_ACCOUNTS, *_EVENTS), _SQLITE),
    Target(f"{_PLUGINS}/accounts/sql.py", (*_ACCOUNTS, *_EVENTS), _SQLITE),
    Target(f"{_PLUGINS}/accounts/lane.py", _LANE),
    Target(f"{_PLUGINS}/accounts/work.py", (*_LANE, *_ACCOUNTS), f"account_lane or {_SQLITE}"),
    Target(
        f"{_PLUGINS}/accounts/statements.py",
        _ACCOUNTS,  # over both stores: it has a half for each
        "all_or_nothing or resolved_once or leases_stand or expired or month_is or standings",
    ),
    Target(
        f"{_PLUGINS}/accounts/at_once.py",
        (*_ACCOUNTS, *_EVENTS, "tests/contracts/test_account_machine.py", "tests/plugins/test_accounts_speed.py"),
        "usual_batch or (postgresql and (any_history or two_gateways or admits_exactly or all_or_nothing or"
        " resolved_once or leases or two_heights or day_behind or beside_settlements or each_threshold"
        " or pass_both))",
    ),
    Target(f"{_PLUGINS}/accounts/reading.py", (*_ACCOUNTS, *_EVENTS), _SQLITE),
    Target(f"{_PLUGINS}/accounts/outbox.py", _EVENTS, "sqlite"),
    Target(f"{_PLUGINS}/accounts/periods.py", _PERIODS),
    Target(f"{_PLUGINS}/accounts/thresholds.py", (*_PERIODS, *_EVENTS), "account_periods or (sqlite and told_once)"),
    Target(f"{_CORE}/admission.py", ("tests/core/test_admission.py",)),
    Target(f"{_CORE}/plans.py", ("tests/core/test_admission.py",)),
    Target(f"{_CORE}/meters.py", (*_LIMITS, "tests/core/test_admission.py", *_COUNTERS), "not valkey"),
    Target(f"{_CORE}/receipt.py", ("tests/core/test_admission.py",)),
    Target(
        f"{_CORE}/tiers.py",
        ("tests/core/test_bad_tiers.py", "tests/plugins/test_tier.py", "tests/plugins/test_session_limits.py"),
        "bad_tiers or test_tier or stops_the_start",
    ),
    Target(
        f"{_CORE}/pipeline.py",
        (*(f"tests/core/test_{name}.py" for name in ("pipeline", "golden", "exchange", "runner")),),
    ),
    Target(f"{_CORE}/runner.py", _RUNNER),
    Target(f"{_CORE}/response.py", (*_RUNNER, "tests/core/test_response.py")),
    Target(f"{_CORE}/faults.py", _RUNNER),
    Target(f"{_PLUGINS}/providers/streamed.py", ("tests/plugins/test_provider_streamed.py",), "direct or woken"),
    Target(
        f"{_PLUGINS}/providers/direct_answer.py",
        ("tests/plugins/test_provider_streamed.py", "tests/plugins/test_provider_transport.py"),
        "direct or woken",
    ),
)


EQUIVALENT = (
    Equivalent(
        f"{_PLUGINS}/providers/direct_answer.py",
        "DirectAnswer.__init__",
        "self.size = 0",
        "self.size = 1",
        "one byte of those that may wait",
    ),
    Equivalent(
        f"{_PLUGINS}/providers/direct_answer.py",
        "DirectAnswer._drain",
        "if self.size > WAITING and (not self.whole):",
        "if self.size > WAITING or not self.whole:",
        "a connection that is not held back cannot be let go",
    ),
    Equivalent(
        f"{_PLUGINS}/providers/streamed.py",
        "Streamed.hand_on",
        "if (told := self._ended(error)) is None or told is error:",
        "if (told := self._ended(error)) is None and told is error:",
        "an error that is raised again is the same error",
    ),
    # --- a value on the edge gives the same either way --------------------------------------------
    Equivalent(
        f"{_PLUGINS}/counters/window.py",
        "Gcra.ask",
        "return 0 if excess <= 0 else -(-excess // limit.limit)",
        "return 0 if excess < 0 else -(-excess // limit.limit)",
        "an excess of nothing, divided, is nothing",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/window.py",
        "Sliding.ask",
        "if now < self.now:",
        "if now <= self.now:",
        "of two equal times either may be taken",
    ),
    *(
        Equivalent(
            f"{_PLUGINS}/counters/window.py",
            f"{algorithm}.ask",
            "if now > self.now:",
            "if now >= self.now:",
            "in no time nothing leaks, and no window ends",
        )
        for algorithm in ("Gcra", "Fixed")
    ),
    Equivalent(
        f"{_PLUGINS}/counters/window.py",
        "Gcra.correct",
        "if amount > 0:",
        "if amount >= 0:",
        "nothing, added or taken away, leaves the level",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/periods.py",
        "_calendar",
        "end = (start.replace(day=28) + timedelta(days=4)).replace(day=1)",
        "end = (start.replace(day=28) + timedelta(days=5)).replace(day=1)",
        "the 28th and five days is in the next month as well",
    ),
    Equivalent(
        f"{_PLUGINS}/quota.py",
        "_Watched.see",
        "if share >= self._share or organization == self._organization or now >= self._until:",
        "if share > self._share or organization == self._organization or now >= self._until:",
        "of two organisations that have used the same either may be the one that is remembered",
    ),
    Equivalent(
        f"{_PLUGINS}/ratelimit/__init__.py",
        "_LowWater.see",
        "if share < self._now:",
        "if share <= self._now:",
        "the lowest, replaced by its equal, is the same",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "Outbox._claimed",
        "free = or_(table.c.claimed_until.is_(None), table.c.claimed_until <= now)",
        "free = or_(table.c.claimed_until.is_(None), table.c.claimed_until < now)",
        "the microsecond in which a claim ends may be on either side of it",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "forget",
        "connection.execute(delete(table).where(table.c.delivered_at < now - _KEPT))",
        "connection.execute(delete(table).where(table.c.delivered_at <= now - _KEPT))",
        "the microsecond in which forty days end may be on either side of it",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/ledger.py",
        "Ledger._reap",
        "overdue = select(holds).where(tuple_(*_HOLD_KEY) == key, COUNTS, holds.c.expires_at <= self.now)",
        "overdue = select(holds).where(tuple_(*_HOLD_KEY) == key, COUNTS, holds.c.expires_at < self.now)",
        "the microsecond in which its time ends may be on either side of it",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/ledger.py",
        "Ledger._reap",
        "self._reaped.add(key)",
        "None",
        "what has run out has been given back: to look once more finds nothing",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/ledger.py",
        "Row.__init__",
        "self.changed = False",
        "self.changed = True",
        "a row that is written as it was is the same; not to write it saves the way there",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/ledger.py",
        "Ledger.write",
        "dialect: Any = sqlite if self._connection.dialect.name == 'sqlite' else postgresql",
        "dialect: Any = sqlite if self._connection.dialect.name != 'sqlite' else postgresql",
        "each of the two writes what both stores understand; SQLAlchemy promises it of its own alone",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/reading.py",
        "overdue",
        "found = connection.execute(select(holds).where(COUNTS, holds.c.expires_at <= now)"
        ".order_by(holds.c.expires_at).limit(limit))",
        "found = connection.execute(select(holds).where(COUNTS, holds.c.expires_at < now)"
        ".order_by(holds.c.expires_at).limit(limit))",
        "the microsecond in which its time ends may be on either side of it",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/sql.py",
        "SqlAccounts.reap.sweep",
        "connection.execute(delete(holds_table).where(RESOLVED, holds_table.c.expires_at < long_ago))",
        "connection.execute(delete(holds_table).where(RESOLVED, holds_table.c.expires_at <= long_ago))",
        "the microsecond in which its time ends may be on either side of it",
    ),
    # --- what is looked at is thrown away, or cannot be -------------------------------------------
    Equivalent(
        f"{_PLUGINS}/counters/memory.py",
        "MemoryCounters.admit",
        "retry_after = wait / 1000 if wait > 0 else limit.window",
        "retry_after = wait / 1000 if wait >= 0 else limit.window",
        "it is asked only where there is a wait",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/memory.py",
        "MemoryCounters._look",
        "tally.ask(take.limit, 0, now)",
        "tally.ask(take.limit, 1, now)",
        "it is asked to bring the tally up to the time; its answer is not used",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/memory.py",
        "MemoryCounters.correct",
        "tally.ask(take.limit, 0, now)",
        "tally.ask(take.limit, 1, now)",
        "it is asked to bring the tally up to the time; its answer is not used",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/redis.py",
        "",
        "_KEPT = 10000",
        "_KEPT = 10001",
        "how many encoded admissions are kept is a matter of memory",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/lane.py",
        "Lane.through",
        "end_span(span, failed)",
        "None",
        "only a trace shows it, which is the affair of tests/plugins/test_tracing.py",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/redis_fallback.py",
        "Fallback.release",
        "if local and len(self._local):",
        "if local or len(self._local):",
        "to release nothing, or what was never given, does nothing; the question saves the way there",
    ),
    # --- how much work is done at once, not what comes of it --------------------------------------
    Equivalent(
        f"{_PLUGINS}/counters/redis_fallback.py",
        "",
        "_KEPT = 10000",
        "_KEPT = 10001",
        "how many shares are kept is a matter of memory",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/sql.py",
        "",
        "_SWEEP = 500",
        "_SWEEP = 501",
        "how many are given back at once; whoever has found as many looks again",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "",
        "_BATCH = 50",
        "_BATCH = 51",
        "how many events are claimed at once; whoever has found as many looks again",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "Outbox._claimed",
        "next_ones = select(table.c.event_id).where(_OPEN, free).order_by(table.c.created_at, table.c.event_id)"
        ".limit(_BATCH).with_for_update(skip_locked=True)",
        "next_ones = select(table.c.event_id).where(_OPEN, free).order_by(table.c.created_at, table.c.event_id)"
        ".limit(_BATCH).with_for_update(skip_locked=False)",
        "a replica waits for another's claim then, and finds it taken: slower, and told once all the same",
    ),
    Equivalent(
        f"{_PLUGINS}/counters/memory.py",
        "MemoryCounters.admit",
        "self._forget(now, 1)",
        "self._forget(now, 2)",
        "how many old tallies an admission looks at is a matter of speed",
    ),
    *(
        Equivalent(
            f"{_PLUGINS}/counters/memory.py",
            "",
            "_LOOKS, _SEARCH = (2, 64)",
            becomes,
            "how many old tallies an admission looks at is a matter of speed",
        )
        for becomes in ("_LOOKS, _SEARCH = (3, 64)", "_LOOKS, _SEARCH = (2, 65)")
    ),
    Equivalent(
        f"{_PLUGINS}/counters/memory.py",
        "MemoryCounters._make_room",
        "if full is not self._full and (full or len(self._tallies) <= 0.9 * self._max_keys):",
        "if full is not self._full and (full or len(self._tallies) < 0.9 * self._max_keys):",
        "the place of a hysteresis, which may lie one subject lower",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "Outbox._keep_delivering",
        "await asyncio.sleep(0.05)",
        "None",
        "SQLite has the look wait for what is open; PostgreSQL does not, and a test of test_quota_events sees it there",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/outbox.py",
        "Outbox._tell",
        "async with asyncio.timeout(self._claim.total_seconds() / 2):",
        "async with asyncio.timeout(self._claim.total_seconds() / 3):",
        "a listener is to end well before the claim does; how well is a choice",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/lane.py",
        "Lane._attempt",
        "for attempt in range(1, _ATTEMPTS + 1):",
        "for attempt in range(1, _ATTEMPTS + 2):",
        "the last attempt ends it, by its success or by what it raises",
    ),
    Equivalent(
        f"{_PLUGINS}/accounts/lane.py",
        "Lane._give_back",
        "self._enqueue(Settlement(work.holds, 'voided', None, None, bound=False))",
        "self._enqueue(Settlement(work.holds, 'voided', None, None, bound=True))",
        "nobody was told of these reservations, so that nobody else can have resolved them",
    ),
    Equivalent(
        f"{_CORE}/runner.py",
        "Runner._http",
        "await carried.in_step()",
        "None",
        "requests that come together go in step for speed alone: docs/decisions/0013",
    ),
    Equivalent(
        f"{_CORE}/response.py",
        "Response.__init__",
        "self.entered = 0",
        "self.entered = 1",
        "the runner says how many were entered before anything can be sent",
    ),
)
