"""What is installed is what was declared, locked by hash and explained, and nothing of one machine is in it."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = sorted((ROOT / ".ci").glob("requirements*.lock"))
OWN = {"openclaw_gateway", "openclaw_plugins"} | {"tests"} | {entry.stem for entry in ROOT.glob("tests/**/*")}
# A rise is a decision: raise a number together with the line that explains it.
MOST_DECLARED = 29
#: with what those bring; Litestar alone about twenty
MOST_RUN_TIME_PACKAGES = 60
#: of a module that serves; what grows beyond it holds a part that can stand alone
MOST_LINES = 300
#: packages whose `.pth` file runs code: none of those that run, and none of the tests but these
STARTS: set[str] = set()
#: the oldest release that may be locked: weaknesses and faults that are known of older ones are mended in it
FLOORS = {
    "aiohttp": "3.13.3", "asyncpg": "0.32", "cryptography": "44.0.1", "h11": "0.16.0", "jinja2": "3.1.6",
    "litestar": "2.25.0", "mako": "1.2.2", "pyjwt": "2.15.1", "redis": "8.1", "sqlalchemy": "2.1.9",
    "urllib3": "2.6.3", "uvicorn": "0.11.7", "websockets": "9.1",
}  # fmt: skip
#: commands that packages of the run time bring
COMMANDS = {
    "alembic", "cffi-gen-src", "dynaconf", "faker", "httpx", "idna", "jsonschema", "litestar", "mako-render",
    "markdown-it", "pygmentize", "rich-click", "uvicorn", "websockets",
}  # fmt: skip
TOP_LEVEL = {
    "LICENSE", "README.md", "core", "docs", "migrations", "monitoring", "openclaw.toml", "plugins", "pyproject.toml",
    "tests", "tiers",
}  # fmt: skip

ENTRY = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)==[^\s/:@]+(?P<marker> ; [^/:@]+)?( \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def test_there_are_five_locks() -> None:
    assert [lock.name for lock in LOCKS] == [
        "requirements-build.lock",
        "requirements-model.lock",
        "requirements-sdks.lock",
        "requirements-test.lock",
        "requirements.lock",
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_exact_versions_and_hashes_and_names_no_place(lock: Path) -> None:
    hashes: dict[str, int] = {}
    name = ""
    for line in lock.read_text().splitlines():
        if entry := ENTRY.fullmatch(line):
            # Another version for another Python is another entry; two for the same one are a mistake.
            name = entry["name"] + (entry["marker"] or "")
            assert name not in hashes and entry["name"] not in hashes, f"{name} is there twice"
            hashes[name] = 0
        else:
            assert HASH.fullmatch(line), f"neither an entry nor a hash: {line!r}"
            hashes[name] += 1
    assert hashes
    assert not [name for name, count in hashes.items() if count == 0]


def test_every_declared_dependency_is_locked() -> None:
    run, groups = names(PROJECT["project"]["dependencies"]), PROJECT["dependency-groups"]
    assert run <= locked("requirements.lock")
    assert run | names(groups["test"]) | names(groups["build"]) <= locked("requirements-test.lock")
    assert names(groups["build"]) <= locked("requirements-build.lock")
    assert names(groups["model"]) == locked("requirements-model.lock")
    assert names(groups["sdks"]) <= locked("requirements-sdks.lock")


def test_every_locked_version_satisfies_its_declaration() -> None:
    for text in PROJECT["project"]["dependencies"]:
        least = re.search(r">=([\d.]+)", text)
        assert least, f"{text}: a lower bound is declared, or a resolver may go back to the first release"
        assert numbers(locked_version("requirements.lock", name_of(text))) >= numbers(least[1]), text


def test_tests_run_on_the_versions_that_serve() -> None:
    for name in locked("requirements.lock"):
        assert locked_version("requirements-test.lock", name) == locked_version("requirements.lock", name)


def test_every_declared_dependency_has_its_reason_and_no_other_has() -> None:
    text = (ROOT / "docs/decisions/dependencies.md").read_text()
    explained = {canonical(name) for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)}
    assert explained == declared()


def test_the_run_time_stays_small_and_the_pages_say_how_small_it_is() -> None:
    every, own = locked("requirements.lock"), names(PROJECT["project"]["dependencies"])
    assert len(own) <= MOST_DECLARED and own <= every
    assert len(every) <= MOST_RUN_TIME_PACKAGES
    reasons = (ROOT / "docs/decisions/dependencies.md").read_text()
    table = reasons.partition("## Run time\n")[2].partition("\nOptional")[0]
    assert {canonical(name) for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)} == own
    assert f"Of the {len(every)} packages in the run-time lock {len(own)} are in the list above." in reasons
    security = (ROOT / "docs/explanation/security.md").read_text()
    assert f"{len(own)} packages are declared for run time; with what they bring, {len(every)}" in security


def test_the_code_imports_only_what_is_declared_for_run_time() -> None:
    extras = [text for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
    allowed = names(PROJECT["project"]["dependencies"]) | names(extras)
    assert undeclared([*ROOT.glob("core/**/*.py"), *ROOT.glob("plugins/**/*.py")], allowed, but="testing") == []


def test_the_tests_import_only_what_is_declared() -> None:
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("core/openclaw_gateway/testing/**/*.py")]
    assert undeclared(files, declared()) == []


def test_no_module_is_too_long_to_be_read_at_once() -> None:
    lengths = {
        path: len(path.read_text().splitlines())
        for tree in ("core", "plugins", "migrations")
        for path in (ROOT / tree).rglob("*.py")
    }
    assert len(lengths) > 200
    assert {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_scripts_of_the_store_are_files_and_nothing_is_unpickled() -> None:
    code = [file for folder in ("core", "plugins") for file in (ROOT / folder).rglob("*.py")]
    assert len(code) > 100
    unsafe = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
    assert [f"{file}:{line}" for file in code for line, name in imports(file) if name.split(".")[0] in unsafe] == []
    # A script that is put together could hold what a client sent; it has to be a constant, or a file.
    assert [found for file in code for found in assembled(file, "redis.call(")] == []
    assert list((ROOT / "plugins").rglob("*.lua"))


def assembled(file: Path, part: str) -> Iterator[str]:
    """Where a text with this part in it is made of other texts: an f-string, a sum, a format."""
    for node in ast.walk(ast.parse(file.read_text())):
        made = isinstance(node, ast.JoinedStr | ast.BinOp) or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("format", "replace")
        )
        if made and any(isinstance(n, ast.Constant) and part in str(n.value) for n in ast.walk(node)):
            yield f"{file}:{node.lineno}"


def test_nothing_new_lies_at_the_top() -> None:
    seen = {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")}
    assert seen - TOP_LEVEL == set()


def undeclared(files: Iterable[Path], allowed: set[str], but: str = "") -> list[str]:
    providers = importlib.metadata.packages_distributions()
    wrong = []
    for file in files:
        if but and but in file.parts:
            continue
        for line, module in imports(file):
            if module in sys.stdlib_module_names or module in OWN:
                continue
            if not allowed & {canonical(name) for name in providers.get(module, [module])}:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {module}")
    return wrong


def imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def declared() -> set[str]:
    texts = list(PROJECT["project"]["dependencies"])
    for more in (*PROJECT["project"]["optional-dependencies"].values(), *PROJECT["dependency-groups"].values()):
        texts += more
    return names(texts)


def locked(lock: str) -> set[str]:
    return {entry["name"] for entry in ENTRY.finditer((ROOT / ".ci" / lock).read_text())}


def locked_version(lock: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", (ROOT / ".ci" / lock).read_text(), re.MULTILINE)
    assert found, f"{name} is not in {lock}"
    return found[1]


def names(texts: Iterable[str]) -> set[str]:
    return {name_of(text) for text in texts}


def name_of(text: str) -> str:
    return canonical(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0])


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    sbom = script("sbom")
    assert sbom.SBOM.read_text() == sbom.text(), "write it anew: python3 .ci/dev.py run python .ci/sbom.py"
    assert {one["name"] for one in sbom.document()["components"]} == locked("requirements.lock")


def test_a_lock_takes_no_release_of_the_last_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is asked for: what mends a weakness is not waited for."""
    dev, called = script("dev"), []
    monkeypatch.setattr(dev, "call", called.append)
    monkeypatch.setattr(dev.shutil, "which", lambda name: name)
    dev.lock(["--upgrade", "--exclude-newer-package", "litestar=2026-01-01"])
    assert len(called) == len(dev.LOCKS)
    for command in called:
        before = datetime.fromisoformat(command[command.index("--exclude-newer") + 1])
        assert abs(datetime.now(UTC) - timedelta(days=7) - before) < timedelta(minutes=5)
        assert {"--upgrade", "litestar=2026-01-01"} <= {*command}
    called.clear()
    dev.lock(["--exclude-newer", "2026-01-01"])
    assert all(command.count("--exclude-newer") == 1 and "2026-01-01" in command for command in called)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_locked_release_is_older_than_its_floor(lock: Path) -> None:
    text = lock.read_text()
    found = {name: locked_version(lock.name, name) for name in FLOORS if re.search(rf"^{name}==", text, re.MULTILINE)}
    assert {n: v for n, v in found.items() if numbers(v) < numbers(FLOORS[n])} == {}
    assert lock.name != "requirements.lock" or len(found) >= 8
    assert not {"python-jose", "openclaw"} & locked(lock.name)


