"""Figures of what the network sees in each pretext task, and of what it makes of it: docs/tasks/TASK.png.

    python benchmarks/tasks_figures.py FOLDER [--only TASK,...]

FOLDER: images in train/CLASS; six are drawn. moco, byol, simsiam, barlowtwins, vicreg, swav, dino and amdim see the two
views of simclr.png. A task whose figures need it is trained first, with the steps that `tasks_speed.csv` gives for 2
minutes of one core.
"""

import argparse
import csv
from pathlib import Path

import torch
from tasks import BATCH, Job, composed, encoder_of, loaded, trained
from torch import Tensor

from sslrun.augment import Rng, generator
from sslrun.report.style import new_figure, styled
from sslrun.tasks.task import Task, build_task

HERE = Path(__file__).parent
FOLDER = HERE.parent / "docs" / "tasks"
MINUTES, SHOWN = 2.0, 6
UNTRAINED = ("simclr", "rotation", "jigsaw", "relative_patch", "simclr_rotation")
TRAINED = ("inpainting", "masked", "colorization", "autoencoder", "vae", "gan")


@styled()
def draw(rows: dict[str, Tensor], path: Path) -> None:
    """Draw one row for each kind of image, with its name, and one column for each image."""
    figure, axes = new_figure(len(rows), SHOWN, (0.7 * SHOWN + 0.9, 0.7 * len(rows)))
    for cells, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(cells, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).float().clamp(0, 1).numpy(), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.subplots_adjust(left=0.18, right=0.99, wspace=0.05, hspace=0.07, top=0.99, bottom=0.01)
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.03)


def rows_of(task: Task, images: Tensor) -> dict[str, Tensor]:
    """Return images, and what the trained task makes of them or, if it draws nothing, their views."""
    with torch.no_grad():
        return {"image": images, **(task.figures(images, Rng(generator(0))) or task.views(images, Rng(generator(0))))}


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="tasks; all by default")
    args = parser.parse_args()
    overrides = ("dataset=folder", f"dataset.root={args.folder.resolve()}", "device=cpu")
    data, device = loaded(overrides)
    rates = {r["task"]: float(r["images_per_second"]) for r in csv.DictReader((HERE / "tasks_speed.csv").open())}
    names = data.train.names
    chosen = [i for i, name in enumerate(names) if "google" in name][:: len(names) // (2 * SHOWN)][:SHOWN]
    images = data.train.images[torch.tensor(chosen)].float() / 255
    FOLDER.mkdir(exist_ok=True)
    for name in args.only.split(",") if args.only else (*UNTRAINED, *TRAINED):
        if name in TRAINED:
            steps = round(MINUTES * 60 * rates[name] / BATCH)
            task = trained(Job("", overrides, name, "", steps, "cpu", 0, False), data, device)
        else:
            config = composed((*overrides, f"pretext={name}"))
            task = build_task(config["pretext"], encoder_of(config, data, 0), config["dataset"]["image_size"]).eval()
        draw(rows_of(task, device.floats((images * 255).round().byte())), FOLDER / f"{name}.png")
        print(name, flush=True)


if __name__ == "__main__":
    main()
