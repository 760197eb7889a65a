"""The numbered cases of what must not break: each has a test that is named after it, and CASES.md lists them."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "CASES.md"
LAST = 72


def _tests_by_case() -> dict[int, list[str]]:
    """Read the numbers in the names of tests: `test_case_7_...`, `test_cases_2_to_6_...`, `test_cases_1_and_9_...`."""
    result: dict[int, list[str]] = {n: [] for n in range(1, LAST + 1)}
    for file in sorted(HERE.rglob("test_*.py")):
        for name in re.findall(r"^def (test_cases?_\d\w*)", file.read_text(), re.MULTILINE):
            a, word, b = re.match(r"test_cases?_(\d+)(?:_(to|and)_(\d+))?_", name).groups()  # type: ignore[union-attr]
            numbers = range(int(a), int(b) + 1) if word == "to" else [int(a), *([int(b)] if b else [])]
            for n in numbers:
                result[n].append(f"{file.relative_to(HERE).as_posix()}::{name}")
    return result


def rows() -> dict[int, tuple[str, list[str]]]:
    """Return what each row of the table says: the case, and its tests."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if re.match(r"\| \d", line)]
    return {int(n): (case, tests.split("<br>")) for n, case, tests in lines}


def test_every_case_has_a_test_and_the_table_names_it() -> None:
    table, result = rows(), _tests_by_case()
    assert list(table) == list(range(1, LAST + 1))
    assert not [n for n, tests in result.items() if not tests]
    wrong = {n: tests for n, tests in result.items() if sorted(table[n][1]) != sorted(f"`{t}`" for t in tests)}
    assert not wrong, f"python tests/test_cases.py writes the table anew; it differs in {wrong}"


def write() -> None:
    """Put the names of the tests into the table."""
    head = TABLE.read_text().split("| 1 |")[0]
    body = [
        f"| {n} | {rows()[n][0]} | {'<br>'.join(f'`{t}`' for t in tests)} |" for n, tests in _tests_by_case().items()
    ]
    TABLE.write_text(head + "\n".join(body) + "\n")


if __name__ == "__main__":
    write()
