"""Decoding compared with loops of Pillow, and the start-up of a run whose images are already decoded.

    python benchmarks/decoding.py FOLDER

writes crops of two photographs to FOLDER (2 GB): 300 JPEG of 2400 x 1600 px, 3,000 PNG of 300 px and 20,000 JPEG of
64 px. It decodes them alternately with `sslrun` (all cores, cache written) and with loops of Pillow (one core, nothing
kept): a plain one, and one whose draft mode decodes JPEGs at a fraction of their size. Then 70,000 JPEG of 28 px, on
which `sslrun pretrain` takes one step, the second time without decoding.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def make(folder: Path, n: int, width: int, height: int, suffix: str, seed: int) -> None:
    """Write n crops of two photographs, scaled to one size."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(n):
        photo = photos[rng.integers(2)]
        side = int(rng.integers(100, 400))
        y, x = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
        piece = Image.fromarray(photo[y : y + side, x : x + side]).resize((width, height), Image.Resampling.BICUBIC)
        piece.save(folder / f"{i:05d}.{suffix}")


def rate(files: list[str], image_size: int, how: str) -> float:
    """Return images per second."""
    import numpy as np
    from PIL import Image

    from sslrun.data.cache import cache_folder, decode_all

    shutil.rmtree(cache_folder(), ignore_errors=True)
    began = time.perf_counter()
    if how == "sslrun":
        decode_all(files, image_size, "crop", "rgb")
    else:
        for path in files:
            image = Image.open(path)
            if how == "Pillow with draft":
                image.draft("RGB", (2 * image_size, 2 * image_size))
            np.asarray(image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR))
    return len(files) / (time.perf_counter() - began)


def start(root: Path, work: Path) -> dict[str, float]:
    """Run one step of pretraining and return the number of images and the seconds of the whole command."""
    began = time.perf_counter()
    directory = work / f"{time.time_ns()}"
    command = ["pretrain", "dataset=folder", f"dataset.root={root}", "dataset.image_size=32", "train.steps=1",
               "train.evaluations=1", "train.batch_size=64", f"hydra.run.dir={directory}"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "sslrun", *command], check=True, capture_output=True)
    summary = json.loads((directory / "summary.json").read_text())
    return {"images": summary["images"], "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Measure."""
    top = Path(sys.argv[1]).resolve()
    os.environ["SSLRUN_CACHE"] = str(top / "cache")
    sets = {"2400x1600.jpg": (2, 150, 2400, 1600, 224), "300x300.png": (2, 1500, 300, 300, 64),
            "64x64.jpg": (10, 2000, 64, 64, 64), "28x28.jpg": (10, 7000, 28, 28, 32)}  # fmt: skip
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, (folders, n, width, height, _) in sets.items():
            for i in range(folders):
                if not (top / name / str(i)).exists():
                    pool.submit(make, top / name / str(i), n, width, height, name.split(".")[1], i)

    from sslrun.data.tree import find_images

    for name, (*_, image_size) in list(sets.items())[:3]:
        files = find_images(top / name)
        ways = ("Pillow", "Pillow with draft", "sslrun")
        rates = [[rate(files, image_size, how) for how in ways] for _ in range(3)]
        plain, draft, ours = (statistics.median(r) for r in zip(*rates, strict=True))
        print(
            f"{name:<14} to {image_size:>3} px, images/s: sslrun {ours:.0f}, Pillow {plain:.0f}, with draft {draft:.0f}"
        )
    for what in ("first start", "warm cache", "warm cache"):
        print(what, json.dumps(start(top / "28x28.jpg", top / "runs")), flush=True)
    began = time.perf_counter()
    imports = "import sslrun.run.job, sslrun.stages.pretrain, torch.utils.tensorboard"
    subprocess.run([sys.executable, "-c", imports], check=True)
    print(f"of which Python's imports {time.perf_counter() - began:.1f} s")

    from sslrun.data.dataset import load_train

    began = time.perf_counter()
    load_train({"_target_": "sslrun.data.sources.folder.folder", "root": str(top / "28x28.jpg"), "image_size": 32})
    print(f"listing 70,000 files and mapping what was decoded {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
