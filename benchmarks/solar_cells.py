"""Write the photos of solar cells of the package elpv-dataset as a folder of images with a label file.

    pip install --target PACKAGE --no-deps elpv-dataset
    python benchmarks/solar_cells.py PACKAGE FOLDER

2,624 photos of 300 x 300 px in electroluminescence (Buerhop-Lux et al. 2018, Deitsch et al. 2019), gray. A cell is
defective if the probability that the authors give is at least 0.5 (821), else functional (1,803).
"""

import argparse
import csv
import shutil
from pathlib import Path


def main() -> None:
    """Copy the photos and write labels.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    data = args.package / "elpv_dataset" / "data"
    rows = [line.split() for line in (data / "labels.csv").read_text().splitlines()]
    args.folder.mkdir(parents=True)
    for name, _, _ in rows:
        shutil.copy(data / name, args.folder / Path(name).name)
    with (args.folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label"])
        labels = ("functional", "defective")
        writer.writerows([Path(name).name, labels[float(probability) >= 0.5]] for name, probability, _ in rows)


if __name__ == "__main__":
    main()
