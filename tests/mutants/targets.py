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
#: the one that starts processes takes longer than all the others
_SQLITE = "(sqlite or account_periods) and not two_processes"


class Target(msgspec.Struct, frozen=True):
    """A module and the tests that judge its mutants: few and quick, for they run once for each mutant.

    `only` is pytest's expression; parts that need a server are judged by `planted.py` and by the whole suite.
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
        f"{_PLUGINS}/counters/redis.py", ("tests/contracts/test_counters.py", "tests/plugins/test_counters_redis.py")
    ),
    Target(f"{_PLUGINS}/ratelimit.py", ("tests/plugins/test_ratelimit.py",)),
    Target(f"{_PLUGINS}/quota.py", ("tests/plugins/test_quota.py",)),
    Target(f"{_PLUGINS}/concurrency.py", ("tests/plugins/test_concurrency.py",)),
    Target(f"{_PLUGINS}/accounts/ledger.py", (*_ACCOUNTS, *_EVENTS), _SQLITE),
    Target(f"{_PLUGINS}/accounts/sql.py", (*_ACCOUNTS, *_EVENTS), _SQLITE),
    Target(f"{_PLUGINS}/accounts/lane.py", _ACCOUNTS, _SQLITE),
    Target(f"{_PLUGINS}/accounts/work.py", _ACCOUNTS, _SQLITE),
    Target(f"{_PLUGINS}/accounts/outbox.py", _EVENTS, _SQLITE),
    Target(f"{_PLUGINS}/accounts/periods.py", _PERIODS),
    Target(f"{_PLUGINS}/accounts/thresholds.py", (*_PERIODS, *_EVENTS), f"{_SQLITE} and not replicas"),
    Target(f"{_CORE}/admission.py", ("tests/core/test_admission.py",)),
    Target(f"{_CORE}/plans.py", ("tests/core/test_admission.py",)),
    Target(f"{_CORE}/meters.py", (*_LIMITS, "tests/core/test_admission.py", *_COUNTERS), "not valkey"),
    Target(
        f"{_CORE}/receipt.py",
        ("tests/core/test_admission.py", "tests/plugins/test_chat_tokens.py"),
        "not redis and not valkey and not any_byte",
    ),
    Target(f"{_CORE}/tiers.py", ("tests/core/test_bad_tiers.py", "tests/plugins/test_tier.py")),
    Target(f"{_CORE}/pipeline.py", ("tests/core/test_runner.py", "tests/core/test_exchange.py")),
    Target(f"{_CORE}/runner.py", ("tests/core/test_runner.py", "tests/plugins/test_charges.py")),
)

EQUIVALENT: tuple[Equivalent, ...] = ()
