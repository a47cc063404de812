import base64
import json
import stat
from contextlib import asynccontextmanager

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugins.auth_kit import bearer, exchange, host

from openclaw_gateway.api import NotGrantable, Principal, Refusal, Secret, StartFailed
from openclaw_gateway.testing import ManualClock
from openclaw_plugins.auth.claims import Claims
from openclaw_plugins.auth.jwt import JsonWebTokens, NoSecret

SECRET = "a secret of more than thirty-two bytes"
NOW = 1_800_000_000
GOOD = {"sub": "ada", "org_id": "acme", "tier": "teams", "scope": "chat admin", "exp": NOW + 600}
PRIVATE = {
    "HS256": SECRET,
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
BASE64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def pem(algorithm):
    public = PRIVATE[algorithm].public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def jwk(algorithm, kid):
    key = jwt.get_algorithm_by_name(algorithm).to_jwk(PRIVATE[algorithm].public_key(), as_dict=True)
    return {**key, "kid": kid}


def plugin(directory, algorithm="HS256", *, clock=None, **config):
    if algorithm == "HS256":
        config.setdefault("secret", Secret(SECRET))
    else:
        config.setdefault("public_key_file", "key")
        config.setdefault("algorithms", (algorithm,))
        if not (directory / "key").exists():
            (directory / "key").write_bytes(pem(algorithm))
    return JsonWebTokens(JsonWebTokens.Config(**config), host(directory, id="jwt", clock=clock))


@asynccontextmanager
async def opened(*args, **kwargs):
    instance = plugin(*args, **kwargs)
    async with instance.lifespan():
        yield instance


def sign(claims, algorithm="HS256", key=None, **headers):
    return jwt.encode(claims, key or PRIVATE[algorithm], algorithm=algorithm, headers=headers or None)


async def refused(tokens, token):
    found = await tokens.authenticate(exchange(bearer(token)))
    assert isinstance(found, Refusal), found
    assert found.status == 401
    headers, body = found.render("/x", None)
    assert b"www-authenticate" in dict(headers)
    assert token.encode() not in body
    return found


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_valid_token_proves_its_caller(tmp_path, algorithm):
    async with opened(tmp_path, algorithm) as tokens:
        found = await tokens.authenticate(exchange(bearer(sign({**GOOD, "jti": "t1"}, algorithm))))
        assert found == Principal(
            organization="acme",
            user="ada",
            tier="teams",
            scopes=frozenset({"chat", "admin"}),
            method="jwt",
            credential="t1",
            expires_at=NOW + 630.0,
        )


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_every_place_of_a_token_counts(tmp_path, algorithm):
    """Each place once with the neighbouring character, where only unused bits of base64 could differ."""
    async with opened(tmp_path, algorithm) as tokens:
        token = sign(GOOD, algorithm)
        for place, character in enumerate(token):
            if character == ".":
                continue  # without two dots it is no token at all: see the next test
            other = BASE64URL[BASE64URL.index(character) ^ 1]
            await refused(tokens, token[:place] + other + token[place + 1 :])
        assert len(tokens._verified) == 0


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "EdDSA"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_any_changed_character_is_refused(tmp_path, algorithm, data):
    token = sign(GOOD, algorithm)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda c: c != token[place]))
    async with opened(tmp_path, algorithm) as tokens:
        changed = token[:place] + other + token[place + 1 :]
        found = await tokens.authenticate(exchange(bearer(changed)))
        # Without two dots it is no token at all, and the step refuses it for want of a method.
        assert found is None if changed.count(".") != 2 else isinstance(found, Refusal)


async def test_a_verified_token_is_remembered_until_it_expires_and_a_refused_one_never(tmp_path):
    clock = ManualClock(NOW)
    async with opened(tmp_path, clock=clock) as tokens:
        token = sign(GOOD)
        first = await tokens.authenticate(exchange(bearer(token)))
        tokens._keys = {}  # a second verification would now fail
        assert await tokens.authenticate(exchange(bearer(token))) is first
        tokens._keys = {None: SECRET.encode()}
        clock.advance(629)
        assert await tokens.authenticate(exchange(bearer(token))) is first
        clock.advance(1)
        assert "expired" in (await refused(tokens, token)).message
        await refused(tokens, sign(GOOD, key="another secret of more than 32 bytes"))
        assert len(tokens._verified) == 0


async def test_the_cache_is_bounded(tmp_path):
    async with opened(tmp_path, cache_size=3) as tokens:
        for i in range(10):
            await tokens.authenticate(exchange(bearer(sign({**GOOD, "jti": str(i)}))))
        assert len(tokens._verified) == 3


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": None},
        {"exp": NOW - 31},
        {"exp": "soon"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": 10**400},
        {"nbf": NOW + 31},
        {"nbf": "x"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a" * 256},
        {"sub": "a\x00b"},
        {"sub": "\ud800"},
        {"org_id": None},
        {"org_id": ""},
        {"org_id": ["acme"]},
        {"tier": 3},
        {"scope": 3},
        {"scope": [1]},
    ],
)
async def test_a_signed_token_with_unusable_claims_is_refused(tmp_path, claims):
    changed = {k: v for k, v in {**GOOD, **claims}.items() if v is not None}
    async with opened(tmp_path) as tokens:
        # PyJWT refuses to sign some of these, an issuer may not.
        signed = jwt.PyJWS().encode(json.dumps(changed).encode(), SECRET, algorithm="HS256", headers={"typ": "JWT"})
        await refused(tokens, signed)


