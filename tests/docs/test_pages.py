"""What the documents show is true: TOML passes `check`, quoted code is the code, links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from openclaw_gateway.assets import asset
from openclaw_gateway.testing import build, configuration

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE = ROOT / "docs" / "examples" / "openclaw-leaky-bucket"
TOML = re.compile(r"^```toml\n(.*?)^```$", re.M | re.S)
QUOTED = re.compile(r"^<!-- from (\S+) -->\n```python\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)


def blocks() -> Iterator[Any]:
    for page in PAGES:
        for i, text in enumerate(TOML.findall(page.read_text())):
            yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{i + 1}")


@pytest.mark.parametrize("text", list(blocks()))
def test_toml_of_the_documents_passes_check(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block names its file in its first line. It is a whole file, or is laid over the shipped one."""
    first = text.splitlines()[0]
    data = tomllib.loads(text)
    if first.startswith("# pyproject.toml"):
        return
    if "openclaw-leaky-bucket" in first or data.get("plugins", {}).get("ratelimit", {}).get("use") == "leaky_bucket":
        return  # test_example_plugin.py serves this one, with the package installed
    for name in re.findall(r'"env:(\w+)"', text):
        url = "redis://127.0.0.1:6379/0" if "REDIS" in name else "postgresql://u:p@127.0.0.1/db"
        monkeypatch.setenv(name, url if "URL" in name else "x" * 40)
    tier = re.match(r"# tiers/(\w+)\.toml", first)
    if tier is not None:
        tiers = {path.stem: path.read_text() for path in asset("tiers").glob("*.toml")}
        tiers[tier[1]] = tiers.get(tier[1], "") + "\n" + text
        gateway = build(configuration(tmp_path, tiers=tiers))
        assert tier[1] in gateway.tiers
        return
    assert first.startswith("# openclaw.toml"), f"the first line names the file: {first}"
    if "pipeline" in data.get("gateway", {}) and "plugins" in data:
        build(configuration(tmp_path, toml=text))
    else:
        build(configuration(tmp_path, edit=dict(leaves(data))))


def test_the_documents_show_tiers_and_configurations() -> None:
    assert len(list(blocks())) >= 10


def test_quoted_code_is_the_code_of_the_example() -> None:
    quoted = QUOTED.findall((ROOT / "docs" / "how-to" / "write-a-plugin.md").read_text())
    assert len(quoted) >= 6
    for name, text in quoted:
        assert text in (EXAMPLE / name).read_text(), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists() and found.is_relative_to(ROOT), f"{target} is not there"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    reached, waiting = {index}, [index]
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(FENCED.sub("", page.read_text())):
            found = (page.parent / target.partition("#")[0]).resolve()
            if found.suffix == ".md" and found not in reached and found.exists():
                reached.add(found)
                waiting.append(found)
    lost = [str(page.relative_to(ROOT)) for page in PAGES if page not in reached and page.name != "README.md"]
    assert not lost


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        dotted = f'{prefix}."{key}"' if prefix else f'"{key}"'
        if isinstance(value, dict) and value:
            yield from leaves(value, dotted)
        else:
            yield dotted, value


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
