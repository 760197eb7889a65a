"""Pretraining on more images than fit into memory: the process's own memory, and its speed against data in memory.

    python benchmarks/memory_mapped.py FOLDER [IMAGES] [STEPS]

writes IMAGES (1,000,000) synthetic JPEG files of 64 px to FOLDER unless they exist. It then pretrains on them
alternately with the decoded array mapped from disk and with the whole array in memory; as root, also with the process
and its page cache limited to 3 GiB. "Own memory" is the largest RssAnon of the process, without the pages of the mapped
file, which the system may drop. Needs about 4 GB for the files, 12 GB for decoded images in $SSLRUN_CACHE, and for the
comparison 12 GB of memory.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

A_FOLDER = 1000
IN_MEMORY = """
import numpy as np
import sslrun.data.cache as cache
mapped = cache.decode_all
def decode_all(*args, **kwargs):
    decoded = mapped(*args, **kwargs)
    decoded.array = np.array(decoded.array)
    return decoded
cache.decode_all = decode_all
"""


def make(folder: Path, seed: int) -> None:
    """Write a thousand crops of two photographs, each with its own brightness."""
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    folder.mkdir(parents=True)
    for i in range(A_FOLDER):
        photo = photos[rng.integers(2)]
        side = int(rng.integers(48, 160))
        y, x = rng.integers(0, photo.shape[0] - side), rng.integers(0, photo.shape[1] - side)
        piece = Image.fromarray(photo[y : y + side, x : x + side]).resize((64, 64))
        ImageEnhance.Brightness(piece).enhance(rng.uniform(0.6, 1.3)).save(folder / f"{i:03d}.jpg", quality=80)


def limited() -> None:
    """Limit this process and its page cache to 3 GiB with a control group (Linux, as root)."""
    groups = Path("/sys/fs/cgroup")
    group, file = (groups, "memory.max") if (groups / "cgroup.controllers").exists() else (
        groups / "memory", "memory.limit_in_bytes")  # fmt: skip
    group = group / "sslrun-benchmark"
    group.mkdir(exist_ok=True)
    (group / file).write_text(str(3 << 30))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def pretrain(folder: Path, work: Path, steps: int, prepare: str, limit: bool = False) -> dict[str, float]:
    """Run `sslrun pretrain` and record its peak memory."""
    sweep = work / f"{time.time_ns()}"
    arguments = [
        "pretrain", "dataset=folder", f"dataset.root={folder / 'labeled'}", "dataset.image_size=64",
        f"unlabeled={folder / 'unlabeled'}", "pretext=rotation", "pretext.copies=1", "backbone.widths=[16,32,64,128]",
        "train.batch_size=128",
        f"train.steps={steps}", "train.evaluations=1", f"hydra.run.dir={sweep}",
    ]  # fmt: skip
    code = f"import sys\n{prepare}\nfrom sslrun.cli.app import main\nsys.argv = ['sslrun', *{arguments!r}]\nmain()"
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", code], preexec_fn=limited if limit else None)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak[0] = max([peak[0], *(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)])
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    watcher.join()
    summary = json.loads((sweep / "summary.json").read_text())
    assert summary["status"] == "finished", summary
    lines = [json.loads(line) for line in (sweep / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {
        "images": summary["images"],
        "own_memory_GiB": round(peak[0] / 2**20, 2),
        "images_per_second": round(float(np.median(rates[len(rates) // 4 :])), 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Write the files, decode them once, then run both ways alternately."""
    folder = Path(sys.argv[1]).resolve()
    images = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    missing = [i for i in range(images // A_FOLDER) if not (folder / "unlabeled" / f"{i:04d}" / "999.jpg").exists()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, [folder / "unlabeled" / f"{i:04d}" for i in missing], missing))
        labeled = [folder / "labeled" / c for c in ("a", "b") if not (folder / "labeled" / c).exists()]
        list(pool.map(make, labeled, range(10**6, 10**6 + len(labeled))))
    print("decoding and start:", json.dumps(pretrain(folder, folder / "runs", 1, "")), flush=True)
    for _ in range(2):
        print("mapped:   ", json.dumps(pretrain(folder, folder / "runs", steps, "")), flush=True)
        print("in memory:", json.dumps(pretrain(folder, folder / "runs", steps, IN_MEMORY)), flush=True)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        print("3 GiB:    ", json.dumps(pretrain(folder, folder / "runs", steps, "", limit=True)), flush=True)


if __name__ == "__main__":
    main()