async def test_the_algorithm_comes_from_configuration_alone(tmp_path):
    async with opened(tmp_path) as tokens:
        header = {"typ": "JWT"}
        body = base64.urlsafe_b64encode(json.dumps(GOOD).encode()).rstrip(b"=").decode()
        good = sign(GOOD)
        for alg in ("none", "None", "hs256", "HS512", "RS256", None, ["HS256"], {}):
            head = base64.urlsafe_b64encode(json.dumps({**header, "alg": alg}).encode()).rstrip(b"=").decode()
            await refused(tokens, f"{head}.{body}.{good.split('.')[2]}")
            found = await tokens.authenticate(exchange(bearer(f"{head}.{body}.")))
            assert isinstance(found, Refusal)
        await refused(tokens, sign(GOOD, "HS512", "s" * 64))


async def test_a_public_key_is_no_hmac_secret(tmp_path):
    """The confusion of RS256 with HS256: a token signed by HMAC under the text of the public key."""
    import hashlib
    import hmac

    parts = [
        base64.urlsafe_b64encode(json.dumps(v).encode()).rstrip(b"=") for v in ({"alg": "HS256", "typ": "JWT"}, GOOD)
    ]
    signature = hmac.new(pem("RS256"), b".".join(parts), hashlib.sha256).digest()
    forged = b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()
    async with opened(tmp_path, "RS256") as tokens:
        await refused(tokens, forged)
    with pytest.raises(ValueError, match="secret: this is the text of a key"):
        plugin(tmp_path, secret=Secret(pem("RS256").decode()))


@pytest.mark.parametrize(
    "header",
    [{"crit": ["exp"]}, {"typ": "logout+jwt"}, {"typ": "secevent+jwt"}, {"kid": "../../etc/passwd", "crit": []}],
)
async def test_other_types_and_critical_extensions_are_refused(tmp_path, header):
    async with opened(tmp_path) as tokens:
        await refused(tokens, sign(GOOD, **header))


async def test_headers_that_name_keys_cause_nothing(tmp_path):
    async with opened(tmp_path) as tokens:
        token = sign(GOOD, kid="unknown", jku="http://127.0.0.1:1/keys", x5u="file:///x", jwk={"kty": "oct", "k": "AA"})
        assert isinstance(await tokens.authenticate(exchange(bearer(token))), Principal)


async def test_issuer_and_audience_are_held_where_they_are_configured(tmp_path):
    async with opened(tmp_path, issuer="https://id.example", audience="gateway") as tokens:
        await refused(tokens, sign(GOOD))
        await refused(tokens, sign({**GOOD, "iss": "https://id.example"}))
        await refused(tokens, sign({**GOOD, "iss": "https://other.example", "aud": "gateway"}))
        await refused(tokens, sign({**GOOD, "iss": "https://id.example", "aud": ["other"]}))
        good = sign({**GOOD, "iss": "https://id.example", "aud": ["other", "gateway"]})
        assert isinstance(await tokens.authenticate(exchange(bearer(good))), Principal)


@pytest.mark.parametrize(
    ("algorithm", "config", "told"),
    [
        ("HS256", {}, None),
        ("RS256", {}, "issuer and audience not set"),
        ("RS256", {"issuer": "https://id.example"}, ": audience not set"),
        ("RS256", {"issuer": "https://id.example", "audience": "gateway"}, None),
    ],
)
def test_a_start_says_where_tokens_for_other_services_would_be_good(tmp_path, algorithm, config, told):
    lines = plugin(tmp_path, algorithm, **config).notices()
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


async def test_claims_may_have_other_names_and_a_tier_may_be_missing(tmp_path):
    names = Claims(organization="tenant", user="email", tier="plan", scopes="roles")
    async with opened(tmp_path, claims=names) as tokens:
        found = await tokens.authenticate(
            exchange(bearer(sign({"tenant": "acme", "email": "a@b", "roles": ["r"], "exp": NOW + 9})))
        )
        assert (found.organization, found.user, found.tier, found.scopes) == ("acme", "a@b", "", frozenset({"r"}))


async def test_long_and_deep_tokens_are_refused_before_they_cost(tmp_path):
    async with opened(tmp_path) as tokens:
        assert "8192" in (await refused(tokens, sign({**GOOD, "pad": "x" * 9000}))).message
        deep = base64.urlsafe_b64encode(b"[" * 5000).rstrip(b"=").decode()
        await refused(tokens, f"{deep}.{deep[:100]}.{'A' * 43}")


async def test_only_three_parts_are_its_business(tmp_path):
    async with opened(tmp_path) as tokens:
        for header in [
            bearer("ocg_abc_def"),
            bearer("opaque"),
            ("Authorization", "Basic YTpi"),
            ("X-API-Key", "a.b.c"),
        ]:
            assert await tokens.authenticate(exchange(header)) is None
        assert await tokens.authenticate(exchange()) is None


