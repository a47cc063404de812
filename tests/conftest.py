"""Servers that many tests share, started on first use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import Postgres, Valkey, start_postgres, start_valkey


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    # It need not outlive the machine, and a slow disk is not to hold up a test; the tests that kill one have their own.
    with start_postgres("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off") as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of its own for a test."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    with start_valkey() as server:
        yield server


@pytest.fixture
def valkey_url(valkey: Valkey) -> str:
    """One server for all: a test keeps to names of its own."""
    return valkey.url
