"""The documents build into a site without a warning; it loads nothing from elsewhere, and can be searched offline."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: what a page loads by itself, in contrast to what it links to
LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]+src="([^"]+)"|<link[^>]+rel="(?:stylesheet|icon)"[^>]+href="([^"]+)"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [Path(sys.executable).with_name("sphinx-build"), "-q", "-W", "--keep-going", "-d", place / "cache"]
    done = subprocess.run([*command, DOCS, place / "html"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "html"


def test_every_document_is_a_page(site: Path) -> None:
    sources = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_site" not in path.parts}
    missing = [str(page) for page in sources if page.parts[0] != "deploy" and not (site / page).exists()]
    assert not missing


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    seen = 0
    for page in site.rglob("*.html"):
        for source, sheet in LOADED.findall(page.read_text()):
            seen += 1
            assert not (source or sheet).startswith(("http:", "https:", "//")), page
    assert seen


def test_it_can_be_searched_offline(site: Path) -> None:
    assert "ratelimit" in (site / "searchindex.js").read_text()


def test_links_between_pages_lead_to_headings(site: Path) -> None:
    ids: dict[Path, set[str]] = {}
    for page in site.rglob("*.html"):
        for target in re.findall(r'<a class="reference internal" href="([^"]+)"', page.read_text()):
            file, _, anchor = target.partition("#")
            found = (page.parent / file).resolve() if file else page
            assert found.exists(), f"{page}: {target}"
            if anchor and found.suffix == ".html":
                known = ids.setdefault(found, set(re.findall(r'id="([^"]+)"', found.read_text())))
                assert anchor in known, f"{page}: {target}"
