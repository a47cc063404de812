"""The page of reliability is what the command wrote, and has every row; every row names tests that are there."""

from __future__ import annotations

from pathlib import Path

from fire import page
from fire.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_made_of_the_results_and_of_nothing_else() -> None:
    assert page.PAGE.read_text() == page.page(page.read())


def test_every_row_is_on_the_page_and_a_row_that_was_not_run_has_no_figure() -> None:
    text = page.PAGE.read_text()
    results = page.read()
    assert results.keys() <= {row.key for row in ROWS}
    for row in ROWS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{row.key}` | {row.claim} |")]
        assert line == page.show(row, results.get(row.key))
        assert row.key in results or line.endswith("| not run | |")
    assert "| failed |" not in text


def test_every_row_names_tests_that_are_there() -> None:
    for row in ROWS:
        assert row.tests
        for test in row.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).exists(), test
            assert not name or f"def {name}(" in (ROOT / path).read_text(), test
