"""Are suggested labels worth more than random ones?

    python benchmarks/suggest.py RUN [--labels 50] [--seeds 5] [--root FOLDER]

RUN is a pretrain run on labeled images. A logistic regression is fitted to the training images that `sslrun suggest`
would choose, and another to as many random ones, with C cross-validated on these labels alone; both are measured on
validation. Each seed is another choice and another random draw; differences are paired by seed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from sslrun.data.dataset import load_train, split_validation
from sslrun.data.labels import folds
from sslrun.device import Device
from sslrun.evaluation.intervals import mean_interval
from sslrun.evaluation.probe import best_c, regression
from sslrun.inference.suggestion import typical_and_diverse
from sslrun.models.features import features
from sslrun.models.trained import load_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root", help="of the data set, if it has moved")
    args = parser.parse_args()
    network = load_network(args.run)
    node = network.config["dataset"] | ({"root": args.root} if args.root else {})
    data, val = split_validation(load_train(node)[0], node)
    assert val is not None
    assert data.labels is not None
    assert val.labels is not None
    device = Device(
        name="cpu", precision="fp32", memory_format="channels_last", compile=None, deterministic=False, threads=None
    )
    device.claim()
    device.put(network.encoder)
    x, labels = features(network.encoder, data.images, device), data.labels
    xv, truth = features(network.encoder, val.images, device), val.labels

    def accuracy(rows: np.ndarray) -> float:
        classes = len(data.class_names)
        c = best_c(x[rows], labels[rows], folds(labels[rows].numpy(), 5, 0), classes)
        weight, bias = regression(x[rows], labels[rows], classes, c)
        return 100 * float((xv @ weight.T + bias).argmax(1).eq(truth).double().mean())

    gains = []
    print(f"{args.labels} of {len(data)} images, {len(val)} validation images")
    for seed in range(args.seeds):
        random = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).numpy()[: args.labels]
        chosen = typical_and_diverse(x.numpy(), args.labels, seed)
        a, b = accuracy(random), accuracy(chosen)
        classes = [len(set(labels[rows].tolist())) for rows in (random, chosen)]
        print(
            f"seed {seed}: random {a:.1f} ({classes[0]} classes), suggested {b:.1f} ({classes[1]}), {b - a:+.1f}",
            flush=True,
        )
        gains.append(b - a)
    gain = mean_interval(gains)
    print(f"suggested - random: {gain.mean:+.1f} points, 95 % {gain.low:.1f} to {gain.high:.1f}")


if __name__ == "__main__":
    main()