async def test_a_socket_may_bring_its_token_in_the_query(tmp_path):
    async with opened(tmp_path) as tokens:
        query = f"sessionId=1&token={sign(GOOD)}"
        assert isinstance(await tokens.authenticate(exchange(kind="websocket", query=query)), Principal)
        assert await tokens.authenticate(exchange(kind="http", query=query)) is None
        found = await tokens.authenticate(exchange(kind="websocket", query="token=ocg_key"))
        assert isinstance(found, Refusal)


async def test_a_key_set_is_rotated_by_kid(tmp_path):
    keys = {"keys": [jwk("RS256", "one"), jwk("EdDSA", "two")]}
    (tmp_path / "key").write_text(json.dumps(keys))
    async with opened(tmp_path, "RS256", algorithms=("RS256", "EdDSA")) as tokens:
        for algorithm, kid in (("RS256", "one"), ("EdDSA", "two")):
            token = sign(GOOD, algorithm, kid=kid)
            assert isinstance(await tokens.authenticate(exchange(bearer(token))), Principal)
        await refused(tokens, sign(GOOD, "RS256", kid="two"))
        await refused(tokens, sign(GOOD, "RS256", kid="three"))
        await refused(tokens, sign(GOOD, "RS256"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"secret": Secret("short")}, "shorter than the 32 bytes"),
        ({"algorithms": ("HS512",), "secret": Secret("s" * 63)}, "shorter than the 64 bytes"),
        ({"algorithms": ("HS256", "RS256")}, "cannot be accepted together"),
        ({"public_key_file": "key"}, "verified with a secret"),
        ({"secret": Secret("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ")}, "text of a key"),
        ({"secret": Secret("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ")}, "text of a key"),
        ({"secret": Secret(json.dumps(jwk("RS256", "one")))}, "text of a key"),
        ({"secret": Secret('{\n"keys": [' + json.dumps(jwk("EdDSA", "one"), indent=1) + "]}")}, "text of a key"),
        ({"secret": Secret("-----BEGIN CERTIFICATE-----\nMIIB" + "A" * 40)}, "text of a key"),
        ({"secret": Secret("\n" + pem("ES256").decode())}, "text of a key"),
        ({"algorithms": ("RS256",), "secret": Secret(SECRET)}, "public_key_file: missing"),
        ({"algorithms": ("RS256",), "secret": Secret(SECRET), "public_key_file": "key"}, "not with a secret"),
    ],
)
def test_keys_that_do_not_fit_refuse_the_start(tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        JsonWebTokens(JsonWebTokens.Config(**config), host(tmp_path))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not a key",
        b'{"keys": []}',
        json.dumps({"keys": [{"kty": "oct", "k": "A" * 43, "alg": "HS256"}]}).encode(),
        PRIVATE["RS256"].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        json.dumps({"keys": [jwt.get_algorithm_by_name("RS256").to_jwk(PRIVATE["RS256"], as_dict=True)]}).encode(),
        pem("ES256"),
        rsa.generate_private_key(65537, 1024)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    ],
)
async def test_a_file_without_a_fitting_public_key_refuses_the_start(tmp_path, text):
    (tmp_path / "key").write_bytes(text)
    with pytest.raises(StartFailed, match="public_key_file: key"):
        async with opened(tmp_path, "RS256"):
            pass


async def test_a_missing_file_refuses_the_start(tmp_path):
    with pytest.raises(StartFailed, match="cannot be read"):
        async with opened(tmp_path, "RS256", public_key_file="absent"):
            pass


async def test_the_embedded_secret_is_made_once_and_only_its_owner_reads_it(tmp_path):
    async with opened(tmp_path, secret=None) as first:
        token = first.mint(organization="acme", user="ada", tier="teams", scopes=("chat",), ttl=60)
    path = tmp_path / ".openclaw" / "jwt.secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) >= 32
    assert [p.name for p in path.parent.iterdir()] == ["jwt.secret"]
    async with opened(tmp_path, secret=None) as second:
        found = await second.authenticate(exchange(bearer(token)))
    assert (found.organization, found.user, found.tier, found.scopes) == ("acme", "ada", "teams", frozenset({"chat"}))
    path.write_bytes(b"cut")
    with pytest.raises(StartFailed, match="less than 32 bytes"):
        async with opened(tmp_path, secret=None):
            pass


async def test_minting_needs_a_tier_that_exists_and_a_secret(tmp_path):
    async with opened(tmp_path) as tokens:
        with pytest.raises(NotGrantable, match="did you mean 'teams'"):
            tokens.mint(organization="acme", user="ada", tier="team")
        with pytest.raises(NotGrantable, match="one word"):
            tokens.mint(organization="acme", user="ada", tier="teams", scopes=("a b",))
    (tmp_path / "other").mkdir()
    async with opened(tmp_path / "other", "EdDSA") as tokens:
        with pytest.raises(NoSecret, match="EdDSA with a public key"):
            tokens.mint(organization="acme", user="ada", tier="teams")
