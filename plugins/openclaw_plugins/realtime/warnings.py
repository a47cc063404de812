"""Brings quota events to the open sockets of their organisation, on every replica, over the event bus.

They travel beside the events of sessions, in a place of their own, so that they take no number from them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from openclaw_gateway.api import EVENTS_LOST, Event, EventBus, QuotaEvent, Subscription
from openclaw_plugins.realtime.connection import Connection
from openclaw_plugins.realtime.frames import QuotaWarning
from openclaw_plugins.realtime.turns import SocketTurns

#: no session has this id
_PLACE = "quota-events"


class _Told(msgspec.Struct, rename="camel"):
    subject: str
    threshold: str
    limit: dict[str, Any]


_told = msgspec.json.Decoder(_Told).decode


async def publish(bus: EventBus, event: QuotaEvent) -> None:
    """Tell every replica. Raises StoreUnavailable."""
    body = {
        "type": "quota_warning",
        "subject": event.subject,
        "threshold": event.threshold,
        "limit": event.report(),
    }
    await bus.publish(event.organization, _PLACE, body)


async def listen(bus: EventBus, connection: Connection, turns: SocketTurns, session: str) -> Subscription:
    """Send a socket what concerns it: quotas of its organisation, user, key, address and session."""
    principal = connection.principal
    mine = {"-", principal.user, principal.credential, connection.x.client, session}

    def deliver(event: Event) -> None:
        if event.type == EVENTS_LOST:
            return  # usage can be read at any time
        told = _told(event.body)
        name = told.limit["name"]
        # What a turn has warned of already is not said twice; that it is used up is news.
        if told.subject in mine and (told.threshold == "exhausted" or not turns.warned(name)):
            connection.send(QuotaWarning(limit=told.limit))

    return await bus.subscribe(principal.organization, _PLACE, deliver)
