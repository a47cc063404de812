import pytest
from plugins.auth_kit import exchange, host

from openclaw_gateway.api import ResponseHead
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
