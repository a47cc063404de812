"""Facts are stated once; the head of a response replaces by name."""

from __future__ import annotations

from typing import Any, cast

import pytest

from openclaw_gateway.exchange import Exchange, Fact, ResponseHead
from openclaw_gateway.serving.addresses import Peers

NAME: Fact[str] = Fact("name")


def exchange() -> Exchange:
    return Exchange("http", "GET", "/", cast("Any", None), {"headers": [(b"a", b"1"), (b"a", b"2")]}, 0.0)


def test_a_fact_has_one_authoritative_source() -> None:
    x = exchange()
    assert NAME not in x
    assert x.get(NAME) is None
    x[NAME] = "one"
    assert x[NAME] == "one"
    with pytest.raises(RuntimeError, match="already stated"):
        x[NAME] = "two"


def test_facts_of_equal_name_are_different_facts() -> None:
    x = exchange()
    x[NAME] = "one"
    assert Fact("name") not in x


def test_headers() -> None:
    x = exchange()
    assert x.header(b"a") == b"1"
    assert x.headers(b"a") == [b"1", b"2"]
    assert x.header(b"b") is None
    head = ResponseHead(200, [(b"x", b"1")])
    head.set(b"x", b"2")
    head.set(b"y", b"3")
    assert head.headers == [(b"x", b"2"), (b"y", b"3")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client", "trusted"),
    [
        ("203.0.113.9", "1.2.3.4", "203.0.113.9", False),
        ("10.0.0.1", "", "10.0.0.1", True),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4", True),
        ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4", True),
        ("10.0.0.1", "6.6.6.6, garbage", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "1.2.3.4", "1.2.3.4", True),
        ("not an address", "1.2.3.4", "not an address", False),
    ],
)
def test_only_a_trusted_proxy_names_the_client(peer: str, forwarded: str, client: str, trusted: bool) -> None:
    import ipaddress

    peers = Peers([ipaddress.ip_network("10.0.0.0/8")])
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    assert peers.client_of({"client": (peer, 1), "headers": headers}) == (client, trusted)
