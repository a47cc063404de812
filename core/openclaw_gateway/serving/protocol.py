"""From bytes to requests: uvicorn's HTTP protocol, less what it does for each request and could do once.

It looks at a target once, moves one timer a connection in place of one a request, and makes the scope in one piece.
"""

from __future__ import annotations

import urllib.parse
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from openclaw_gateway.serving.cycle import Cycle

#: bytes of a target that is worth keeping
_SHORT = 256
_INVALID = "Invalid HTTP request received."
_ASGI = {"version": "3.0", "spec_version": "2.3"}


class Protocol(HttpToolsProtocol):
    """One connection. It serves whatever the parser takes for a request."""

    cycle: Cycle | None  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: since when the connection has had no request; 0 while it has one
        self._rests_since = 0.0

    def data_received(self, data: bytes) -> None:
        self._rests_since = 0.0
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._unsupported_upgrade_warning()

    def begin(self, method: bytes, version: str) -> None:
        """Serve the request whose head is complete, once those before it are answered."""
        parser = self.parser
        scope: Any = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "method": method.decode("ascii"),
            "headers": self.headers,
            "state": {},
            "openclaw.connection": self,
        }
        self.scope = scope
        if parser.should_upgrade():
            return  # it goes on as a socket
        read = _target if len(self.url) <= _SHORT else _target.__wrapped__
        scope["path"], scope["raw_path"], scope["query_string"] = read(self.url)
        before = self.cycle
        cycle = self.cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.server_state.default_headers,
            self.on_response_complete,
            self.tasks,
            expects=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            # Answers leave in the order of their requests.
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """As uvicorn's, without a coroutine of its own around the application's."""
        tasks = self.tasks
        task = self.loop.create_task(app(cycle.scope, cycle.receive, cycle))
        tasks.add(task)
        task.add_done_callback(cycle.over)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (self.parser.should_upgrade() and self._should_upgrade()):
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.come = True  # as `set`, which is a call where nobody waits: nearly always
        if cycle.waiters:
            cycle.set()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or (self.parser.should_upgrade() and self._should_upgrade()):
            return
        cycle.more_body = False
        cycle.come = True
        if cycle.waiters:
            cycle.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._rests_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer be: when it fires it sees whether the connection rests, and since when."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._rests_since:
            left = self._rests_since + self.timeout_keep_alive - self.loop.time()
            if left > 0:
                self._look_after(left)
            else:
                super().timeout_keep_alive_handler()

    def _look_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


@lru_cache(maxsize=1024)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Return path, raw path and query of a request's target. Raises httptools' error for what is none."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return urllib.parse.unquote(path) if "%" in path else path, parsed.path, parsed.query or b""
