"""How the documents become a site: `python3 .ci/dev.py run sphinx-build -W docs docs/_site`.

The pages stay plain Markdown that any viewer shows; what a site needs beyond that is added here. The site loads
nothing from elsewhere.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

project = "openclaw-gateway"
author = "The openclaw-gateway authors"
version = release = version_of("openclaw-gateway")

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_site", "examples/**/node_modules", "deploy/**"]
# Headings are linked to as any Markdown viewer links to them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = "openclaw-gateway"
html_copy_source = False

_CHAPTERS = {
    "Learn": ["tutorial/*"],
    "Do": ["how-to/*", "examples/**"],
    "Look up": ["reference/*"],
    "Understand": ["explanation/*", "SECURITY"],
    "Decisions": ["decisions/*"],
    "Changes": ["changelog"],
}
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")


def setup(app: Sphinx) -> None:
    app.connect("source-read", _prepare)


def _prepare(app: Sphinx, name: str, source: list[str]) -> None:
    folder = (Path(app.srcdir) / name).parent

    def inside(link: re.Match[str]) -> str:
        """A link that leads out of the documents, to the code, is text on the site."""
        return link[0] if (folder / link[2]).resolve().is_relative_to(Path(app.srcdir).resolve()) else link[1]

    source[0] = _LINK.sub(inside, source[0])
    if name == root_doc:
        for caption, pages in _CHAPTERS.items():
            lines = ["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *pages, "```", ""]
            source[0] += "\n".join(lines)
