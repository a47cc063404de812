"""The rows of the table of reliability: what is claimed, how much of it is wanted, and the tests that attack it."""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One claim. `tests` are what pytest takes: in the short form without those marked long, in the long with them."""

    key: str
    claim: str
    goal: str
    tests: tuple[str, ...]


_COUNTERS = "tests/contracts/test_counters.py"
_FAULTS = "tests/plugins/test_counters_redis_faults.py"
_SHARED = "tests/plugins/test_counters_redis.py"
_TOPOLOGIES = "tests/plugins/test_counters_redis_topologies.py"
_SOCKETS = "tests/plugins/test_realtime_process.py"

ROWS = (
    Row(
        "admission",
        "admitted above a limit in the worst window, replicas on one store",
        "0 of 10,000,000 decisions simulated, 0 of 40,000 on a real Valkey",
        (
            "tests/fire/test_admission.py",
            f"{_SHARED}::test_four_processes_admit_exactly_the_limit_together",
            f"{_SHARED}::test_four_processes_admit_exactly_the_limit_of_many_calls_together",
        ),
    ),
    Row(
        "store-loss",
        "the same where the store loses everything in the middle of a window, or a primary dies",
        "at most the limit once more; 100 losses",
        (
            "tests/fire/test_store_loss.py",
            f"{_FAULTS}::test_a_flush_of_everything_admits_at_most_the_limit_once_more",
            f"{_FAULTS}::test_a_script_flush_in_mid_flight_is_not_seen",
            f"{_TOPOLOGIES}::test_a_dead_primary_of_a_cluster_is_replaced_and_the_others_are_not_touched",
            f"{_TOPOLOGIES}::test_sentinels_name_the_primary_and_after_its_death_the_next",
        ),
    ),
    Row(
        "lost-replies",
        "counts lost or doubled where the reply of the store is lost",
        "counted exactly once, 10,000 times",
        (f"{_FAULTS}::test_a_lost_reply_counts_once", f"{_FAULTS}::test_many_lost_replies_count_once_each"),
    ),
    Row(
        "hanging-store",
        "added latency while the store hangs, refuses, resets, lags or is full, and answers of 5xx then",
        "99 % within 150 ms until the breaker opens, within 1 ms after; no 5xx",
        (
            f"{_FAULTS}::test_a_failing_store_costs_a_bounded_time_and_what_the_policy_says",
            f"{_FAULTS}::test_a_failing_store_costs_a_bounded_time_at_the_99th_percentile",
        ),
    ),
    Row(
        "quota-kills",
        "quota account under kill -9 of gateways, PostgreSQL and Valkey: lost, above the limit, left held",
        "0 / 0 / 0 after 1,000 kills of gateways, 100 of PostgreSQL, 200 cuts",
        ("tests/kills/test_kills.py",),
    ),
    Row(
        "cut-streams",
        "streams cut at a random byte: usage exact, the call to the model ended",
        "10,000 cuts, each within 1 s",
        (
            "tests/fire/test_streams.py",
            "tests/plugins/test_chat_turns.py::test_a_cut_at_any_chunk_is_charged_once_for_what_was_delivered",
        ),
    ),
    Row(
        "duplicates",
        "racing requests with one idempotency key: charged, stored, sent to the model",
        "64,000 requests, each key once",
        (
            "tests/plugins/test_idempotency.py::test_racing_duplicates_are_one_charge_one_turn_and_one_call",
            "tests/plugins/test_idempotency.py::test_many_racing_duplicates",
        ),
    ),
    Row(
        "leases",
        "places taken by processes that are killed or paused",
        "500 kills and 100 pauses: never above the limit, all back within their time to live",
        (
            "tests/fire/test_leases.py",
            f"{_FAULTS}::test_leases_over_an_outage",
            f"{_SOCKETS}::test_a_holder_that_was_paused_ends_when_it_wakes",
        ),
    ),
    Row(
        "upstream-faults",
        "faults of a model's provider, of the public catalogue",
        "16 of 16 passed",
        ("tests/faults/test_sixteen.py",),
    ),
    Row(
        "mutations",
        "mutated bodies, paths, headers, frames, handshakes, files of configuration: faults, silence, crashes",
        "0 in 1,000,000",
        ("tests/fire/test_requests.py", "tests/fire/test_sockets.py", "tests/fire/test_configuration.py"),
    ),
    Row(
        "schema",
        "requests made of the OpenAPI document by another's tool: promises of the document broken",
        "0, with all checks but one",
        ("tests/fire/test_schema.py",),
    ),
    Row(
        "malformed-http",
        "malformed HTTP by name: smuggled requests, 5xx, hanging connections",
        "200 payloads: 0 / 0 / 0",
        (
            "tests/fire/test_malformed.py",
            "tests/core/test_edge.py::test_malformed_requests_are_refused_and_the_connection_closed",
        ),
    ),
    Row(
        "slow-clients",
        "clients that send nothing, or headers or a body by the byte",
        "5,000, every one closed on its deadline, good requests served meanwhile",
        ("tests/fire/test_slow.py", "tests/core/test_edge.py::test_slow_clients_are_closed_on_their_deadline"),
    ),
    Row(
        "websocket-cases",
        "WebSocket protocol by name: wrong or missing close codes",
        "300 cases: 0",
        ("tests/fire/test_frames.py", "tests/plugins/test_realtime_frames.py"),
    ),
    Row(
        "stalled-readers",
        "sockets and streams that nobody reads",
        "1,000: less than 64 MB more",
        (
            f"{_SOCKETS}::test_a_thousand_stalled_readers_cost_little",
            "tests/plugins/test_realtime.py::test_a_reader_that_stalls_is_closed_and_costs_a_bounded_queue",
            "tests/plugins/test_chat_turns.py::test_a_client_that_reads_nothing_is_given_up_and_holds_the_upstream_back",
        ),
    ),
    Row(
        "rolling-restarts",
        "restarts one after the other under load, behind a balancer: acknowledgements lost, closes without a code",
        "200 restarts: 0 / 0",
        (
            "tests/replicas/test_replicas.py::test_a_rolling_restart_is_told_and_nobody_misses_anything",
            "tests/replicas/test_replicas.py::test_many_rolling_restarts_are_told_and_nobody_misses_anything",
        ),
    ),
    Row(
        "rolling-requests",
        "the same for requests on kept connections through nginx, which tries nothing twice: refused or dropped, lost",
        "50 restarts: 0 / 0",
        ("tests/replicas/test_rolling.py",),
    ),
    Row(
        "deaths",
        "replicas that die under load: acknowledgements lost, frames missed or doubled",
        "20 deaths: 0 / 0",
        (
            "tests/replicas/test_replicas.py::test_a_death_under_load_loses_nothing_that_was_acknowledged",
            "tests/replicas/test_replicas.py::test_many_deaths_under_load_lose_nothing_that_was_acknowledged",
        ),
    ),
    Row(
        "reloads",
        "reloads under load, half of them of a broken file: requests failed, answers of a mix of two",
        "10,000 reloads: 0 / 0",
        ("tests/core/test_reload.py::test_many_reloads_under_load_fail_no_request",),
    ),
    Row(
        "months-end",
        "charges at the end of a month, and messages of two years: counted in the wrong period, refused, lost",
        "10,000 simulated ends and 24 months of partitions: 0 / 0 / 0",
        (
            "tests/fire/test_months.py",
            "tests/plugins/test_database_partitions.py::test_two_years_of_months_with_writers",
        ),
    ),
    Row(
        "tenants",
        "probes of every route with every kind of id of a foreign organisation",
        "0 leaks in 100,000; no table without a policy",
        ("tests/isolation",),
    ),
    Row(
        "canaries",
        "secrets through every input: traces in logs, answers, metrics",
        "0 of 1,000",
        ("tests/plugins/test_canaries.py::test_a_thousand_canaries_through_every_input_leave_no_trace",),
    ),
    Row(
        "ssrf",
        "addresses that lead a skill's call inside",
        "0 connections by 1,000 payloads",
        ("tests/plugins/test_skills_egress.py",),
    ),
    Row(
        "labels",
        "hostile names as labels of metrics",
        "0 new series by 100,000",
        ("tests/fire/test_labels.py",),
    ),
    Row(
        "migrations",
        "revisions of the tables applied while requests are served: requests failed",
        "0 failed, none held up longer than 2 s",
        ("tests/fire/test_migrations.py",),
    ),
    Row(
        "soak",
        "load with a fault every 10 s: invariants broken, memory and descriptors grown",
        "60 minutes: 0, flat",
        ("tests/fire/test_soak.py",),
    ),
    Row(
        "planted-bugs",
        "guards taken out one at a time, and noticed by the tests",
        "all, and at least 30",
        ("tests/mutants/test_mutants.py",),
    ),
    Row(
        "mutants",
        "small changes to the modules that admit and count, drawn from a seed: not noticed by their tests, and not "
        "recorded with the reason why nobody can see them",
        "0, of 25 of each module whose survivors were looked at",
        ("tests/mutants/test_sample.py",),
    ),
)
