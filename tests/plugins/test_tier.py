import logging

from plugins.auth_kit import TIERS, exchange, host

from openclaw_gateway.api import PRINCIPAL, TIER, Principal, Refusal, Route
from openclaw_plugins.tier import TierStep


def caller(tier):
    return Principal(organization="acme", user="ada", tier=tier, method="jwt", credential="c")


def test_states_the_tier_that_the_files_define(tmp_path):
    step = TierStep(TierStep.Config(), host(tmp_path))
    x = exchange()
    x[PRINCIPAL] = caller("government")
    assert step.on_request(x) is None
    assert x[TIER] is TIERS["government"]


def test_an_unknown_tier_is_refused_and_logged_and_never_a_default(tmp_path, caplog):
    step = TierStep(TierStep.Config(), host(tmp_path, id="tier"))
    for name in ("gold", "", "Teams"):
        x = exchange()
        x[PRINCIPAL] = caller(name)
        with caplog.at_level(logging.WARNING, "openclaw.tier"):
            refusal = step.on_request(x)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.code) == (403, "FORBIDDEN")
        assert TIER not in x
        assert caplog.records[-1].fields == {"tier": name, "organizationId": "acme"}


def test_anonymous_callers_pass_where_a_credential_is_optional(tmp_path):
    step = TierStep(TierStep.Config(), host(tmp_path))
    x = exchange(access="optional")
    assert step.on_request(x) is None
    assert TIER not in x


def test_takes_no_part_on_public_routes(tmp_path):
    step = TierStep(TierStep.Config(), host(tmp_path))
    assert [step.applies(Route(access=a)) for a in ("public", "optional", "authenticated")] == [False, True, True]
