"""README and the pages on reliability and measurements: length, links, and the tests that they name."""

import re
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

PAGES = ("README.md", "benchmarks/README.md", "benchmarks/RESULTS.md", "CHANGELOG.md", "tests/CASES.md")


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES[1:])
def test_relative_links_outside_docs_resolve(page: str) -> None:
    path = REPOSITORY / page
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_cases_and_tests_that_the_reliability_page_names_exist() -> None:
    text = (REPOSITORY / "docs/reliability.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|.*\| ([\d, to]+) \|$", text, re.MULTILINE)
    cases = [int(n) for cell in cells for n in re.findall(r"\d+", cell)]
    assert len(cases) > 40
    assert max(cases) <= 72
    names = "\n".join(p.read_text(encoding="utf-8") for p in (REPOSITORY / "tests").rglob("test_*.py"))
    for expression in re.findall(r"pytest -k (\w+)", text):
        assert re.search(rf"def test_\w*{expression}", names), expression
    for path in re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)", text):
        assert Path(REPOSITORY, path).is_file(), path
