"""The CSV file to which a benchmark adds a row after each measurement, so that an interrupted one repeats none."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def append(path: Path, row: Mapping[str, object], columns: Sequence[str]) -> None:
    """Add a row to a file, after a header if it is new."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
