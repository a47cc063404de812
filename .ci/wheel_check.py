#!/usr/bin/env python3
"""Builds the wheel and proves it where nothing of the checkout is in reach: installed, served, asked, stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev import MODEL_LOCK, ROOT, RUN_LOCK, TEST_LOCK, create, environment, install, say

READY_WITHIN = 30.0
STOPPED_WITHIN = 30.0


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gateway-wheel-") as name:
        place = Path(name)
        wheel = build(place / "dist")
        commands = install_into_empty(place / "env", wheel)
        prove_served(commands, place / "somewhere-else")
    say(f"the wheel serves from an empty folder ({time.monotonic() - started:.0f} s)")


def build(out: Path) -> Path:
    tools = environment(ROOT / ".venv-test", TEST_LOCK, MODEL_LOCK)
    subprocess.run([tools / "python", "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, check=True)
    [wheel] = out.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    for needed in ("openclaw_gateway/py.typed", "openclaw_gateway/_assets/openclaw.toml", "openclaw_plugins/py.typed"):
        expect(needed in inside, f"{needed} is in the wheel")
    strays = [f for f in inside if f.startswith(("tests/", "docs/", "core/", "plugins/")) or "__pycache__" in f]
    expect(not strays, f"the wheel holds nothing but the two packages: {strays[:3]}")
    return wheel


def install_into_empty(folder: Path, wheel: Path) -> Path:
    """The locked run time and the wheel, and nothing that an index might add."""
    create(folder)
    install(folder, "--require-hashes", "--no-deps", "--requirement", str(RUN_LOCK))
    install(folder, "--no-deps", "--no-index", str(wheel))
    # The lock was made of pyproject.toml; that it satisfies the wheel's own metadata is a claim to check: with no index
    # to turn to, this fails on the first dependency that is not there.
    install(folder, "--no-index", "--dry-run", str(wheel))
    return folder / "bin"


def prove_served(commands: Path, place: Path) -> None:
    place.mkdir()
    home = subprocess.run(
        [commands / "python", "-c", "import openclaw_gateway as g; print(g.__file__)"],
        cwd=place, env=clean(), check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    expect(home.startswith(str(commands.parent)), f"the package comes from the new environment: {home}")

    with served(commands, place) as (url, gateway):
        status, answer = ask(f"{url}/health")
        expect(status == 200, f"GET /health: {status} {answer}")
        status, answer = ask(f"{url}/v1/chat/completions", {"model": "echo", "messages": []})
        expect(status == 401, f"a chat completion without a key is refused: {status} {answer}")

        made = subprocess.run(
            [commands / "openclaw-gateway", "keys", "create", "--org", "o", "--user", "u", "--tier", "teams", "--json"],
            cwd=place, env=clean(), check=True, capture_output=True, text=True,
        )  # fmt: skip
        key = json.loads(made.stdout)["key"]
        turn = {"model": "echo", "messages": [{"role": "user", "content": "is anybody there"}]}
        status, answer = ask(f"{url}/v1/chat/completions", turn, key)
        expect(status == 200, f"a chat completion with a key: {status} {answer}")
        said = answer["choices"][0]["message"]["content"]
        expect("is anybody there" in said, f"the echo model answers with its prompt: {said!r}")

        gateway.send_signal(signal.SIGTERM)
        expect(gateway.wait(STOPPED_WITHIN) == 0, f"SIGTERM ends it cleanly: {gateway.returncode}")
        try:
            ask(f"{url}/health")
        except (urllib.error.URLError, ConnectionError):
            return
        expect(False, "nothing listens any more")


@contextmanager
def served(commands: Path, place: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = place.with_suffix(".log")
    with log.open("wb") as sink:
        command = [str(commands / "openclaw-gateway"), "serve", "--port", str(port)]
        gateway = subprocess.Popen(command, cwd=place, env=clean(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        began = time.monotonic()
        while not ready(url):
            expect(gateway.poll() is None, f"the gateway stays up: it ended with {gateway.returncode}")
            expect(time.monotonic() - began < READY_WITHIN, f"ready within {READY_WITHIN:.0f} s")
            time.sleep(0.05)
        say(f"ready {time.monotonic() - began:.1f} s after the command")
        yield url, gateway
        expect("Traceback" not in log.read_text(), "no traceback in the log")
    except BaseException:
        sys.stderr.write(log.read_text())
        raise
    finally:
        if gateway.poll() is None:
            gateway.kill()
            gateway.wait()


def ready(url: str) -> bool:
    try:
        return ask(f"{url}/health/ready")[0] == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def ask(url: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    # A proxy of the surrounding machine has no business between two ends of the loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), AnyStatus())
    with opener.open(urllib.request.Request(url, data, headers), timeout=10) as response:  # noqa: S310 - loopback only
        text = response.read()
        return response.status, json.loads(text) if text else None


class AnyStatus(urllib.request.HTTPErrorProcessor):
    """A refusal is an answer to look at, not an exception."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response


def clean() -> dict[str, str]:
    """An environment in which no setting of the caller reaches the gateway."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def expect(held: bool, claim: str) -> None:
    if not held:
        sys.exit(f"wheel: not so: {claim}")


if __name__ == "__main__":
    main()
