"""The ASGI runner, the only hot code: carries one exchange through its compiled pipeline and back.

It stands outside Litestar, so that 404, 405 and malformed requests pass it too. It knows the route before the first
step, and completes every exchange exactly once, whatever became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from openclaw_gateway.answers import misanswered
from openclaw_gateway.carried import Carried
from openclaw_gateway.decoding import Disconnected
from openclaw_gateway.eager import begin, finish, within
from openclaw_gateway.errors import Refused, StoreUnavailable, UpstreamFailed
from openclaw_gateway.exchange import Exchange, Reply
from openclaw_gateway.facts import PRINCIPAL, REQUEST_ID, TIER
from openclaw_gateway.faults import log_fault, noted, refusal_of
from openclaw_gateway.matching import Matching
from openclaw_gateway.refusals import Refusal, internal_error, unavailable
from openclaw_gateway.response import Response, Send

if TYPE_CHECKING:
    from litestar import Litestar
    from prometheus_client import Histogram

    from openclaw_gateway.admission import Admission
    from openclaw_gateway.clock import Clock
    from openclaw_gateway.facts import Principal
    from openclaw_gateway.pipeline import Call, CompiledRoute
    from openclaw_gateway.serving.addresses import Peers
    from openclaw_gateway.tiers import Tier

logger = logging.getLogger("openclaw.runner")


class Runner:
    """Runs exchanges. `routes` maps (id of Litestar's handler, path template) to the compiled route."""

    def __init__(
        self,
        app: Litestar,
        routes: Mapping[tuple[int, str], CompiledRoute],
        unmatched: CompiledRoute,
        admission: Admission,
        peers: Peers,
        clock: Clock,
        carried: Carried,
        *,
        stand_in: tuple[Principal, Tier] | None,
        stages: Histogram,
        sampling: int,
        server_timing: bool,
    ) -> None:
        self._app: Callable[[Any, Any, Any], Awaitable[None]] = app
        self._matching = Matching(app, routes, unmatched)
        #: path and method → the route of a request, and why it is refused where it has none
        self.match = self._matching.http
        self._admission = admission
        self._peers = peers
        self._monotonic = clock.monotonic
        self._carried = carried
        #: who callers are where `insecure_dev` has switched authentication off
        self._stand_in = stand_in
        self._sampling = 1 if server_timing else sampling
        self._server_timing = server_timing
        self._untimed = 0
        self._stages = stages
        #: turned by the gateway when it drains: new work is refused
        self.draining = False

    def __call__(self, scope: Any, receive: Any, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            return self._http(scope, receive, send)
        if scope["type"] == "websocket":
            return self._websocket(scope, receive, send)
        raise RuntimeError(f"unknown ASGI scope {scope['type']!r}")

    async def _http(self, scope: Any, receive: Any, send: Send) -> None:
        started = self._monotonic()
        route, refusal = self.match(scope["path"], scope["method"])
        carried = self._carried
        x = Exchange("http", scope["method"], scope["path"], route, scope, started, carried)
        x.client, x.trusted_peer = self._peers.client_of(scope)
        x.receive = receive
        scope["exchange"] = x
        self._untimed += 1
        if 0 < self._sampling <= self._untimed:
            self._untimed = 0
            x.timings = {}
        response = Response(x, send, self._server_timing)
        carried.exchanges += 1
        try:
            reply = await self._before(x, response)
            if reply is None:
                reply = refusal
            if reply is None:
                await carried.in_step()
                await (x.route.direct or self._app)(scope, x.receive, response)
                if not response.finished and not x.outcome.disconnected:
                    x.outcome.disconnected = True
                await carried.in_step()
            else:
                await response.answer(reply)
        except (asyncio.CancelledError, Disconnected):
            # The client left, or the server cancels us at the end of a drain: completed as cut, and that is all.
            x.outcome.disconnected = x.outcome.disconnected or not response.finished
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the client gets a clean 500
            await self._fault(x, response, error)
        finally:
            try:
                if x.receipt is not None and x.receipt.open:  # as `complete`, without a coroutine for it
                    await self._settled(x)
                self._complete(x)
                del scope["exchange"]  # they hold one another, and only the garbage collector would find them
            finally:
                carried.ended()

    async def _before(self, x: Exchange, response: Response) -> Reply | Refusal | None:
        """Pass every `on_request`, then admission; return what ends the exchange early."""
        if self._stand_in is not None and x.route.route.access != "public":
            x[PRINCIPAL], x[TIER] = self._stand_in
        if self.draining and x.route.route.surface != "operations":
            response.entered = x.route.depth
            for call in x.route.request:
                if call.awaits or bool(getattr(call.step.plugin, "requires", None)):
                    break
                call.function(x)  # ids and the log are for this answer too
            return unavailable("the gateway is shutting down", retry_after=5.0)
        timings = x.timings
        for call in x.route.request:
            response.entered = call.index + 1
            if timings is not None:
                begun = self._monotonic()
                reply = await self._step(x, call)
                timings[call.step.id] = self._monotonic() - begun
            else:  # as `_step`, without a coroutine for it
                try:
                    reply = call.function(x)
                    if call.awaits:
                        done, found = begin(reply)
                        reply = found if done else await finish(call.step.settings.timeout, reply, found)
                except Exception as error:  # noqa: BLE001 - a step's fault is answered by its on_error
                    reply = self._failed(x, call, error)
                if reply is not None:
                    reply = self._enforced(x, call, reply)
            if reply is not None:
                return reply
        response.entered = x.route.depth
        if not x.route.plans:
            return None
        tier = x.get(TIER)
        if tier is None or x.get(PRINCIPAL) is None:
            # Boot has proved the order; a step that failed under on_error = "allow" still leaves a gap.
            return unavailable("the gateway cannot tell whom to charge")
        plan = x.route.plans[tier.name]
        if timings is None:
            return await self._admission.admit_request(x, plan)
        begun = self._monotonic()
        reply = await self._admission.admit_request(x, plan)
        timings["admission"] = self._monotonic() - begun
        return reply

    async def _step(self, x: Exchange, call: Call) -> Reply | Refusal | None:
        try:
            if call.awaits:
                reply = await within(call.step.settings.timeout, call.function(x))
            else:
                reply = call.function(x)
        except Exception as error:  # noqa: BLE001 - a step's fault is answered by its on_error, whatever it raised
            reply = self._failed(x, call, error)
        return None if reply is None else self._enforced(x, call, reply)

    def _failed(self, x: Exchange, call: Call, error: Exception) -> Refusal | None:
        step = call.step
        fields = {"step": step.id, "onError": step.settings.on_error, "requestId": x.get(REQUEST_ID)}
        logger.error("step %s failed", step.id, exc_info=error, extra={"fields": fields})
        if step.settings.on_error == "allow":
            return None
        return refusal_of(error) if isinstance(error, Refused) else unavailable("a part of the gateway failed")

    def _enforced(self, x: Exchange, call: Call, reply: Reply | Refusal) -> Reply | Refusal | None:
        step = call.step
        if not isinstance(reply, (Reply, Refusal)):
            return self._failed(x, call, misanswered(call.name, reply, "None, a Refusal or a Reply"))
        if not step.settings.enforce:
            logger.warning("step %s would refuse", step.id, extra={"fields": {"step": step.id, "enforced": False}})
            return None
        x.outcome.refused_by = step.id
        return reply

    async def _fault(self, x: Exchange, response: Response, error: Exception) -> None:
        refusal = refusal_of(error)
        x.outcome.error = error
        if refusal.status >= 500 and not isinstance(error, (StoreUnavailable, UpstreamFailed)):
            log_fault(x, error)
        if response.started:
            return  # the server closes the connection, so that a cut response never looks whole
        await response.answer(refusal)

    async def _settled(self, x: Exchange) -> None:
        # Awaits in a cancelled task would be cancelled too, and the charge left to its expiry.
        await asyncio.shield(asyncio.ensure_future(self._settle(x)))

    def _complete(self, x: Exchange) -> None:
        outcome = x.outcome
        outcome.seconds = self._monotonic() - x.started
        if x.timings is not None:
            for stage, seconds in x.timings.items():
                self._stages.labels(stage, "request").observe(seconds)
        for call in x.route.complete:
            try:
                call.function(x, outcome)
            except Exception as error:
                logger.error("on_complete of %s failed", call.step.id, exc_info=error)

    async def _settle(self, x: Exchange) -> None:
        receipt = x.receipt
        assert receipt is not None
        good = 0 < x.outcome.status < 400 and not x.outcome.disconnected and x.outcome.error is None
        try:
            await (receipt.commit() if good else receipt.void())
        except StoreUnavailable as error:
            logger.error("a charge could not be committed; its hold will expire", exc_info=error)
        await receipt.release_leases()

    async def _websocket(self, scope: Any, receive: Any, send: Send) -> None:
        started = self._monotonic()
        route, refusal = self._matching.websocket(scope["path"])
        x = Exchange("websocket", "WEBSOCKET", scope["path"], route, scope, started, self._carried)
        x.client, x.trusted_peer = self._peers.client_of(scope)
        scope["exchange"] = x
        response = Response(x, send, self._server_timing)
        self._carried.exchanges += 1
        try:
            reply = await self._before(x, response)
            if reply is None:
                reply = refusal
            if reply is None:
                await (route.direct or self._app)(scope, receive, response)
            else:
                await response.deny(reply)
        except asyncio.CancelledError:
            # Only the server cancels us, at the end of a drain: the exchange is completed as cut, and that is all.
            x.outcome.disconnected = True
        except Exception as error:  # noqa: BLE001 - the last resort: an error frame is the handler's, the close is ours
            x.outcome.error = error
            refusal = refusal_of(error)
            if refusal.status >= 500:
                log_fault(x, error)
            if response.started and not response.finished:
                await send({"type": "websocket.close", "code": 1011, "reason": "internal error"})
            elif not response.finished:
                await response.deny(refusal)
        finally:
            try:
                await self.complete(x)
                del scope["exchange"]
            finally:
                self._carried.ended()

    async def message(self, parent: Exchange, *, metered: bool = True) -> tuple[Exchange, Refusal | None]:
        """Pass a message of a socket through `on_message`, and where `metered` admission; then call `complete`."""
        route = parent.route
        x = Exchange("message", "MESSAGE", parent.path, route, parent.scope, self._monotonic(), parent.carried)
        x.inherit(parent)
        for call in route.message:
            reply = await self._step(x, call)
            if reply is not None:
                refusal = reply if isinstance(reply, Refusal) else internal_error()
                return x, noted(x, refusal)
        if metered and route.message_plans:
            refused = await self._admission.admit(x, route.message_plans[x[TIER].name])
            if refused is not None:
                return x, noted(x, refused)
        return x, None

    async def complete(self, x: Exchange) -> None:
        """Settle and complete an exchange, exactly once."""
        if x.receipt is not None and x.receipt.open:
            await self._settled(x)
        self._complete(x)
