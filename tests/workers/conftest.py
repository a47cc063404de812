"""One gateway of two workers for the tests that leave it whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import Postgres, start_valkey
from workers.pack import Pack


@pytest.fixture
def pack(started: Pack) -> Pack:
    """One that serves, whatever test came before: in parallel they come in any order."""
    if not started.runs:
        started.start()
    return started


@pytest.fixture(scope="module")
def started(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    name = postgres.create()
    with start_valkey() as valkey:
        found = Pack(tmp_path_factory.mktemp("pack"), postgres.url(name), valkey.url)
        try:
            found.start()
            yield found
        finally:
            found.end()
    postgres.drop(name)
