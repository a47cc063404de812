# ruff: noqa: RUF001 - spellings that mislead are what is tried here
"""No spelling of a URL, and no lie of a name server, leads a skill to an address that is not public."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver

from openclaw_gateway.api import SkillFailed
from openclaw_plugins.skills.addresses import is_private_host, is_public
from openclaw_plugins.skills.egress import Egress
from openclaw_plugins.skills.places import AllowList, BadPlace, Place, place_of

INSIDE = [
    "127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255",
    "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "169.254.169.254", "169.254.0.1", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.0.0.1", "192.0.0.170", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1",
    "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1",
    "fe80::1", "fe80::1%lo", "febf::1", "fc00::1", "fd00::1", "fd00:ec2::254", "ff02::1", "ff05::2", "fec0::1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "2001:2::1",
    "2607:f8b0::5efe:7f00:1", "2607:f8b0::200:5efe:a00:1",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_plainly_public_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address) and is_private_host(address)


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254",
                                     "100.100.100.200", "168.63.129.16", "224.0.0.1", "0.0.0.0", "::", "no address",
                                     "255.255.255.255", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"])  # fmt: skip
def test_not_even_a_private_target_is_where_machines_keep_their_secrets(address: str) -> None:
    assert not is_private_host(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "::1", "fd12::1"])
def test_a_private_target_may_be_at_a_private_address(address: str) -> None:
    assert is_private_host(address) and not is_public(address)


class Liar(AbstractResolver):
    """A name server that answers as it likes; names that it does not know are at a public address first."""

    ANSWERS: dict[str, list[str]] = {  # noqa: RUF012 - a table
        "localtest.test": ["127.0.0.1"],
        "six.test": ["::1"],
        "mapped.test": ["::ffff:127.0.0.1"],
        "zero.test": ["0.0.0.0"],
        "metadata.test": ["169.254.169.254"],
        "both.test": ["8.8.8.8", "127.0.0.1"],
        "first.test": ["127.0.0.1", "8.8.8.8"],
        "nat64.test": ["64:ff9b::7f00:1"],
        "localhost": ["127.0.0.1"],
    }

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[Any]:
        self.asked.append(host)
        answers = self.ANSWERS.get(host.rstrip(".").lower(), ["127.0.0.1"])
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in answers
        ]

    async def close(self) -> None:
        return None


class Listener:
    """Counts who comes, on 127.0.0.1, on ::1 and on every other address of this machine."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nsecret"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(self.answer)
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener.serve, "0.0.0.0", 0)
    listener.port = server.sockets[0].getsockname()[1]
    try:
        six = await asyncio.start_server(listener.serve, "::1", listener.port)
    except OSError:  # a machine without IPv6
        six = None
    try:
        yield listener
    finally:
        server.close()
        if six is not None:
            six.close()


def hosts() -> list[str]:
    """Ways in which a host may be written so that some reader takes it for one inside."""
    number = 0x7F000001
    spelled = [
        "127.0.0.1", "127.1", "127.0.1", "127.000.000.001", "0177.0.0.1", "0177.0.0.01", "00177.0.0.1", "0177.1",
        "0x7f.0.0.1", "0x7f.1", "0x7f000001", "0X7F000001", "0x7f.0x0.0x0.0x1", str(number), f"{number:o}",
        f"0{number:o}",
        f"000{number:o}", f"0x{number:x}", f"0x00{number:x}", "127.0.0.1.", "127.0.0.1..", "127。0。0。1",
        "127．0．0．1",
        "①②⑦.⓪.⓪.①", "127.0.0.1%00.example.com", "127.0.0.1%2eexample.com", "%31%32%37.0.0.1", "127.0.0.1%20",
        "0", "0.0.0.0", "0x0", "00", "0.0", "0x0.0", "1", "4294967295", "4294967296", "999999999999", "256.256.256.256",
        "2130706433", "017700000001", "3232235777", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
        "169.254.169.254",
        "0xa9.0xfe.0xa9.0xfe", "169.254.43518", "169.16689662", "10.1", "012.0.0.1", "0xa000001", "167772161",
        "localhost", "LOCALHOST", "localhost.", "LocalHost.", "localtest.test", "six.test", "mapped.test", "zero.test",
        "metadata.test", "both.test", "first.test", "nat64.test", "a.b.localtest.test", "localtest.test.",
        "xn--0-tfa.test",
        "*.test", "-a.test", "a_.test", "a..b", ".", "..", "", "127.0.0.1\\", "127.0.0.1\t", "127.0.0.1\r\nx",
        " 127.0.0.1",
        "127.0.0.1 ", "127.0.0.1,8.8.8.8", "127.0.0.1;", "127.0.0.1'", '127.0.0.1"', "127.0.0.1\x00", "127.0.0.1|",
        "ⅼocalhost", "lоcalhost", "loc\u00adalhost", "localhost\u3002", "ﬀ.test", "١٢٧.0.0.1",
    ]  # fmt: skip
    literals = [address for address in INSIDE if ":" in address and "%" not in address]
    literals += [
        "0:0:0:0:0:0:0:1", "0000:0000:0000:0000:0000:0000:0000:0001", "::0001", "0::1", "::ffff:7f00:1",
        "::ffff:7f00:0001",
        "0:0:0:0:0:ffff:7f00:1", "::FFFF:127.0.0.1", "::ffff:0:127.0.0.1", "::ffff:0x7f.1", "::ffff:127.1", "1",
        "::1%25lo", "::1%lo", "fe80::1%25eth0", "v1.x", "::ffff:127.0.0.1%0", "::1]", "[::1", "::7f00:1", "::127.1",
    ]  # fmt: skip
    return spelled + [f"[{literal}]" for literal in literals]


