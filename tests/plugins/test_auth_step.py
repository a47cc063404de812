import logging

import pytest
from plugins.auth_kit import TIERS, bearer, exchange, host

from openclaw_gateway.api import PRINCIPAL, Principal, Refusal, Route, StoreBusy, StoreUnavailable, Tier, unauthorized
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth.step import Auth

ADA = Principal(organization="acme", user="ada", tier="teams", scopes=frozenset({"chat"}), method="m", credential="c")


class Method:
    """Gives one answer to everything, and counts how often it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, 0

    async def authenticate(self, x):
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def step(directory, *answers, tiers=TIERS, clock=None):
    methods = {f"m{i}": Method(a) for i, a in enumerate(answers)}
    auth = Auth(
        Auth.Config(methods=tuple(methods)), host(directory, id="auth", instances=methods, tiers=tiers, clock=clock)
    )
    return auth, list(methods.values())


async def test_states_who_the_caller_is(tmp_path):
    auth, _ = step(tmp_path, ADA)
    x = exchange(bearer("t"))
    assert await auth.on_request(x) is None
    assert x[PRINCIPAL] is ADA


async def test_methods_are_asked_in_order_and_the_first_answer_is_final(tmp_path):
    auth, methods = step(tmp_path, None, unauthorized("bad"), ADA)
    x = exchange(bearer("t"))
    found = await auth.on_request(x)
    assert found is methods[1].answer
    assert [m.asked for m in methods] == [1, 1, 0]
    assert PRINCIPAL not in x


@pytest.mark.parametrize("access", ["authenticated", "optional"])
async def test_a_credential_that_no_method_knows_is_refused_even_where_none_is_needed(tmp_path, access):
    auth, _ = step(tmp_path, None)
    for header in (bearer("t"), ("Authorization", "Basic YTpi"), ("X-API-Key", ""), ("Authorization", "")):
        found = await auth.on_request(exchange(header, access=access))
        assert isinstance(found, Refusal)
        assert found.status == 401
        assert b"www-authenticate" in dict(found.render("/x", None)[0])


async def test_no_credential_is_refused_where_one_is_needed_and_anonymous_where_not(tmp_path):
    auth, (method,) = step(tmp_path, ADA)
    needed, optional = exchange(), exchange(access="optional")
    found = await auth.on_request(needed)
    assert (found.status, found.code, found.type) == (401, "UNAUTHORIZED", "authentication_error")
    assert b"www-authenticate" in dict(found.headers)
    assert await auth.on_request(optional) is None
    assert PRINCIPAL not in optional
    assert method.asked == 0


@pytest.mark.parametrize("access", ["authenticated", "optional"])
@pytest.mark.parametrize(
    ("headers", "kind", "query"),
    [
        ((bearer("t"), ("X-API-Key", "k")), "http", ""),
        ((bearer("t"), bearer("t")), "http", ""),
        ((("X-API-Key", "k"), ("X-API-Key", "k")), "http", ""),
        ((bearer("t"),), "websocket", "token=t"),
        ((), "websocket", "token=t&ticket=u"),
        ((), "websocket", "token=t&token=t"),
    ],
)
async def test_two_credentials_in_one_request_are_refused(tmp_path, access, headers, kind, query):
    auth, (method,) = step(tmp_path, ADA)
    found = await auth.on_request(exchange(*headers, kind=kind, query=query, access=access))
    assert (found.status, found.code) == (400, "BAD_REQUEST")
    assert method.asked == 0


async def test_a_query_string_is_no_place_for_a_credential_but_on_a_socket(tmp_path):
    auth, (method,) = step(tmp_path, ADA)
    assert (await auth.on_request(exchange(query="token=t"))).status == 401
    assert method.asked == 0
    assert await auth.on_request(exchange(kind="websocket", query="token=t")) is None


@pytest.mark.parametrize("fault", [StoreUnavailable("database", "password=x"), StoreBusy("database", "pool")])
async def test_an_outage_is_503_and_never_401(tmp_path, fault, caplog):
    auth, (_, second) = step(tmp_path, fault, ADA)
    with caplog.at_level(logging.WARNING, "openclaw.auth"):
        found = await auth.on_request(exchange(bearer("t")))
    headers, body = found.render("/x", None)
    assert found.status == 503
    assert int(dict(headers)[b"retry-after"]) >= 1
    assert b"password" not in body
    assert second.asked == 0
    assert caplog.records[-1].fields == {"store": "database"}


async def test_routes_may_ask_for_scopes_and_tiers(tmp_path):
    auth, _ = step(tmp_path, ADA)
    assert await auth.on_request(exchange(bearer("t"), scopes=("chat",), tiers=("teams",))) is None
    x = exchange(bearer("t"), scopes=("chat", "admin"))
    found = await auth.on_request(x)
    assert (found.status, found.code) == (403, "FORBIDDEN")
    assert "admin" in found.message
    assert x[PRINCIPAL] is ADA
    assert (await auth.on_request(exchange(bearer("t"), tiers=("government",)))).status == 403


async def test_a_tier_that_names_its_scopes_opens_no_others(tmp_path):
    tiers = {"teams": Tier(name="teams", title="Teams", tables={}, scopes=frozenset({"read"}))}
    auth, _ = step(tmp_path, ADA, tiers=tiers)
    x = exchange(bearer("t"))
    assert await auth.on_request(x) is None
    assert x[PRINCIPAL].scopes == frozenset()
    assert (await auth.on_request(exchange(bearer("t"), scopes=("chat",)))).status == 403


async def test_a_socket_does_not_outlive_its_credential(tmp_path):
    import msgspec

    clock = ManualClock()
    auth, _ = step(tmp_path, msgspec.structs.replace(ADA, expires_at=clock.now() + 10), clock=clock)
    x = exchange(bearer("t"), kind="websocket")
    assert await auth.on_request(x) is None
    assert auth.on_message(x) is None
    clock.advance(10)
    assert auth.on_message(x).status == 401


def test_takes_no_part_on_public_routes(tmp_path):
    auth, _ = step(tmp_path, ADA)
    assert [auth.applies(Route(access=a)) for a in ("public", "optional", "authenticated")] == [False, True, True]


def test_a_step_without_methods_is_refused(tmp_path):
    with pytest.raises(ValueError, match="methods: empty"):
        step(tmp_path)
