"""Gives every request an id that stands in its response, its log line and its error body.

It never believes an id from a peer that is not a trusted proxy, nor one that could break a log line.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from uuid_utils import uuid7

from openclaw_gateway.api import REQUEST_ID, Exchange, Fact, Host, PluginConfig, ResponseHead, hookimpl

_HEADER = b"x-request-id"
_acceptable = re.compile(rb"[A-Za-z0-9._-]{1,64}").fullmatch


class RequestId:
    """States the request's id and returns it in `x-request-id`; the first step of a pipeline."""

    provides: ClassVar[tuple[Fact[Any], ...]] = (REQUEST_ID,)
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        """No settings: which peers are believed is `gateway.trusted_proxies`."""

    def __init__(self, config: Config, host: Host) -> None:
        pass

    @hookimpl
    def on_request(self, x: Exchange) -> None:
        if x.trusted_peer:
            given = x.header(_HEADER)
            if given is not None and _acceptable(given):
                x[REQUEST_ID] = given.decode("ascii")
                return
        x[REQUEST_ID] = str(uuid7())

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        request_id = x.get(REQUEST_ID)
        if request_id is not None:
            head.set(_HEADER, request_id.encode("ascii"))