def payloads(port: int) -> list[str]:
    around = (
        f"http://%s:{port}/", f"https://%s:{port}/", f"http://user@%s:{port}/", f"http://8.8.8.8@%s:{port}/",
        f"http://%s:0{port}?a#b", f"http://%s.:{port}/", "http://%s/",
    )  # fmt: skip
    found = [one.replace("%s", host, 1) for host in hosts() for one in around]
    inside = f"127.0.0.1:{port}"
    found += [
        f"http://{inside}", f"HTTP://{inside}/", f"http:/{inside}/", f"http:///{inside}/", f"http:{inside}/",
        f"//{inside}/",
        f"http:\\\\{inside}\\", f"http://\\{inside}/", f"http://example.com@{inside}/", f"http://a:b@{inside}/",
        f"http://example.com%40{inside}/", f"http://{inside}#@example.com/", f"http://{inside}?@example.com/",
        f"http://{inside}\\@example.com/", f"http://example.com\\@{inside}/", f"http://example.com#@{inside}/",
        f"http://example.com:80@{inside}/", f"http://@{inside}/", f"http://:@{inside}/", f"http://%00{inside}/",
        f"http://[{inside}]/", f"http://{inside}%23.example.com/", f"http://localhost:{port}:80/",
        "http://127.0.0.1:+80/",
        f"http://127.0.0.1:0{port}/", f"http://127.0.0.1: {port}/", f"http://127.0.0.1:{port}\n/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:-1/", f"http://127.0.0.1:{port}%2f/", "http://127.0.0.1:/", "http://127.0.0.1:0/",
        f"\thttp://{inside}/", f" http://{inside}/", f"http://{inside}/ ", f"ht\ntp://{inside}/",
        f"\x00http://{inside}/",
        f"ftp://{inside}/", f"gopher://{inside}/_x", f"file://{inside}/etc/passwd", "file:///etc/passwd",
        f"dict://{inside}/",
        f"ws://{inside}/", f"unix://{inside}/", "data:text/plain,x", f"javascript:{inside}", f"http+unix://{inside}/",
        f"https://{inside}/", f"https://[::1]:{port}/", f"https://localhost:{port}/", f"jar:http://{inside}!/",
        f"url:http://{inside}/", f"http://{inside}/../", f"http://{inside}/%2e%2e/", "http://", "http", "", "/", "?",
        "#",
        f"http://both.test:{port}/", f"http://first.test:{port}/x?y=z#f", f"http://any.name.at.all:{port}/",
        f"http://LOCALTEST.TEST:{port}/", f"http://localtest.test.:{port}/", "http://" + "a" * 300 + ".test/",
        f"http://{'a.' * 200}test:{port}/", f"http://localtest.test:{port}/" + "x" * 3000,
    ]  # fmt: skip
    return found


def test_there_are_enough_of_them() -> None:
    assert len(set(payloads(9))) >= 1000


async def test_no_payload_reaches_a_listener(record_property: Any) -> None:
    async with listening() as listener:
        liar = Liar()
        allowed = AllowList(["http://*", f"http://*:{listener.port}", "*", f"https://*:{listener.port}"])
        egress = Egress(max_connections=8, resolver=lambda: liar)
        refused = 0
        async with egress.opened():
            for url in dict.fromkeys(payloads(listener.port)):
                try:
                    place = place_of(url)
                    allowed.check(place)
                except BadPlace:
                    refused += 1
                    continue
                async with asyncio.timeout(5):
                    with pytest.raises(SkillFailed) as caught:
                        await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000)
                assert caught.value.error_type == "address_refused", url
                assert "127" not in str(caught.value)
                refused += 1
        record_property("payloads refused", refused)
        record_property("connections", listener.connections)
        assert listener.connections == 0
        assert refused == len(set(payloads(listener.port)))
        # Many were understood and allowed by name: for these only the look-up of the address stood in the way.
        assert len(set(liar.asked)) >= 15


