"""Planted bugs: each takes one guard out, and names the test that has to notice.

A guard that nothing notices the loss of is either not needed or not tested; `test_mutants.py` finds out which.
"""

from __future__ import annotations

import msgspec

_ACCOUNTS = "plugins/openclaw_plugins/accounts"
_DATABASE = "plugins/openclaw_plugins/database"
_IDEMPOTENCY = "plugins/openclaw_plugins/idempotency"
_CONTRACT = "tests/contracts/test_accounts.py::"
_EVENTS = "tests/contracts/test_quota_events.py::"
_KEYS = "tests/plugins/test_idempotency.py::"
_TOKENS = "tests/plugins/test_chat_tokens.py::"
_COUNTERS = "tests/contracts/test_counters.py::"


class Planted(msgspec.Struct, frozen=True):
    """`guard` of `file` becomes `bug`, and `noticed_by` fails. The quick ones run with every commit."""

    name: str
    file: str
    guard: str
    bug: str
    noticed_by: str
    quick: bool = False


PLANTED = (
    Planted(
        "a reservation is granted whatever is used",
        f"{_ACCOUNTS}/ledger.py",
        "return row.used + row.held + amount <= take.limit.limit",
        "return True",
        _CONTRACT + "test_admits_exactly_the_limit_under_concurrency[sqlite]",
        quick=True,
    ),
    Planted(
        "what is held does not count",
        f"{_ACCOUNTS}/ledger.py",
        "return row.used + row.held + amount <= take.limit.limit",
        "return row.used + amount <= take.limit.limit",
        _CONTRACT + "test_admits_exactly_the_limit_under_concurrency[sqlite]",
    ),
    Planted(
        "rows are read without a lock",
        f"{_ACCOUNTS}/statements.py",
        " ORDER BY 1, 2, 3, 4 FOR UPDATE OF u",
        " ORDER BY 1, 2, 3, 4",
        _CONTRACT + "test_two_processes_admit_exactly_the_limit[postgresql]",
    ),
    Planted(
        "a batch looks for room without a lock",
        f"{_ACCOUNTS}/at_once.py",
        "  ORDER BY 1, 2, 3, 4 FOR UPDATE OF u",
        "  ORDER BY 1, 2, 3, 4",
        _CONTRACT + "test_who_waited_for_a_row_sees_what_was_used_meanwhile[postgresql]",
    ),
    Planted(
        "a batch does not look for room",
        f"{_ACCOUNTS}/at_once.py",
        "u.used + k.used + u.held + k.held > k.room",
        "u.used + k.used > k.room",
        _CONTRACT + "test_what_is_held_leaves_no_room_for_others[postgresql]",
    ),
    Planted(
        "a batch settles what had been settled",
        f"{_ACCOUNTS}/at_once.py",
        "h.hold_id = ANY($11::uuid[]) AND h.state = 'held'",
        "h.hold_id = ANY($11::uuid[])",
        _CONTRACT + "test_a_hold_is_resolved_once[postgresql]",
    ),
    Planted(
        "a hold is charged as often as it is committed",
        f"{_ACCOUNTS}/ledger.py",
        'if state not in ("held", "expired"):',
        "if state is None and committed is None:",
        _CONTRACT + "test_a_hold_is_resolved_once[sqlite]",
        quick=True,
    ),
    Planted(
        "a commit that comes late is not charged",
        f"{_ACCOUNTS}/ledger.py",
        'if state not in ("held", "expired"):',
        'if state != "held":',
        _CONTRACT + "test_expired_holds_come_back_and_a_late_commit_is_charged[sqlite]",
    ),
    Planted(
        "some of the takes are held where another is refused",
        f"{_ACCOUNTS}/ledger.py",
        "if not any(refused):",
        "if not all(refused):",
        _CONTRACT + "test_all_or_nothing_over_several_takes[sqlite]",
    ),
    Planted(
        "the charge is committed beside the work instead of with it",
        f"{_ACCOUNTS}/sql.py",
        "        if transaction is None:\n            await self._lane.through(work)\n        else:\n"
        "            self._worked(*await self._database.inside(transaction, partial(self._work_within, [work])))",
        "        if transaction is None or transaction.dialect.name == 'postgresql':\n"
        "            await self._lane.through(work)\n        else:\n"
        "            self._worked(*await self._database.inside(transaction, partial(self._work_within, [work])))",
        _CONTRACT + "test_a_commit_in_a_transaction_that_fails_charges_nothing[postgresql]",
    ),
    Planted(
        "the first work of a connection is outside its transaction",
        f"{_DATABASE}/driver.py",
        "    engine.connect().close()\n    engine.dispose()\n    source.append(connection)",
        "    source.append(connection)",
        _CONTRACT + "test_the_first_work_of_a_connection_is_in_its_transaction_too[sqlite]",
    ),
    Planted(
        "the period is that of the replica's clock",
        f"{_ACCOUNTS}/ledger.py",
        "self.now = clock(self._connection) if found is None else found",
        "self.now = guess",
        _CONTRACT + "test_the_period_is_pinned_when_reserved[sqlite]",
    ),
    Planted(
        "what a caller who left had reserved stays held",
        f"{_ACCOUNTS}/lane.py",
        "if isinstance(work, Reservation) and work.holds:",
        "if isinstance(work, Reservation) and not work.abandoned:",
        _CONTRACT + "test_what_a_cancelled_caller_reserved_is_given_back[sqlite]",
    ),
    Planted(
        "nothing looks for reservations of the dead",
        f"{_ACCOUNTS}/sql.py",
        "while await self.reap() == _SWEEP:",
        "while _SWEEP == 0:",
        _CONTRACT + "test_the_reaper_gives_orphans_back[sqlite]",
    ),
    Planted(
        "a threshold is told at what is only held",
        f"{_ACCOUNTS}/ledger.py",
        "thresholds.passed(take.limit, row.used, row.announced)",
        "thresholds.passed(take.limit, row.used + row.held + 3, row.announced)",
        _EVENTS + "test_each_threshold_is_told_once[sqlite]",
    ),
    Planted(
        "an event that another replica is telling is told again",
        f"{_ACCOUNTS}/outbox.py",
        ".where(_OPEN, free)",
        ".where(_OPEN)",
        _EVENTS + "test_an_event_of_a_dead_replica_is_told_by_the_next[sqlite]",
    ),
    Planted(
        "an event is marked though its listener failed",
        f"{_ACCOUNTS}/outbox.py",
        "                told = False",
        "                told = True",
        _EVENTS + "test_a_listener_that_fails_is_told_again[sqlite]",
    ),
    Planted(
        "a key is good for any body",
        f"{_IDEMPOTENCY}/keeper.py",
        "self._x.path.encode(), body):",
        "self._x.path.encode()):",
        _KEYS + "test_a_key_belongs_to_one_request_of_one_organization_and_route[sqlite]",
        quick=True,
    ),
    Planted(
        "the claim of the dead is taken over without a look at what was charged",
        f"{_IDEMPOTENCY}/claims.py",
        "if await self._references.disown(wanted.organization, silent):",
        "if wanted.organization == silent:",
        _KEYS + "test_the_claim_of_the_dead_is_closed_where_it_was_charged[sqlite]",
    ),
    Planted(
        "the claim of one who lives is taken at once",
        f"{_IDEMPOTENCY}/claims.py",
        'return Running() if _aware(found["expires_at"]) > time else _Silent(found["claim_id"])',
        'return _Silent(found["claim_id"])',
        _KEYS + "test_a_claim_that_is_renewed_is_not_taken_over[sqlite]",
    ),
    Planted(
        "a claim is not the holder's for as long as he lives",
        f"{_IDEMPOTENCY}/claims.py",
        "connection.execute(update(table).where(*held).values(expires_at=_clock(connection) + self._lease))",
        "connection.execute(select(table).where(*held))",
        _KEYS + "test_a_claim_that_is_renewed_is_not_taken_over[sqlite]",
    ),
    Planted(
        "a connection is kept from who waits for it",
        "plugins/openclaw_plugins/database/kept.py",
        "if sound and not self._waiting and",
        "if sound and",
        "tests/plugins/test_database.py::"
        "test_a_connection_that_is_kept_is_nobodys_and_is_given_up_to_who_waits[sqlite]",
    ),
    Planted(
        "a session that had to be waited for is counted as it was before",
        "plugins/openclaw_plugins/sessions/appends.py",
        "ORDER BY session_id FOR UPDATE",
        "ORDER BY session_id",
        "tests/plugins/test_session_appends.py::test_a_session_that_is_locked_is_counted_as_it_is_by_then",
    ),
    Planted(
        "a secret answer is kept",
        f"{_IDEMPOTENCY}/keeper.py",
        "return self._size <= self._max_kept and not forbidden",
        "return self._size <= self._max_kept",
        _KEYS + "test_an_answer_that_must_not_be_stored_is_not",
    ),
    Planted(
        "a failure keeps its key",
        f"{_IDEMPOTENCY}/keeper.py",
        "if failed and not await self._claims.settle(self._organization, claim):",
        "if failed and claim is None:",
        _KEYS + "test_what_failed_and_cost_nothing_can_be_tried_again[sqlite]",
    ),
    Planted(
        "charges are made under no reference",
        "core/openclaw_gateway/admission.py",
        "reference = x.guard.reference if x.guard is not None else None",
        "reference = None",
        _KEYS + "test_a_stream_that_was_cut_and_charged_is_not_run_again[sqlite]",
    ),
    Planted(
        "a duplicate needs quota of its own",
        "core/openclaw_gateway/admission.py",
        "            answer = await x.guard.enter()\n",
        "            answer = await self._reserve(x, plan, None, 1) or await x.guard.enter()\n",
        _KEYS + "test_the_last_unit_of_a_quota_can_be_asked_for_again[sqlite]",
    ),
    Planted(
        "a request that was refused is charged",
        "core/openclaw_gateway/response.py",
        "        if status < 400:\n            await receipt.commit()",
        "        if status:\n            await receipt.commit()",
        "tests/plugins/test_charges.py::test_a_request_that_its_handler_refuses_costs_nothing",
    ),
    Planted(
        "settling ends with the request's task",
        "core/openclaw_gateway/runner.py",
        "await asyncio.shield(asyncio.ensure_future(self._settle(x)))",
        "await self._settle(x)",
        "tests/plugins/test_charges.py::test_a_request_that_is_cancelled_twice_gives_back_what_it_held",
    ),
    Planted(
        "the place of a connection is kept until it runs out",
        "core/openclaw_gateway/runner.py",
        "        await receipt.release_leases()",
        "        receipt.balances.clear()",
        "tests/plugins/test_charges.py::test_a_request_that_is_cancelled_twice_gives_back_what_it_held",
    ),
    Planted(
        "what comes at the edge of a window is counted twice over",
        "plugins/openclaw_plugins/counters/window.py",
        "        excess = self.used + amount - limit.limit\n        if excess <= 0 or not amount:",
        "        excess = self.used + amount - 2 * limit.limit\n        if excess <= 0 or not amount:",
        _COUNTERS + "test_of_400_concurrent_calls_a_limit_of_100_admits_exactly_100[memory-sliding]",
    ),
    Planted(
        "what was estimated too much stays charged",
        "core/openclaw_gateway/receipt.py",
        "await self._correct(self._settled)",
        "self._estimates.clear()",
        _TOKENS + "test_a_whole_answer_is_charged_what_the_upstream_counted[memory]",
        quick=True,
    ),
    Planted(
        "what is given back is taken from what was charged last",
        "plugins/openclaw_plugins/counters/window.py",
        "bucket, log = at // self._width, self._log",
        "bucket, log = self._log[-2], self._log",
        _COUNTERS + "test_what_is_given_back_leaves_the_bucket_in_which_it_was_charged[memory]",
    ),
    Planted(
        "a place is given away a moment before its holder's time is over",
        "plugins/openclaw_plugins/counters/redis_admit.lua",
        "redis.call('ZADD', key, text(later + ttl), holder)",
        "redis.call('ZADD', key, text(now + ttl), holder)",
        _COUNTERS + "test_the_store_gives_no_place_away_before_its_holder_has_stopped_to_count_on_it",
    ),
    Planted(
        "the same in the store",
        "plugins/openclaw_plugins/counters/redis_correct.lua",
        "local bucket = text(math.floor(charged / width))",
        "local bucket = text(math.floor(last / width))",
        _COUNTERS + "test_what_is_given_back_leaves_the_bucket_in_which_it_was_charged[valkey]",
    ),
    Planted(
        "an estimate that nobody counted is taken for nothing",
        "plugins/openclaw_plugins/chat/tokens.py",
        "if use.completion_tokens is not None else -(-self._delivered // BYTES)",
        "if use.completion_tokens is not None else 0",
        _TOKENS + "test_zero_is_a_count_and_missing_is_not_zero[memory]",
    ),
    Planted(
        "a failure before its first content costs its tokens",
        "core/openclaw_gateway/receipt.py",
        "await self._correct({take.limit.meter: 0 for _, take, _ in self._estimates})",
        "await self._correct({})",
        _TOKENS + "test_what_fails_before_its_first_content_costs_nothing[memory]",
    ),
    Planted(
        "a quota commits the estimate",
        f"{_ACCOUNTS}/ledger.py",
        "amount = take.amount if hold.charge is None or not committed else hold.charge",
        "amount = take.amount",
        _CONTRACT + "test_a_commit_charges_what_an_estimate_turned_out_to_be[sqlite-3]",
    ),
    Planted(
        "organisations share their counters",
        "plugins/openclaw_plugins/counters/memory.py",
        "key = (organization, take.subject,",
        'key = ("", take.subject,',
        _COUNTERS + "test_organisations_and_subjects_do_not_share[memory]",
    ),
    Planted(
        "a session is found by its id alone",
        "plugins/openclaw_plugins/sessions/rows.py",
        "sessions.c.session_id == id, sessions.c.organization_id == organization, alive())",
        "sessions.c.session_id == id, alive())",
        "tests/contracts/test_session_store.py::"
        "test_another_organizations_session_is_403_for_every_call_and_untouched[plain-sqlite]",
    ),
    Planted(
        "a cursor is good in any organisation",
        "plugins/openclaw_plugins/sessions/sql.py",
        "if after is not None and (after.organization, after.status) != (organization, status):",
        "if after is not None and after.status != status:",
        "tests/plugins/test_session_api.py::test_lists_page_and_refuse_a_foreign_cursor",
    ),
    Planted(
        "secrets are written to the log",
        "plugins/openclaw_plugins/access_log/redaction.py",
        "        text = _SECRETS.sub(_mask, text)\n",
        "        text = str(text)\n",
        "tests/plugins/test_canaries.py::test_a_thousand_canaries_through_every_input_leave_no_trace",
    ),
    Planted(
        "the socket goes wherever the name leads",
        "plugins/openclaw_plugins/skills/egress.py",
        "if not allowed(str(address[0])):",
        "if not str(address[0]):",
        "tests/plugins/test_skills_egress.py::test_the_socket_itself_is_the_second_wall",
    ),
    Planted(
        "a skill's call follows a redirect",
        "plugins/openclaw_plugins/skills/egress.py",
        "allow_redirects=False",
        "allow_redirects=True",
        "tests/plugins/test_skills_egress.py::test_redirects_are_not_followed_and_proxies_are_not_known",
    ),
    Planted(
        "a ticket opens as many sockets as one likes",
        "plugins/openclaw_plugins/realtime/open_tickets.py",
        "until, ticket = self._open.pop(hash, (0.0, None))",
        "until, ticket = self._open.get(hash, (0.0, None))",
        "tests/acceptance/test_websocket.py::test_a_ticket_opens_it_once",
    ),
    Planted(
        "a gateway that stops takes new work",
        "core/openclaw_gateway/runner.py",
        'if self.draining and x.route.route.surface != "operations":',
        'if self.draining and x.route.route.surface == "operations":',
        "tests/core/test_runner.py::test_draining_refuses_new_work_and_says_when_to_come_back",
    ),
    Planted(
        "a body behind an upgrade is the next request",
        "core/openclaw_gateway/serving/edge.py",
        "if parser.should_upgrade() and not self._should_upgrade():",
        "if parser.should_upgrade() is None:",
        "tests/fire/test_malformed.py::test_no_payload_smuggles_hangs_or_breaks",
    ),
    Planted(
        "an upstream's answer may be framed in a way that was not asked for",
        "plugins/openclaw_plugins/providers/connection.py",
        'if value.lower() != b"chunked":',
        "if not value:",
        "tests/plugins/test_provider_transport.py::test_framing_that_could_be_read_in_two_ways_is_refused[another-coding]",
    ),
    Planted(
        "a chunk is handed on in the context of whoever has opened the connection",
        "plugins/openclaw_plugins/providers/direct_answer.py",
        "self._enough = not self._run(self._take, self._drain())",
        "self._enough = not self._take(self._drain())",
        "tests/plugins/test_provider_streamed.py::test_it_runs_in_the_context_of_who_has_asked[direct]",
    ),
    Planted(
        "chunks are handed on to who has no room",
        "plugins/openclaw_plugins/providers/streamed.py",
        "                if not put(chunk):\n                    goes_on = False\n",
        "                put(chunk)\n",
        "tests/plugins/test_provider_streamed.py::test_who_has_no_room_is_given_no_more_than_one_piece[direct]",
    ),
    Planted(
        "a header of an answer may hold control characters",
        "core/openclaw_gateway/serving/cycle.py",
        'if head.translate(None, _ORDINARY) != b"\\r\\n" * len(headers):',
        "if not head:",
        "tests/core/test_cycle.py::test_a_header_that_would_be_more_than_one_is_never_written",
    ),
    Planted(
        "a request needs no Host",
        "core/openclaw_gateway/serving/framing.py",
        'if hosts > 1 or (not hosts and version != "1.0"):',
        "if hosts > 9:",
        "tests/fire/test_malformed.py::test_no_payload_smuggles_hangs_or_breaks",
    ),
    Planted(
        "empty lines keep a connection",
        "core/openclaw_gateway/serving/edge.py",
        "                self._wait_for_a_request()\n            elif",
        "                self._disarm()\n            elif",
        "tests/fire/test_slow.py::test_slow_clients_are_closed_and_harm_nobody[short]",
    ),
    Planted(
        "JSON may be as deep as one likes",
        "core/openclaw_gateway/decoding.py",
        "if opened > MAX_DEPTH and _depth(body) > MAX_DEPTH and",
        "if _depth(body) > 100_000 and",
        "tests/core/test_decoding.py::test_depth_is_bounded_where_any_shape_would_do",
    ),
)
