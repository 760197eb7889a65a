"""sslrun compared with alternatives: lightly's SimCLR, and the rotation recipe of the tutorials.

    python benchmarks/peers.py speed [--quick]
    python benchmarks/peers.py methods                  images/s of seven tasks
    python benchmarks/peers.py accuracy --seconds 300 --seeds 3 dataset=fashion_mnist
    python benchmarks/peers.py accuracy --seconds 300 --seeds 3 dataset=folder dataset.root=emoji
    python benchmarks/peers.py recipe dataset=folder dataset.root=emoji

`speed` compares images/s alternately; `accuracy` gives both the same seconds of SimCLR and compares nearest neighbors
on validation; `recipe` runs the whole tutorial and compares its test accuracy at 10 % of the labels with that of two
sslrun commands. All on the CPU, as the peers' scripts are written. lightly gets a separate environment in
.venv-lightly, which shares torch with this one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from scipy.stats import t as student

from sslrun.config.build import build
from sslrun.config.compose import compose_config
from sslrun.data.dataset import load_test, load_train, split_validation
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget
from sslrun.models.classifier import knn_probabilities
from sslrun.models.encoder import build_encoder
from sslrun.models.features import features
from sslrun.models.weights import load_state, strip_prefix
from sslrun.run import checkpoint
from sslrun.run.find import read_summary

HERE = Path(__file__).parent
LIGHTLY = HERE.parent / ".venv-lightly"
VERSION = "lightly==1.6.0"
PRETRAIN, TUNE = 20, 130  # steps of sslrun in `recipe`
IMAGES = 3000  # of the speed tests: noise, since the content makes no difference


def lightly_python() -> str:
    """Return the interpreter of lightly's environment, created at first use."""
    python = LIGHTLY / "bin" / "python"
    if not (LIGHTLY / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", LIGHTLY], check=True)
        site = next(LIGHTLY.glob("lib/python*/site-packages"))
        (site / "shared.pth").write_text(f"{next(p for p in sys.path if p.endswith('site-packages'))}\n")
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", VERSION], check=True)
        (LIGHTLY / "ready").touch()
    return str(python)


def peer(python: str, script: str, *arguments: Any) -> dict[str, Any]:
    """Run a script of benchmarks/peer_scripts and return what it printed."""
    command = [python, str(HERE / "peer_scripts" / script), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def sslrun(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run an sslrun command in a folder and return its summary, with the seconds that it took."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sslrun", arguments[0], "device=cpu", *arguments[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"sslrun {' '.join(arguments)}:\n{done.stderr}")
    newest = max((folder / "outputs" / arguments[0]).glob("*/summary.json"))
    return {**json.loads(newest.read_text()), "directory": newest.parent, "seconds": time.perf_counter() - began}


def spread(values: list[float], digits: int = 1) -> str:
    """Return mean and 95 % t-interval."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


# --------------------------------------------------------------------------------------------------------- speed


def speed(quick: bool) -> None:
    """Print the table of floor 3."""
    print("### 3. Ahead of peers: images/s of pretraining at 32 px\n")
    print("CPU. Images of the data set per second, medians of rounds; every command is a separate process;")
    print("start-up and first batch do not count. lightly: its CIFAR-10 benchmark's transform, loss, head, SGD,")
    print("batch 512, fp32, 2 workers.")
    print("Tutorial: PIL, DataLoader with 2 workers, fp32, batch 64, one random rotation per image; sslrun")
    print("uses one rotation, too (`pretext.copies=1`).\n")
    print("| task | backbone | sslrun | peer | ratio (lowest, highest) | floor |\n|---|---|---|---|---|---|")
    rounds = 1 if quick else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "noise.npz", train=array, val=array[:10])
        _as_folder(array, folder / "noise")
        both = ["dataset=folder", f"dataset.root={folder / 'noise'}", "dataset.image_size=32", "train.evaluations=1"]
        python = lightly_python()
        for backbone, floor, steps, seconds in (("smallcnn", 2.2, 80, 20), ("resnet18", 1.8, 10, 20)):
            rows = []
            for _ in range(rounds):
                lightly = peer(python, "lightly_simclr.py", folder / "noise.npz", backbone, seconds, 0)
                ours = sslrun(folder, "pretrain", f"backbone={backbone}", f"train.steps={steps}", *both)
                rows.append((ours["images_per_second"], lightly["images_per_second"]))
            _row("SimCLR, lightly", backbone, rows, floor)
        rows = []
        for _ in range(rounds):
            tutorial = peer(sys.executable, "tutorial_rotation.py", folder / "noise.npz", 1, 0, 0)
            ours = sslrun(folder, "pretrain", "pretext=rotation", "pretext.copies=1", "train.steps=100", *both)
            rows.append((ours["images_per_second"], tutorial["images_per_second"]))
        _row("rotation, tutorial", "smallcnn", rows, 2.5)
    print()


METHODS = ("moco", "byol", "simsiam", "barlowtwins", "vicreg", "swav", "dino")


def methods() -> None:
    """Print images/s of the tasks that lightly has, too."""
    print("### 5. Images/s of tasks that lightly has, too, at 32 px\n")
    print(
        "CPU. lightly: heads, transforms, batch size (256) and SGD of its examples, two crops, fp32, 2 workers; sslrun:"
    )
    print("its defaults. Every command is a separate process; start-up and first batch do not count.\n")
    print("| task | backbone | sslrun | lightly | ratio | floor |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "noise.npz", train=array)
        _as_folder(array, folder / "noise")
        both = [str(folder / "noise"), "dataset.image_size=32", "train.evaluations=1"]
        python = lightly_python()
        for network, steps in (("smallcnn", 60), ("resnet18", 10)):
            for task in METHODS:
                lightly = peer(python, "lightly_methods.py", folder / "noise.npz", network, task, 15)
                own = (f"pretext={task}", f"backbone={network}", f"train.steps={steps}")
                ours, theirs = (r["images_per_second"] for r in (sslrun(folder, "pretrain", *both, *own), lightly))
                floor = 3 if network == "smallcnn" else ""
                print(f"| {task} | {network} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} | {floor} |", flush=True)
    print()


def _as_folder(array: np.ndarray, folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(array):
        Image.fromarray(image).save(folder / f"{i}.png")


def _row(task: str, backbone: str, rows: list[tuple[float, float]], floor: float) -> None:
    ours, peers = (statistics.median(v) for v in zip(*rows, strict=True))
    ratios = sorted(a / b for a, b in rows)
    ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
    print(f"| {task} | {backbone} | {ours:.0f} | {peers:.0f} | {ratio} | {floor} |", flush=True)


# ------------------------------------------------------------------------------------------------------ accuracy


def accuracy(overrides: list[str], seconds: float, seeds: int) -> None:
    """Print one data set's rows of floor 4: nearest neighbors after equal seconds of SimCLR."""
    data = [o if not o.startswith("dataset.root=") else f"dataset.root={_absolute(o)}" for o in overrides]
    data.append("dataset.image_size=32")
    config: dict[str, Any] = OmegaConf.to_container(compose_config("pretrain", data, None), resolve=True)  # type: ignore[assignment]
    train, val = split_validation(load_train(config["dataset"])[0], config["dataset"])
    assert val is not None
    assert train.labels is not None
    assert val.labels is not None
    labels = train.labels, val.labels
    result: dict[str, list[float]] = {"random": [], "lightly": [], "sslrun": []}
    seen: dict[str, list[float]] = {"lightly": [], "sslrun": []}
    took: dict[str, list[float]] = {"lightly": [], "sslrun": []}
    python = lightly_python()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "data.npz", train=_array(train.images), val=_array(val.images))

        def knn(bank: torch.Tensor, queries: torch.Tensor) -> float:
            guesses = knn_probabilities(queries, bank, labels[0], len(train.class_names)).argmax(1)
            return 100 * float((guesses == labels[1]).float().mean())

        rate = sslrun(folder, "pretrain", *data, "train.steps=30", "train.evaluations=1")["images_per_second"]
        for seed in range(seeds):
            peers = peer(python, "lightly_simclr.py", folder / "data.npz", "smallcnn", seconds, seed, folder / "f.npz")
            stored = np.load(folder / "f.npz")
            result["lightly"].append(knn(torch.from_numpy(stored["train"]), torch.from_numpy(stored["val"])))
            steps = round(rate * seconds / config["train"]["batch_size"])
            ours = sslrun(
                folder,
                "pretrain",
                *data,
                f"train.steps={steps}",
                "train.epochs=null",
                "train.evaluations=1",
                f"seed={seed}",
            )
            result["sslrun"].append(knn(*_features(ours["directory"], train.images, val.images)))
            rate = ours["images_per_second"]
            if not seed:
                result["random"].append(knn(*_features(ours["directory"], train.images, val.images, random=True)))
            seen["lightly"].append(peers["images_per_second"] * peers["seconds"])
            seen["sslrun"].append(steps * config["train"]["batch_size"])
            took["lightly"].append(peers["seconds"])
            took["sslrun"].append(seen["sslrun"][-1] / ours["images_per_second"])
            print({k: v[-1] for k, v in result.items()}, file=sys.stderr, flush=True)
    what = f"{overrides[0].removeprefix('dataset=')}, {len(train)} images"
    for who in ("random", "lightly", "sslrun"):
        n = f"{statistics.mean(seen[who]):.0f} | {statistics.mean(took[who]):.0f}" if who in seen else " | "
        print(f"| {what} | {who} | {n} | {len(result[who])} | {spread(result[who])} |", flush=True)
    gains = [a - b for a, b in zip(result["sslrun"], result["lightly"], strict=True)]
    print(f"| {what} | difference | | | {len(gains)} | **{spread(gains)}** |", flush=True)


def _absolute(override: str) -> str:
    return str(Path(override.split("=", 1)[1]).expanduser().resolve())


def _array(images: Images) -> np.ndarray:
    return np.concatenate([b.permute(0, 2, 3, 1).numpy() for b in images.split(4096)])


def _features(run: Path, *images: Images, random: bool = False) -> list[torch.Tensor]:
    """Return the features of images from a run's encoder, or from the network before its first step."""
    config = read_summary(run)["config"]
    device = build(config["device"])
    device.claim()
    torch.manual_seed(0)
    state = strip_prefix(checkpoint.load(run / "last.pt")["model"], "encoder.")
    encoder = build_encoder(config["backbone"], 32, state["mean"].flatten().tolist(), state["std"].flatten().tolist())
    if not random:
        load_state(encoder, state, run)
    device.put(encoder)
    return [features(encoder, i, device) for i in images]


# -------------------------------------------------------------------------------------------------------- recipe


def recipe(overrides: list[str], seeds: int, ours: bool) -> None:
    """Print one data set's rows of floor 4: the whole tutorial (unless `ours`), and two sslrun commands."""
    data = [o if not o.startswith("dataset.root=") else f"dataset.root={_absolute(o)}" for o in overrides]
    data += ["dataset.image_size=32", "dataset.val_fraction=0"]  # nobody gets more labels than the others
    config: dict[str, Any] = OmegaConf.to_container(compose_config("pretrain", data, None), resolve=True)  # type: ignore[assignment]
    train = load_train(config["dataset"])[0]
    test = load_test(config["dataset"])
    assert train.labels is not None
    assert test.labels is not None
    rows: dict[str, list[tuple[float, float]]] = {"tutorial": [], "scratch": [], "sslrun": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(seeds):
            own = ("label_fraction=0.1", f"train.steps={TUNE}", "train.evaluations=1", f"seed={seed}")
            pretrained = sslrun(
                folder, "pretrain", *data, f"train.steps={PRETRAIN}", "train.evaluations=1", f"seed={seed}"
            )
            for start, before in (("sslrun", pretrained["seconds"]), ("scratch", 0.0)):
                tuned = sslrun(
                    folder, "finetune", "mode=finetune", f"init={'latest' if start == 'sslrun' else start}", *own
                )
                tested = sslrun(folder, "evaluate")
                rows[start].append((100 * tested["test/accuracy"], before + tuned["seconds"]))
            print({k: v[-1] for k, v in rows.items() if v}, file=sys.stderr, flush=True)
            labels = train.labels.numpy()
            labeled = LabelBudget(fraction=0.1, seed=seed).rows(labels)
            if ours:
                continue
            np.savez(folder / "data.npz", train=_array(train.images), train_labels=labels, labeled=labeled,
                     val=_array(test.images), val_labels=test.labels.numpy())  # fmt: skip
            full = peer(sys.executable, "tutorial_rotation.py", folder / "data.npz", 50, 30, seed)
            rows["tutorial"].append((100 * full["accuracy"], full["seconds"]))
            print({k: v[-1] for k, v in rows.items()}, file=sys.stderr, flush=True)
    what = f"{overrides[0].removeprefix('dataset=')}, {len(train)} images, {len(labeled)} labels"
    messages = {"tutorial": "tutorial, 50 + 30 epochs", "sslrun": f"SimCLR, {PRETRAIN} steps, then finetuning, {TUNE}",
            "scratch": f"from scratch, {TUNE} steps"}  # fmt: skip
    for who, label in messages.items():
        if not rows[who]:
            continue
        scores, seconds = ([r[i] for r in rows[who]] for i in (0, 1))
        print(f"| {what} | {label} | {statistics.mean(seconds):.0f} | {len(scores)} | {spread(scores)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "methods", "accuracy", "recipe"])
    parser.add_argument("data", nargs="*", help="dataset=... dataset.root=...")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--seconds", type=float, default=300, help="of pretraining")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ours", action="store_true", help="recipe without the tutorial, which takes most of the time")
    args = parser.parse_intermixed_args()
    if args.what == "speed":
        speed(args.quick)
    elif args.what == "methods":
        methods()
    elif args.what == "accuracy":
        accuracy(args.data, args.seconds, args.seeds)
    else:
        recipe(args.data, args.seeds, args.ours)
