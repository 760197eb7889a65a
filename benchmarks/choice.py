"""By which rule should `mode=auto` choose among linear probe, finetuning and training from scratch?

    python benchmarks/choice.py STUDY [STUDY ...]

Each STUDY is a directory of `sslrun compare` whose test split consists of further training images, so that no test
split decides. For every pretraining and label subset, the rules choose by the out-of-fold predictions of the study's
classifiers; printed are the mean test accuracies of their choices, in %, as a table in Markdown, and which they chose.
"""

import argparse
import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sslrun.evaluation.selection import Predictions, choose, score
from sslrun.run.encoders import SCRATCH
from sslrun.training.candidates import OUT_OF_FOLD, PROBE, TUNED

CANDIDATES = (PROBE, TUNED, SCRATCH)  # the simplest first
NOT_PRETRAINED = (SCRATCH, "pixels")
Cell = tuple[str, str]


def cells(study: Path) -> Iterator[tuple[Cell, Predictions, dict[str, float]]]:
    """Yield budget and task, the predictions, and the test accuracy of each candidate, of a pretraining and subset."""
    folder = study.parents[2]  # where the study was started
    with (study / "results.csv").open() as file:
        rows = {(r["initialization"], r["pretrain_seed"], r["mode"], r["labels"], r["seed"]): r
                for r in csv.DictReader(file)}  # fmt: skip
    for (task, pretraining, mode, labels, seed), row in rows.items():
        if mode != PROBE or task in NOT_PRETRAINED:
            continue
        tuned, scratch = rows[task, pretraining, TUNED, labels, seed], rows[SCRATCH, "", TUNED, labels, seed]
        of = dict(zip(CANDIDATES, (row, tuned, scratch), strict=True))
        files = [np.load(folder / r["finetuned"] / OUT_OF_FOLD) for r in of.values()]
        names = [name for name, file in zip(of, files, strict=True) for _ in file["candidates"]]
        p = np.concatenate([file["probabilities"] for file in files])
        name = f"{row['dataset'].split()[-1]}, {labels} labels"
        yield (
            (name, task),
            Predictions(names, p, files[0]["labels"]),
            {k: 100 * float(r["test_accuracy"]) for k, r in of.items()},
        )


def choices(predictions: Predictions, test: dict[str, float]) -> dict[str, str]:
    """Return the candidate that each rule chooses."""
    names, p, labels = np.array(predictions.names), predictions.probabilities, predictions.labels
    common = predictions.common
    best, accuracy = {}, {}
    for name in CANDIDATES:
        variants = np.flatnonzero(names == name)
        i = variants[choose(Predictions([name] * len(variants), p[variants], labels))]
        best[name], accuracy[name] = predictions.correct[i, common], score(predictions, int(i), common)
    top = max(CANDIDATES, key=lambda name: accuracy[name])

    def within(errors: float, name: str) -> bool:
        d = best[top] - best[name]
        return float(d.mean()) <= errors * float(d.std(ddof=1)) / len(d) ** 0.5 + 1e-9

    return {
        "likeliest within two standard errors": str(names[choose(predictions)]),
        "simplest within one standard error": next(name for name in CANDIDATES if within(1, name)),
        "most accurate": top,
        **{f"always {name}": name for name in CANDIDATES},
        "the best, known afterwards": max(CANDIDATES, key=lambda name: test[name]),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    results: dict[str, dict[Cell, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for study in parser.parse_args().studies:
        for cell, predictions, test in cells(study.resolve()):
            for rule, name in choices(predictions, test).items():
                results[rule][cell].append(test[name])
                counts[rule][name] += 1
    columns = list(next(iter(results.values())))
    print(f"| rule | {' | '.join(f'{name}, {task}' for name, task in columns)} | mean | chosen |")
    print(f"|---{'|---' * (len(columns) + 2)}|")
    for rule, values in results.items():
        means = [float(np.mean(values[c])) for c in columns]
        chosen = ", ".join(f"{name} {n}" for name, n in counts[rule].most_common())
        print(f"| {rule} | {' | '.join(f'{m:.1f}' for m in [*means, float(np.mean(means))])} | {chosen} |")


if __name__ == "__main__":
    main()