async def test_the_listener_would_have_noticed() -> None:
    """The same call is made where the operator declared the place as private."""
    async with listening() as listener:
        egress = Egress(max_connections=8, resolver=Liar)
        async with egress.opened():
            for host in ("127.0.0.1", "localtest.test", "LOCALHOST"):
                place = place_of(f"http://{host}:{listener.port}/")
                answer = await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000, private=True)
                assert answer.text == "secret"
        assert listener.connections == 3


async def test_a_private_target_that_moves_to_the_metadata_address_is_refused() -> None:
    egress = Egress(max_connections=8, resolver=Liar)
    async with egress.opened():
        with pytest.raises(SkillFailed, match="no address that may be reached"):
            place = place_of("http://metadata.test/")
            await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000, private=True)


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    """A name server that says something else each time is asked once a connection, and judged each time."""

    class Rebinding(Liar):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC) -> list[Any]:
            self.ANSWERS = {host: [("127.0.0.1", "169.254.169.254")[len(self.asked) % 2]]}
            return await super().resolve(host, port, family)

    async with listening() as listener:
        liar = Rebinding()
        egress = Egress(max_connections=8, resolver=lambda: liar)
        async with egress.opened():
            place = place_of(f"http://rebinding.test:{listener.port}/")
            for number in range(1, 4):
                before = len(liar.asked)
                answer = await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000, private=True)
                assert (answer.text, len(liar.asked), listener.connections) == ("secret", before + 1, number)
                with pytest.raises(SkillFailed) as caught:
                    await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000, private=True)
                assert (caught.value.error_type, len(liar.asked), listener.connections) == (
                    "address_refused",
                    before + 2,
                    number,
                )


async def test_the_socket_itself_is_the_second_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the check of the answer gone, or an address taken for a name, no connection would be made all the same."""
    monkeypatch.setattr("openclaw_plugins.skills.egress._checking", lambda inner, allowed: inner)
    async with listening() as listener:
        egress = Egress(max_connections=8, resolver=Liar)
        async with egress.opened():
            for place in (
                place_of(f"http://localtest.test:{listener.port}/"),
                Place("http", "a.test", listener.port, f"http://127.0.0.1:{listener.port}/"),
            ):
                with pytest.raises(SkillFailed):
                    await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000)
        assert listener.connections == 0


async def test_redirects_are_not_followed_and_proxies_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as inner, listening() as outer:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{inner.port}")
        egress = Egress(max_connections=8, resolver=Liar)
        async with egress.opened():
            for status in (301, 302, 303, 307, 308):
                head = f"HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:{inner.port}/\r\nContent-Length: 0\r\n\r\n"
                outer.answer = head.encode()
                place = place_of(f"http://localtest.test:{outer.port}/")
                with pytest.raises(SkillFailed) as caught:
                    await egress.call(place, method="GET", headers={}, body=None, max_bytes=1000, private=True)
                assert caught.value.error_type == "redirect"
        assert (outer.connections, inner.connections) == (5, 0)


@pytest.mark.parametrize(
    ("entries", "url", "passes"),
    [
        (["example.com"], "https://example.com/a?b=c", True),
        (["example.com"], "https://EXAMPLE.com./", True),
        (["example.com"], "http://example.com/", False),
        (["example.com"], "https://example.com:8443/", False),
        (["example.com"], "https://www.example.com/", False),
        (["example.com"], "https://example.com.evil.test/", False),
        (["example.com"], "https://evilexample.com/", False),
        (["*.example.com"], "https://www.example.com/", True),
        (["*.example.com"], "https://a.b.example.com/", True),
        (["*.example.com"], "https://example.com/", False),
        (["*.example.com"], "https://evilexample.com/", False),
        (["https://example.com:8443"], "https://example.com:8443/", True),
        (["http://*:81"], "http://any.test:81/", True),
        (["http://*:81"], "http://any.test/", False),
        (["*"], "https://any.test/", True),
        (["*"], "http://any.test/", False),
        (["https://[2606:4700::1]"], "https://[2606:4700:0::1]/", True),
        ([], "https://example.com/", False),
    ],
)
def test_the_list_of_allowed_hosts(entries: list[str], url: str, passes: bool) -> None:
    allowed = AllowList(entries)
    if passes:
        allowed.check(place_of(url))
    else:
        with pytest.raises(BadPlace):
            allowed.check(place_of(url))


@pytest.mark.parametrize("entry", ["", "exa mple.com", "example.com/path", "ftp://example.com", "a@b", "*.*.com", "**"])
def test_what_is_no_host_cannot_be_allowed(entry: str) -> None:
    with pytest.raises(BadPlace):
        AllowList([entry])
