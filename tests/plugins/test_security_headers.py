import asyncio

import pytest
from plugins.auth_kit import exchange, host

from openclaw_gateway.api import ResponseHead
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.security_headers import SecurityHeaders


def sent(tmp_path, x, given=(), **config):
    step = SecurityHeaders(SecurityHeaders.Config(**config), host(tmp_path))
    head = ResponseHead(200, list(given))
    step.on_response(x, head)
    assert len({name for name, _ in head.headers}) == len(head.headers)
    return dict(head.headers)


def test_an_answer_of_the_api_may_do_nothing_in_a_browser(tmp_path):
    headers = sent(tmp_path, exchange(), [(b"content-type", b"application/json")])
    assert headers == {
        b"content-type": b"application/json",
        b"x-content-type-options": b"nosniff",
        b"x-frame-options": b"DENY",
        b"referrer-policy": b"no-referrer",
        b"cross-origin-resource-policy": b"same-origin",
        b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    }


def test_what_a_handler_gave_is_replaced_and_server_is_dropped(tmp_path):
    given = [(b"server", b"x"), (b"x-frame-options", b"SAMEORIGIN"), (b"content-security-policy", b"default-src *")]
    headers = sent(tmp_path, exchange(), given)
    assert b"server" not in headers
    assert headers[b"x-frame-options"] == b"DENY"
    assert headers[b"content-security-policy"].startswith(b"default-src 'none'")


def test_the_documentation_loads_from_itself_or_by_its_own_policy(tmp_path):
    assert sent(tmp_path, exchange(surface="docs"))[b"content-security-policy"].startswith(b"default-src 'self'")
    own = (b"content-security-policy", b"script-src 'sha256-abc'")
    assert sent(tmp_path, exchange(surface="docs"), [own])[own[0]] == own[1]


@pytest.mark.parametrize(
    ("hsts", "scheme", "expected"),
    [
        ("https", "http", False),
        ("https", "https", True),
        ("https", "wss", True),
        ("always", "http", True),
        ("never", "https", False),
    ],
)
def test_hsts_goes_out_on_https_or_where_it_is_configured(tmp_path, hsts, scheme, expected):
    headers = sent(tmp_path, exchange(scheme=scheme), hsts=hsts)
    assert (headers.get(b"strict-transport-security") == b"max-age=31536000; includeSubDomains") is expected
    assert (b"strict-transport-security" in headers) is expected


async def test_every_answer_on_the_wire_is_harmless_in_a_browser(tmp_path):
    """Of every route, good or refused, of none, and of the server itself, which no step sees."""
    gateway = build(configuration(tmp_path, edit={"plugins.auth.failures.per_address": 0}))
    async with serving(gateway) as url:
        host, port = url.removeprefix("http://").split(":")
        token = gateway.plugin("jwt").mint(organization="acme", user="ada", tier="government", scopes=("admin", "keys"))
        good = f"Authorization: Bearer {token}\r\n".encode()
        upgrade = (
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )

        async def asked(first, *lines):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first + b"\r\nHost: a\r\nConnection: close\r\n" + b"".join(lines) + b"\r\n")
            async with asyncio.timeout(10):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            writer.close()
            return int(head[0].split(" ")[1]), dict(line.split(": ", 1) for line in head[1:] if line)

        answers = {}
        docs = {route.path.replace("{name}", "search").encode() for route in gateway.routes if route.surface == "docs"}
        for route in gateway.routes:
            path = route.path.replace("{name}", "search").replace("{", "").replace("}", "").encode()
            for method in route.methods:
                socket = upgrade if method == "WEBSOCKET" else b""
                line = b"%b %b HTTP/1.1" % (b"GET" if socket else method.encode(), path)
                for credential in (b"", good):
                    answers[method, path, bool(credential)] = await asked(line, credential, socket)
        for line in (
            b"GET /nowhere HTTP/1.1",
            b"PATCH /health HTTP/1.1",
            b"OPTIONS /api/v1/usage HTTP/1.1",
            b"TRACE / HTTP/1.1",
            b"GET / HTTP/9.9",
            b"GET /" + b"a" * 9_000 + b" HTTP/1.1",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000,
            b"GET / HTTP/1.1\r\nHost: b",
            b"nonsense",
        ):
            answers[line[:30]] = await asked(line)
        assert {200, 400, 401, 404, 405, 414, 431} <= {status for status, _ in answers.values()}
        for what, (status, headers) in answers.items():
            assert headers["x-content-type-options"] == "nosniff", (what, status, headers)
            assert headers["x-frame-options"] == "deny", (what, headers)
            assert headers["referrer-policy"] == "no-referrer", (what, headers)
            policy = headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy and "unsafe" not in policy, (
                what,
                policy,
            )
            assert policy.startswith("default-src 'none'") or what[1] in docs, (what, policy)
            assert not {"server", "x-powered-by", "access-control-allow-origin"} & headers.keys(), (what, headers)
