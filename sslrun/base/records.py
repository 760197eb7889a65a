"""A table that becomes a list of records where the terminal is too narrow for it."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROWEST = 0.6  # of the natural width of a table


class TableOrRecords(Table):
    """A rich table; on less than 60 % of its width each row is a block of lines, one line for each column."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or its records."""
        natural = Measurement.get(console, options.update(max_width=10_000), self).maximum
        if options.max_width >= NARROWEST * natural or not self.row_count:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble(self.title)
        width = max(len(str(c.header)) for c in self.columns)
        for cells in zip(*(c.cells for c in self.columns), strict=True):
            yield ""
            for column, cell in zip(self.columns, cells, strict=True):
                if str(cell):
                    lines = Table.grid(padding=(0, 2, 0, 0))
                    lines.add_column(width=width, overflow="fold")
                    lines.add_column(overflow="fold")
                    lines.add_row(Text(str(column.header), "bold"), cell)
                    yield Padding(lines, 0)
        if self.caption:
            yield Text.assemble("\n", self.caption)
