import uuid

import pytest
from plugins.auth_kit import exchange, host

from openclaw_gateway.api import REQUEST_ID, ResponseHead
from openclaw_plugins.request_id import RequestId


@pytest.fixture
def step(tmp_path):
    return RequestId(RequestId.Config(), host(tmp_path))


def test_states_a_new_id_and_returns_it(step):
    x, y = exchange(), exchange()
    step.on_request(x)
    step.on_request(y)
    assert uuid.UUID(x[REQUEST_ID]).version == 7
    assert x[REQUEST_ID] != y[REQUEST_ID]
    head = ResponseHead(401, [(b"x-request-id", b"a handler's")])
    step.on_response(x, head)
    assert head.headers == [(b"x-request-id", x[REQUEST_ID].encode())]


def test_believes_only_a_trusted_peer(step):
    stranger, proxy = exchange(("X-Request-Id", "abc-1")), exchange(("X-Request-Id", "abc-1"))
    proxy.trusted_peer = True
    step.on_request(stranger)
    step.on_request(proxy)
    assert stranger[REQUEST_ID] != "abc-1"
    assert proxy[REQUEST_ID] == "abc-1"


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a\n", 'a"', "é", "a\x1b[31m"])
def test_an_id_that_could_break_a_line_is_replaced(step, given):
    x = exchange(("X-Request-Id", given))
    x.trusted_peer = True
    step.on_request(x)
    assert uuid.UUID(x[REQUEST_ID])


def test_a_response_without_an_id_is_left_alone(step):
    head = ResponseHead(400, [])
    step.on_response(exchange(), head)
    assert head.headers == []
