"""Tells browsers how little an answer of this gateway may do; it never decides about a request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from openclaw_gateway.api import Duration, Exchange, Fact, Host, PluginConfig, ResponseHead, hookimpl

_CSP = b"content-security-policy"
_HSTS = b"strict-transport-security"


class SecurityHeaders:
    """Adds the protective headers to every response, refusals included, and drops `Server`."""

    provides: ClassVar[tuple[Fact[Any], ...]] = ()
    requires: ClassVar[tuple[Fact[Any], ...]] = ()

    class Config(PluginConfig, frozen=True, kw_only=True):
        hsts: Annotated[
            Literal["https", "always", "never"],
            Meta(description="When to send Strict-Transport-Security: on https requests, on all, or never."),
        ] = "https"
        hsts_max_age: Annotated[Duration, Meta(description="How long browsers shall insist on https.")] = Duration(
            365 * 86400
        )
        policy: Annotated[
            str, Meta(pattern=r"^[\x20-\x7e]+$", description="Content-Security-Policy of the API's answers.")
        ] = "default-src 'none'; frame-ancestors 'none'"
        docs_policy: Annotated[
            str,
            Meta(
                pattern=r"^[\x20-\x7e]+$",
                description="Content-Security-Policy of the documentation pages, where a page sets none of its own.",
            ),
        ] = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

    def __init__(self, config: Config, host: Host) -> None:
        common = (
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
        )
        hsts = (_HSTS, f"max-age={int(config.hsts_max_age)}; includeSubDomains".encode("ascii"))
        api = (*common, (_CSP, config.policy.encode("ascii")))
        docs = (*common, (_CSP, config.docs_policy.encode("ascii")))
        plain: tuple[tuple[bytes, bytes], ...] = (hsts,) if config.hsts == "always" else ()
        secure: tuple[tuple[bytes, bytes], ...] = () if config.hsts == "never" else (hsts,)
        # by (docs surface, https), so that a response costs one look-up and one extend
        self._sets = {
            (False, False): api + plain,
            (False, True): api + secure,
            (True, False): docs + plain,
            (True, True): docs + secure,
        }
        self._ours = frozenset({_CSP, _HSTS, b"server", *(name for name, _ in common)})

    @hookimpl
    def on_response(self, x: Exchange, head: ResponseHead) -> None:
        docs = x.route.route.surface == "docs"
        ours = self._sets[docs, x.scope.get("scheme") in ("https", "wss")]
        headers = head.headers
        if self._ours.isdisjoint([name for name, _ in headers]):
            headers.extend(ours)
            return
        own_policy = docs and any(name == _CSP for name, _ in headers)
        kept = [h for h in headers if h[0] not in self._ours or (own_policy and h[0] == _CSP)]
        head.headers = [*kept, *(h for h in ours if not (own_policy and h[0] == _CSP))]
