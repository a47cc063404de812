"""TLS to PostgreSQL in the words of its URL: who is trusted, who we say we are, and what is wrong with a file."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tls_kit import Authority

from openclaw_gateway.api import StartFailed
from openclaw_gateway.errors import ConfigError
from openclaw_gateway.testing import build, configuration

from .test_database import database

FILES = {"PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue(tmp_path, 1)
    return made


@asynccontextmanager
async def behind_tls(folder: Path, url: str, *, clients: Authority | None = None) -> AsyncIterator[str]:
    """Stand in front of a PostgreSQL that speaks no TLS, for localhost alone; give its URL, without parameters."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.pem", folder / "tls.key")
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.file)
    where, _, name = url.rpartition("/")
    port = int(where.rsplit(":", 1)[1])
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        await reader.readexactly(8)  # the wish for TLS
        writer.write(b"S")
        inside, server = await asyncio.open_connection("127.0.0.1", port)
        try:
            with suppress(OSError):
                await writer.start_tls(context)
                await asyncio.gather(pass_on(reader, server), pass_on(inside, writer))
        finally:
            for each in (writer, server):
                each.transport.abort()

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(65_536):
            sink.write(piece)
            await sink.drain()
        sink.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"postgresql://postgres@localhost:{listener.sockets[0].getsockname()[1]}/{name}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def started(folder: Path, url: str, **given: str) -> None:
    async with database(folder, url=f"{url}?{urlencode(given)}", auto_upgrade=True).lifespan():
        pass


async def test_the_server_proves_who_it_is_to_the_authority_that_the_url_names(
    postgres_url: str, tmp_path: Path, authority: Authority
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with behind_tls(tmp_path, postgres_url) as url:
        await started(tmp_path, url, sslmode="verify-full", sslrootcert=str(authority.file))
        for mode in ("require", "verify-ca", "verify-full"):
            with pytest.raises(StartFailed, match="its certificate is not trusted: "):
                await started(tmp_path, url, sslmode=mode, sslrootcert=str(other.file))
        elsewhere = url.replace("localhost", "127.0.0.1")  # the certificate is for localhost
        await started(tmp_path, elsewhere, sslmode="verify-ca", sslrootcert=str(authority.file))
        with pytest.raises(StartFailed, match="its certificate is not trusted: "):
            await started(tmp_path, elsewhere, sslmode="verify-full", sslrootcert=str(authority.file))
        with pytest.raises(StartFailed, match="its certificate is not trusted: "):  # the machine's own authorities
            await started(tmp_path, url, sslrootcert="system")


async def test_we_prove_who_we_are_by_the_certificate_that_the_url_names(
    postgres_url: str, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"sslcert": str(tmp_path / "tls.pem"), "sslkey": str(tmp_path / "tls.key")}
    async with behind_tls(tmp_path, postgres_url, clients=authority) as url:
        await started(tmp_path, url, sslmode="require", **pair)  # it is shown, and proves nothing of the server
        await started(tmp_path, url, sslmode="verify-full", sslrootcert=str(authority.file), **pair)
        monkeypatch.setenv("PGSSLROOTCERT", str(authority.file))  # libpq's variables stand in for what is not there
        await started(tmp_path, url, sslmode="verify-full", **pair)
        with pytest.raises(StartFailed):
            await started(tmp_path, url, sslmode="verify-full", sslrootcert=str(authority.file))


async def test_the_parameters_for_a_pooler_of_transactions_are_read(postgres_url: str, tmp_path: Path) -> None:
    await started(tmp_path, postgres_url, statement_cache_size="0", prepared_statement_cache_size="0")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sslmode": "verify"}, "sslmode is 'verify'; expected one of: disable, allow, prefer, require, verify-ca, "),
        (
            {"sslrootcert": "authority.pem"},
            "sslrootcert is of no use with sslmode=prefer; expected sslmode=verify-full",
        ),
        ({"sslmode": "verify-full", "sslrootcert": "none.pem"}, "none.pem' cannot be read: No such file or directory"),
        ({"sslmode": "verify-full", "sslrootcert": "tls.key"}, "tls.key' holds no certificate; expected PEM"),
        ({"sslmode": "verify-ca", "sslrootcert": "system"}, "sslrootcert=system is of no use with sslmode=verify-ca"),
        (
            {"sslmode": "verify-ca", "sslcert": "tls.pem"},
            "nothing says whom sslmode=verify-ca trusts; expected sslroot",
        ),
        ({"sslcrll": "a.crl"}, "the parameter 'sslcrll' is not read; did you mean sslcert?"),
        (
            {"channel_binding": "require"},
            "the parameter 'channel_binding' is not read; expected one of: gsslib, host, ",
        ),
        ({"statement_cache_size": "none"}, "statement_cache_size is no number; expected 0 behind a pooler of transact"),
        ({"sslmode": "require", "sslkey": "tls.key"}, "sslkey is of no use alone; expected sslcert too"),
        ({"sslmode": "require", "sslcert": "none.pem"}, "none.pem' cannot be read: No such file or directory"),
        ({"sslmode": "require", "sslcert": "tls.pem", "sslkey": "none"}, "none' cannot be read: No such file or "),
        ({"sslmode": "require", "sslcert": "tls.pem"}, "cannot be used; expected a certificate in PEM and its key"),
        (
            {"sslmode": "require", "sslcert": "tls.pem", "sslkey": "shut.key"},
            "expected a certificate in PEM and its key",
        ),
    ],
)
def test_what_is_wrong_is_a_problem_at_the_url(
    tmp_path: Path, authority: Authority, given: dict[str, str], told: str
) -> None:
    certificate, key = (tmp_path / name for name in ("tls.pem", "tls.key"))
    before = certificate.read_bytes(), key.read_bytes()
    authority.issue(tmp_path, 2, password=b"shut")
    key.rename(tmp_path / "shut.key")
    certificate.write_bytes(before[0])
    key.write_bytes(before[1])
    placed = {k: v if k == "sslmode" or v == "system" else str(tmp_path / v) for k, v in given.items()}
    url = f"postgresql://u:hidden@db.internal/g?{urlencode(placed)}"
    with pytest.raises(ConfigError) as caught:
        build(configuration(tmp_path / "here", edit={"plugins.database.url": url}))
    (problem,) = caught.value.problems
    assert problem.path == "plugins.database.url" and told in problem.message
    assert "hidden" not in str(problem)
