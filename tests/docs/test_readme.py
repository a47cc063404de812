"""The commands of README.md and of the quickstart run as written, in an empty folder, and print what is claimed.

A block of shell under `<!-- runs -->` is run, all of a page in one shell. The text under `<!-- prints -->` that follows
must be in its output: each line in that order, other lines between them allowed, `...` standing for any characters.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/tutorial/quickstart.md")
BLOCK = re.compile(r"^<!-- (runs|prints) -->\n```(?:sh|text)\n(.*?)^```$", re.M | re.S)


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="the tour is made with curl, which is not installed here")
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_print_what_it_says(page: str, tmp_path: Path) -> None:
    steps = steps_of((ROOT / page).read_text())
    assert len(steps) >= 6
    port = str(free_port())
    script = ["set -um"]
    for i, (commands, _) in enumerate(steps):
        folder = f"{tmp_path}/out"
        script.append(f"echo {i} > {folder}/last\n{{\n{commands.replace('9090', port)}}} > {folder}/{i} 2>&1")
    (tmp_path / "out").mkdir()
    run(["bash", "-c", "\n".join(script)], tmp_path, port)
    log = "".join(path.read_text() for path in tmp_path.glob("**/serve.log"))
    for i, (commands, expected) in enumerate(steps):
        path = tmp_path / "out" / str(i)
        said = path.read_text().replace(port, "9090") if path.exists() else "(not reached)"
        missing = first_missing(expected, said)
        assert missing is None, f"{commands}\nsaid:\n{said}\nand not, or not there:\n{missing}\n\nserve.log:\n{log}"
    assert "Traceback" not in log


def test_a_page_that_prints_something_else_would_fail() -> None:
    assert first_missing(["a ... c", "d"], "a b c\nx\nd e\n") is None
    assert first_missing(["d", "a"], "a b c\nd\n") == "a"
    assert first_missing(["limit: 3"], "limit: 4\n") == "limit: 3"


def test_the_two_commands_of_the_readme_exist() -> None:
    said = subprocess.run([sys.executable, ".ci/dev.py", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for command in re.findall(r"^python3 \.ci/dev\.py (\w+)$", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^\s+{command}\s", said, re.M)


def steps_of(text: str) -> list[tuple[str, list[str]]]:
    steps: list[tuple[str, list[str]]] = []
    for kind, content in BLOCK.findall(text):
        if kind == "runs":
            steps.append((content, []))
        else:
            steps[-1][1].extend(line for line in content.splitlines() if line.strip())
    return steps


def first_missing(expected: list[str], said: str) -> str | None:
    lines = iter(said.splitlines())
    for wanted in expected:
        # An output line may be longer than what the page shows of it.
        pattern = re.compile(".*?".join(re.escape(part.strip(" ")) + r"\s*" for part in wanted.split("...")))
        if not any(pattern.match(line.strip()) for line in lines):
            return wanted
    return None


def run(command: list[str], folder: Path, port: str) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "OPENCLAW_GATEWAY__PORT": port,
    }
    shell = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        shell.wait(timeout=240)
    except subprocess.TimeoutExpired:
        pytest.fail(f"step {(folder / 'out' / 'last').read_text()} of the page does not end")
    finally:
        stop(shell, folder)


def stop(shell: subprocess.Popen[str], folder: Path) -> None:
    # `set -m` gives each background job a group of its own, so the jobs are found by where they run.
    if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink().is_relative_to(folder) and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGTERM)
        except OSError:
            continue


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