def test_whatever_installs_takes_what_the_locks_say_and_nothing_else() -> None:
    installs = []
    for file in (*(ROOT / ".ci").iterdir(), ROOT / "docs/deploy/Dockerfile"):
        text = file.read_text().replace("\\\n", " ") if file.is_file() else ""
        installs += [line for line in text.splitlines() if re.search(r"\binstall\b", line) and "requirements" in line]
    assert len(installs) >= 2
    assert [line for line in installs if "--require-hashes" not in line or "--no-deps" not in line] == []


def test_no_package_brings_a_command_that_nobody_expects() -> None:
    """Commands of a package lie on the PATH beside the gateway's own."""
    brought = {
        entry.name: canonical(distribution.metadata["Name"])
        for distribution in importlib.metadata.distributions()
        for entry in distribution.entry_points
        if entry.group in ("console_scripts", "gui_scripts")
    }
    run = locked("requirements.lock")
    assert {name for name, package in brought.items() if package in run} <= COMMANDS
    assert brought["openclaw-gateway"] == "openclaw-gateway"
    assert not {*brought} & {"python", "python3", "pip", "sh", "bash", "git", "ssh", "sudo", "env", "openclaw"}


def test_no_installed_package_runs_code_at_every_start() -> None:
    """A `.pth` file may hold code that runs whenever Python does: only those that are known may be there."""
    found = set()
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if file.suffix == ".pth" and "import " in Path(str(file.locate())).read_text():
                found.add(distribution.metadata["Name"])
    assert found <= STARTS, found - STARTS
