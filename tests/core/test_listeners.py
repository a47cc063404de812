"""What is listened on: sockets of one and of several, a listener for operations, certificates and their renewal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from cryptography import x509
from tls_kit import Authority

from openclaw_gateway.cli import main
from openclaw_gateway.errors import ConfigError, StartFailed
from openclaw_gateway.serving import listeners
from openclaw_gateway.testing import build, configuration, served


async def serial(port: int, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown, and verified against the authority."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
    shown = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    writer.close()
    await writer.wait_closed()
    return shown.serial_number


async def test_a_renewed_certificate_is_shown_after_a_reload(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue(tmp_path, 41)
    context = ssl.create_default_context(cafile=authority.file)
    edit = {"gateway.port": 0, "gateway.tls": {"certificate": "tls.pem", "key": "tls.key"}}
    async with served(build(configuration(tmp_path, edit=edit))) as server, aiohttp.ClientSession() as client:
        port = int(server.gateway.url.rsplit(":", 1)[1])
        assert server.gateway.url.startswith("https://")
        url = f"https://localhost:{port}/health/live"
        async with client.get(url, ssl=context) as answer:
            assert answer.status == 200 and "strict-transport-security" in answer.headers
        assert await serial(port, context) == 41
        authority.issue(tmp_path, 42)
        assert await serial(port, context) == 41
        assert await server.front.reload() == []
        assert await serial(port, context) == 42
        async with client.get(url, ssl=context) as answer:  # on the connection from before
            assert answer.status == 200
        # A pair that does not fit is refused, and the last good one stays.
        whole = (tmp_path / "tls.key").read_bytes()
        authority.issue(tmp_path, 43)
        (tmp_path / "tls.key").write_bytes(whole)
        with pytest.raises(ConfigError, match=r"gateway\.tls\.certificate"):
            await server.front.reload()
        assert await serial(port, context) == 42
        old = ssl.create_default_context(cafile=authority.file)
        with pytest.warns(DeprecationWarning):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        # An alert, or a reset where the connection was closed before it was read.
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await serial(port, old)


@pytest.mark.parametrize("fault", ["missing", "encrypted", "not PEM"])
def test_a_certificate_that_cannot_be_used_is_named_at_boot(tmp_path: Path, fault: str) -> None:
    if fault != "missing":
        Authority(tmp_path).issue(tmp_path, 1, password=b"x" if fault == "encrypted" else None)
    if fault == "not PEM":
        (tmp_path / "tls.pem").write_text("no certificate")
    path = configuration(tmp_path, edit={"gateway.tls": {"certificate": "tls.pem", "key": "tls.key"}})
    with pytest.raises(ConfigError) as refused:
        build(path)
    (problem,) = refused.value.problems
    assert problem.path == "gateway.tls.certificate" and problem.origin.startswith("openclaw.toml:")


async def test_operations_are_on_their_own_listener_alone_and_in_detail(tmp_path: Path) -> None:
    edit = {"gateway.port": 0, "gateway.operations": {"port": 0}, "gateway.edge": {"max_connections": 2}}
    async with served(build(configuration(tmp_path, edit=edit))) as server, aiohttp.ClientSession() as client:
        public, apart = server.gateway.url, server.gateway.operations_url
        for path in ("/health", "/health/live", "/health/startup", "/health/ready", "/metrics", "/info"):
            for method in ("GET", "HEAD"):
                async with client.request(method, f"{public}{path}") as answer:
                    assert answer.status == 404, path
                async with client.request(method, f"{apart}{path}") as answer:
                    assert answer.status == 200, path
        async with client.get(f"{apart}/health") as answer:
            assert {"disk", "memory", "event_loop"} <= set((await answer.json())["checks"])
        async with client.get(f"{apart}/info") as answer:
            assert "health" in (await answer.json())["plugins"]
        for path in ("/v1/models", "/api/v1/sessions", "/api/openapi.json", "/ws"):
            async with client.get(f"{apart}{path}") as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (404, "NOT_FOUND"), path
        async with client.get(f"{public}/v1/models") as answer:
            assert answer.status == 401
        async with client.get(f"{public}/api/openapi.json") as answer:
            documented = set((await answer.json())["paths"])
        assert "/metrics" not in documented and "/v1/models" in documented | {
            p.removeprefix("/api") for p in documented
        }
        # The caps of the public port are its own: a probe is answered while it is full.
        port = int(public.rsplit(":", 1)[1])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await held[-1][0].read()).startswith(b"HTTP/1.1 503 ")
        async with client.get(f"{apart}/health/ready") as answer:
            assert answer.status == 200
        for _, writer in held:
            writer.close()
        await server.front.reload()
        async with client.get(f"{apart}/info") as answer:
            assert (await answer.json())["configGeneration"] == 2
        # Readiness turns there, and goes on being answered when new work is refused.
        server.gateway.refuse_new_work()
        async with client.get(f"{apart}/health/ready") as answer:
            assert (answer.status, (await answer.json())["status"]) == (503, "draining")
    with pytest.raises(aiohttp.ClientConnectionError):
        async with aiohttp.ClientSession() as client, client.get(f"{apart}/health/live"):
            pass


async def test_without_that_listener_a_stranger_sees_no_details(tmp_path: Path) -> None:
    async with served(build(configuration(tmp_path, edit={"gateway.port": 0}))) as server:
        assert server.gateway.operations_url is None
        async with aiohttp.ClientSession() as client, client.get(f"{server.gateway.url}/health") as answer:
            assert answer.status == 200 and "checks" not in await answer.json()


def test_the_commands_know_the_listeners(tmp_path: Path) -> None:
    path = configuration(tmp_path, edit={"gateway.operations": {"port": 9191}, "gateway.port": 9190})

    def said(*arguments: str) -> Any:
        found = CliRunner().invoke(main, [*arguments, "--config", str(path), "--json"])
        assert found.exit_code == 0, found.output
        return json.loads(found.output)

    proved = {route["path"]: route["listener"] for route in said("routes", "--proof")["routes"]}
    assert {proved["/metrics"], proved["/health/ready"], proved["/info"]} == {"operations"}
    assert proved["/v1/chat/completions"] == proved["/ws"] == "public"
    assert said("info")["listeners"] == ["127.0.0.1:9190", "127.0.0.1:9191"]
    explained = said("pipeline", "--explain", "GET", "/metrics")
    assert (explained["route"], explained["refusal"]) == ("/metrics", None)
    with pytest.raises(ConfigError, match=r"gateway\.operations\.port: the same as gateway\.port"):
        build(configuration(tmp_path / "2", edit={"gateway.operations": {"port": 9190}, "gateway.port": 9190}))


@pytest.mark.parametrize("host", ["[::1]", "0.0.0.0:9090", "http://localhost", ""])
def test_what_is_no_address_is_a_problem_before_the_start(host: str, tmp_path: Path) -> None:
    edit = {"gateway.host": host, "gateway.operations": {"port": 9191, "host": host}}
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path, edit=edit))
    assert [problem.path for problem in caught.value.problems] == ["gateway.host", "gateway.operations.host"]
    assert "without brackets and without a port" in str(caught.value)


@pytest.mark.parametrize(("host", "shown"), [("::1", "[::1]"), ("::", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_the_address_of_a_listener_is_one_that_clients_can_read(host: str, shown: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listeners.url(host, [bound], tls=False) == f"http://{shown}:{bound.getsockname()[1]}"


def test_a_port_that_is_taken_is_named_and_not_shared() -> None:
    (mine,) = listeners.bind("127.0.0.1", 0)
    port = mine[0].getsockname()[1]
    mine[0].listen()
    for count in (1, 2):
        with pytest.raises(StartFailed, match=f"cannot listen on 127.0.0.1:{port}: address already in use"):
            listeners.bind("127.0.0.1", port, count)
    mine[0].close()
    # Nor is it shared with a gateway of several workers, which would take each other's requests.
    both = listeners.bind("127.0.0.1", port, 2)
    for (one,) in both:
        one.listen()
    for count in (1, 2):
        with pytest.raises(StartFailed):
            listeners.bind("127.0.0.1", port, count)
    for (one,) in both:
        one.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux spreads connections over sockets")
def test_connections_are_spread_over_the_sockets_of_one_address() -> None:
    both = listeners.bind("127.0.0.1", 0, 2)
    port = both[0][0].getsockname()[1]
    assert both[1][0].getsockname()[1] == port
    for (one,) in both:
        one.listen(256)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    took: Counter[int] = Counter()
    for i, (one,) in enumerate(both):
        while True:
            try:
                accepted, _ = one.accept()
            except BlockingIOError:
                break
            took[i] += 1
            accepted.close()
    # Binomial: fewer than 60 of 200 on one side happens once in a hundred million runs.
    assert sum(took.values()) == 200 and min(took.values()) > 60
    # Resting, the one leaves its share to the other, and comes back to the same address.
    addresses = listeners.unlisten(both[1])
    more = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for _ in range(20):
        both[0][0].accept()[0].close()
    (again,) = listeners.listen_again(addresses)
    assert again.getsockname()[1] == port
    for one in (*clients, *more, both[0][0], again):
        one.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the kernel takes what it likes")
async def test_the_kernel_takes_little_for_a_peer_that_does_not_read() -> None:
    [[listening]] = listeners.bind("127.0.0.1", 0)
    with listening, socket.socket() as peer:
        listening.listen()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        peer.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            accepted.setblocking(False)
            taken = 0
            for _ in range(20):
                with contextlib.suppress(BlockingIOError):
                    while taken < 2**22:
                        taken += accepted.send(b"x" * 20_000)
                await asyncio.sleep(0.01)
    assert 0 < taken < 2 * listeners.AHEAD  # megabytes without
