"""Skills that call a service over HTTP: declared in TOML, or `http_fetch` on hosts that the operator allows.

What a caller gives becomes a value of the URL's path, its query or a JSON body, and never a part of its host.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Meta
from prometheus_client import Counter

from openclaw_gateway.api import (
    DeclaredSkill,
    Host,
    PluginConfig,
    Size,
    Skill,
    SkillCall,
    SkillFailed,
    SkillInfo,
    SkillParamsRefused,
    Spread,
    hookimpl,
)
from openclaw_plugins.skills.egress import Answer, Egress
from openclaw_plugins.skills.parameters import ParameterSchema
from openclaw_plugins.skills.places import AllowList, BadPlace, Place, place_of

_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WITH_BODY = ("POST", "PUT", "PATCH")


class HttpSkills:
    """Runs the `[skills.<name>]` that name it as their provider, and `http_fetch`."""

    class Config(PluginConfig, frozen=True, kw_only=True):
        """`[plugins.http_skills]`"""

        fetch_hosts: Annotated[
            tuple[str, ...],
            Meta(
                description='Hosts that `http_fetch` may read: "example.com" (HTTPS), "*.example.com", '
                '"https://example.com:8443", "*" for every public one. Without any it cannot be run.'
            ),
        ] = ()
        fetch_bytes: Annotated[Size, Meta(description="Most bytes that `http_fetch` reads.")] = Size(500_000)
        max_connections: Annotated[int, Meta(ge=1, le=1_000, description="Connections at the same time.")] = 64

    def __init__(self, config: Config, host: Host) -> None:
        self._egress = Egress(max_connections=config.max_connections)
        calls = Calls(self._egress, host)
        try:
            allowed = AllowList(config.fetch_hosts)
        except BadPlace as error:
            raise ValueError(f"fetch_hosts: {error}") from None
        self._skills: list[Skill] = [Fetch(calls, allowed, config.fetch_bytes)]
        for name, declared in host.document.skills.items():
            if declared.provider == host.id:
                self._skills.append(HttpSkill(name, declared, calls, host))

    @hookimpl
    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        async with self._egress.opened():
            yield

    def skills(self) -> Sequence[Skill]:
        return self._skills


class Calls:
    """Calls of services, measured as those of every service behind the gateway."""

    def __init__(self, egress: Egress, host: Host) -> None:
        self._egress = egress
        self._seconds = host.metric(
            Spread,
            "external_service_duration_seconds",
            "How long calls of services behind the gateway take.",
            ("target", "operation"),
            buckets=_BUCKETS,
        )
        self._errors = host.metric(
            Counter,
            "external_service_errors_total",
            "Calls of services behind the gateway that failed.",
            ("target", "operation", "error_type"),
        )

    async def call(self, target: str, place: Place, **fields: Any) -> Answer:
        """Call and measure; `target` is a name of the configuration. Raises SkillFailed, also for a status over 399."""
        started = time.perf_counter()
        error_type: str | None = "cancelled"
        try:
            answer = await self._egress.call(place, **fields)
            error_type = None
            if answer.status >= 400:
                kind = f"status_{answer.status // 100}xx"
                raise SkillFailed(f"the service answered {answer.status}", error_type=kind)
            return answer
        except SkillFailed as failed:
            error_type = failed.error_type
            raise
        finally:
            self._seconds.labels(target, "skill").observe(time.perf_counter() - started)
            if error_type is not None:
                self._errors.labels(target, "skill", error_type).inc()

    def malformed(self, target: str) -> SkillFailed:
        """Count an answer that cannot be read, and say so."""
        self._errors.labels(target, "skill", "malformed").inc()
        return SkillFailed("the service's answer is not valid JSON", error_type="malformed")


class HttpSkill:
    """One declared skill. Raises ValueError where its declaration makes no sense."""

    def __init__(self, name: str, declared: DeclaredSkill, calls: Calls, host: Host) -> None:
        self._declared = declared
        self._calls = calls
        self._target = declared.target or name
        target = host.document.targets.get(declared.target) if declared.target is not None else None
        if declared.target is not None and target is None:
            raise ValueError(f"skills.{name}.target: there is no [targets.{declared.target}]")
        self._private = target is not None and target.private
        base = target.url.rstrip("/") if target is not None else ""
        if target is not None and not declared.url.startswith("/"):
            raise ValueError(f"skills.{name}.url: expected a path that starts with / at its target")
        self._template = base + declared.url
        schema = {"type": "object", "properties": {}, "additionalProperties": False, **declared.parameters}
        if schema["type"] != "object" or not isinstance(schema["properties"], dict):
            raise ValueError(f"skills.{name}.parameters: expected the schema of an object")
        try:
            ParameterSchema(schema)
        except ValueError as error:
            raise ValueError(f"skills.{name}.parameters: no good schema: {error}") from None
        authority = re.match(r"^https?://[^/?#]*", self._template)
        if authority is None or "{" in authority[0]:
            raise ValueError(f"skills.{name}.url: expected https://host/..., with parameters after the host alone")
        self._named = tuple(dict.fromkeys(_NAME.findall(self._template)))
        required = schema.get("required") or ()
        for parameter in self._named:
            if parameter not in schema["properties"] or parameter not in required:
                raise ValueError(f"skills.{name}.url: {{{parameter}}} is no required parameter")
        try:
            place_of(_NAME.sub("x", self._template))
        except BadPlace as error:
            raise ValueError(f"skills.{name}.url: {error}") from None
        self.timeout: float | None = float(declared.timeout)
        self.info = SkillInfo(
            name=name,
            version=declared.version,
            description=declared.description,
            parameters=schema,
            kind="http",
        )

    def check(self, params: Mapping[str, Any]) -> None:
        try:
            place_of(self._url(params))
        except BadPlace as error:
            raise SkillParamsRefused([("", f"cannot be put into a URL: {error}")]) from None
        for name in self._named:
            # Servers resolve these, encoded or not, and would leave the path that was declared.
            if _plain(params[name]) in ("", ".", ".."):
                raise SkillParamsRefused([(name, "cannot be a part of a path")])

    async def run(self, call: SkillCall) -> Any:
        declared = self._declared
        headers = {name: value.reveal() for name, value in declared.headers.items()}
        # A service that knows the id can tell a repetition from a second order.
        headers["Idempotency-Key"] = call.execution_id
        body = None
        if declared.method in _WITH_BODY:
            headers["Content-Type"] = "application/json"
            body = msgspec.json.encode({k: v for k, v in call.params.items() if k not in self._named})
        answer = await self._calls.call(
            self._target,
            place_of(self._url(call.params)),
            method=declared.method,
            headers=headers,
            body=body,
            max_bytes=declared.max_output,
            private=self._private,
        )
        if answer.content_type == "application/json" or answer.content_type.endswith("+json"):
            try:
                return msgspec.json.decode(answer.text.encode())
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                raise self._calls.malformed(self._target) from None
        return answer.text

    def _url(self, params: Mapping[str, Any]) -> str:
        url = _NAME.sub(lambda match: quote(_plain(params[match[1]]), safe=""), self._template)
        rest = [(k, v) for k, v in params.items() if k not in self._named]
        if self._declared.method in _WITH_BODY or not rest:
            return url
        pairs = [(k, _plain(each)) for k, v in rest for each in (v if isinstance(v, list) else [v])]
        return f"{url}{'&' if '?' in url else '?'}{urlencode(pairs, quote_via=quote)}"


class Fetch:
    """`http_fetch`: reads a page of an allowed host."""

    timeout: float | None = 10.0

    def __init__(self, calls: Calls, allowed: AllowList, max_bytes: int) -> None:
        self._calls = calls
        self._allowed = allowed
        self._max_bytes = max_bytes
        self.info = SkillInfo(
            name="http_fetch",
            version="1.0",
            description="Reads a text or JSON document from one of the hosts that the operator allows.",
            parameters={
                "type": "object",
                "properties": {
                    "url": {"type": "string", "minLength": 1, "maxLength": 2048, "description": "What to read."}
                },
                "required": ["url"],
                "additionalProperties": False,
            },
            kind="http",
            eligible=bool(allowed),
            missing=() if allowed else ("config:fetch_hosts",),
        )

    def check(self, params: Mapping[str, Any]) -> None:
        try:
            self._allowed.check(place_of(params["url"]))
        except BadPlace as error:
            raise SkillParamsRefused([("url", str(error))]) from None

    async def run(self, call: SkillCall) -> Any:
        self.check(call.params)
        place = place_of(call.params["url"])
        answer = await self._calls.call(
            "http_fetch", place, method="GET", headers={}, body=None, max_bytes=self._max_bytes
        )
        return {"status": answer.status, "contentType": answer.content_type, "text": answer.text}


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return msgspec.json.encode(value).decode()
    return str(value)
