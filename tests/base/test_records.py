"""Tables on narrow terminals."""

import io

import pytest
from rich.console import Console

from sslrun.base.output import new_table

LONG = "outputs/pretrain/2026-11-27_22-10-16-676103"


def printed(width: int, rows: int = 2) -> list[str]:
    table = new_table(("run", "labels", "score"), {"labels"}, fold=True, title="Runs", caption="of this folder")
    for i in range(rows):
        table.add_row(LONG, "30" if i else "", f"accuracy {i}")
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 160])
def test_a_table_is_a_table_where_it_fits(width: int) -> None:
    (header,) = [line for line in printed(width) if "run" in line and "labels" in line]
    assert header.split() == ["run", "labels", "score"]


def test_a_narrow_terminal_gets_a_block_of_lines_for_each_row() -> None:
    lines = printed(38)
    assert all(len(line) <= 38 for line in lines)
    assert lines[0] == "Runs"
    assert lines[1:] == [
        "", "run     outputs/pretrain/2026-11-27_22", "        -10-16-676103", "score   accuracy 0",
        "", "run     outputs/pretrain/2026-11-27_22", "        -10-16-676103", "labels  30", "score   accuracy 1",
        "", "of this folder",
    ]  # fmt: skip


def test_one_long_cell_does_not_make_records() -> None:
    table = new_table(("image", "class"), fold=True)
    for i in range(5):
        table.add_row(f"{i}.jpg", "damaged: " + "x" * 200 if i == 3 else "cat")
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(table)
    assert "────" in capture.get()


def test_a_group_of_rows_has_its_first_cell_in_every_record() -> None:
    table = new_table(("labels", "network", "gain"))
    table.add_row("30", "scratch" + 30 * " network", "")
    table.add_row("", "simclr" + 30 * " network", "+3")
    console = Console(file=io.StringIO(), width=40)
    with console.capture() as capture:
        console.print(table)
    assert [line.split() for line in capture.get().splitlines() if line.startswith("labels")] == 2 * [["labels", "30"]]


def test_an_empty_table_has_its_header() -> None:
    assert any("run" in line for line in printed(38, rows=0))
