"""A table that becomes a list of records where the terminal is too narrow for it."""

import statistics

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NARROWEST = 0.6  # of the width at which half of the cells of every column have one line
PADDING = 3  # characters of a column


class TableOrRecords(Table):
    """A rich table; on less than 60 % of its usual width each row is a block of lines, one line for each column."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or its records."""
        cells = [[str(cell) for cell in column.cells] for column in self.columns]
        headers = [" ".join(str(column.header).split()) for column in self.columns]
        if not self.row_count or options.max_width >= NARROWEST * _usual_width(cells, headers):
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble(self.title)
        first, width = "", max(map(cell_len, headers))
        for row in zip(*(column.cells for column in self.columns), strict=True):
            first = str(row[0]) or first  # a group of rows has it once
            yield ""
            for name, cell in zip(headers, (first, *row[1:]), strict=True):
                if str(cell):
                    lines = Table.grid(padding=(0, 2, 0, 0))
                    lines.add_column(width=width, overflow="fold")
                    lines.add_column(overflow="fold")
                    lines.add_row(Text(name, "bold"), cell)
                    yield lines
        if self.caption:
            yield Text.assemble("\n", self.caption)


def _usual_width(cells: list[list[str]], headers: list[str]) -> float:
    """Return the width of a table whose columns are as wide as their median cell, or the longest word of the header."""
    medians = [statistics.median(map(cell_len, column)) if column else 0 for column in cells]
    words = [max(map(cell_len, header.split()), default=0) for header in headers]
    return sum(max(pair) + PADDING for pair in zip(medians, words, strict=True))
