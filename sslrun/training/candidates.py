"""The candidates of a finetuning, and their predictions on labeled images that their training did not use."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sslrun.base.console import progress
from sslrun.base.files import replacing
from sslrun.config.grammar import with_override
from sslrun.config.types import Node
from sslrun.data.labeled import Labeled
from sslrun.data.labels import Fold, folds
from sslrun.device import Device
from sslrun.evaluation.selection import Predictions, score
from sslrun.models.initialization import Network
from sslrun.run.encoders import SCRATCH
from sslrun.training.folds import FoldTraining, fold_probabilities, images_of
from sslrun.training.frozen import Frozen
from sslrun.training.jobs import run_jobs

AUTO, TUNED, PROBE, KNN = "auto", "finetune", "probe", "knn"  # values of mode=
OUT_OF_FOLD = "out_of_fold.npz"  # in a run directory: the predictions by which was chosen
REGRESSION_FOLDS, TRAINING_FOLDS, HELD_OUT = 5, 3, 5
FEW_LABELS = 500  # up to here, trainings are cross-validated; above, one of five folds is enough
ALL_FOLDS_UP_TO = 5000  # labels; above, regressions, too, use one of five folds


@dataclass(frozen=True)
class Folds:
    """The folds in which candidates are compared; none where every class has one label."""

    regressions: Sequence[Fold]
    trainings: Sequence[Fold]


def folds_of(labeled: Labeled, seed: int) -> Folds:
    """Return the folds in which candidates are compared: of `labeled.every`.

    Inside a label budget, regressions have up to five folds and trainings up to three, or above 500 labels one of five:
    a fifth is held out, however small a class is. Above 5,000 labels regressions have the same one. A validation split
    outside the budget is one fold.

    Raises:
        UserError: groups have images of several classes, so that a fold would lack one.
    """
    data, validation = labeled.budget, len(labeled.val or ())
    if labeled.validation == "extra":
        outside = [Fold(np.arange(len(data)), np.arange(len(data), len(data) + validation))]
        return Folds(outside, outside)
    assert data.labels is not None
    labels = data.labels.numpy()
    for_regressions = folds(labels, REGRESSION_FOLDS, seed, data.groups)
    if len(data) <= FEW_LABELS:
        return Folds(for_regressions, folds(labels, TRAINING_FOLDS, seed, data.groups))
    fifth = folds(labels, HELD_OUT, seed, data.groups, limited=False)[:1]
    return Folds(for_regressions if len(data) <= ALL_FOLDS_UP_TO else fifth, fifth)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A classifier that may be trained.

    Attributes:
        name: PROBE, KNN, TUNED or SCRATCH.
        setting: of a search, or ''.
        config: of the finetuning, with this setting.
    """

    name: str
    setting: str
    config: Node

    @property
    def mode(self) -> str:
        """Return the value of `mode=` that trains this candidate."""
        return TUNED if self.name == SCRATCH else self.name

    @property
    def is_trained(self) -> bool:
        """Return whether the network is trained; otherwise it is frozen."""
        return self.name in (TUNED, SCRATCH)

    def __str__(self) -> str:
        return " ".join(filter(None, [self.name, self.setting]))


def candidates_of(config: Node, search: Sequence[str]) -> list[Candidate]:
    """Return the candidates of a finetuning, the simplest first.

    Args:
        config: of the finetuning, resolved.
        search: settings to try for every trained network.
    """
    from_scratch = config["init"] == SCRATCH
    trained = SCRATCH if from_scratch else TUNED
    names = {AUTO: [SCRATCH] if from_scratch else [PROBE, TUNED, SCRATCH], TUNED: [trained]}
    out = []
    for name in names.get(config["mode"], [config["mode"]]):
        for setting in (search if name in (TUNED, SCRATCH) else []) or [""]:
            out.append(Candidate(name, setting, with_override(config, setting) if setting else config))
    return out


def frozen_network(
    name: str, network: Network, config: Node, labeled: Labeled, folds: Folds, device: Device, parallel: bool
) -> Frozen:
    """Return the network with which a candidate starts.

    Args:
        name: of the candidate.
        network: with its initial weights.
        config: of the finetuning, with `balance` resolved.
        parallel: use all cores, if there are many labels.
    """
    torch.manual_seed(config["seed"])
    encoder = network.encoder(labeled.pool)
    device.put(encoder)
    many = len(labeled.budget) > FEW_LABELS
    regressions = folds.regressions[:1] if many and name == SCRATCH else folds.regressions  # choose only its pooling
    return Frozen(
        encoder, config["pooling"], labeled.every, regressions, device, config["balance"], name == KNN,
        parallel and many,
    )  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Candidates and their variants, evaluated on images that their training did not use.

    Attributes:
        candidates: of each of the A variants; several of one candidate if it is a regression on frozen features.
        variants: their names.
        predictions: of the variants.
    """

    candidates: Sequence[Candidate]
    variants: Sequence[str]
    predictions: Predictions

    def scores(self) -> dict[str, float]:
        """Return the score of each candidate, that of its best variant, on the images that all candidates have."""
        out: dict[str, float] = {}
        rows = self.predictions.common
        for i, candidate in enumerate(self.candidates):
            out[str(candidate)] = max(out.get(str(candidate), 0.0), score(self.predictions, i, rows))
        return out


def compared(
    candidates: Sequence[Candidate], frozen: Mapping[str, Frozen], folds: Folds, parallel: bool, directory: Path
) -> Compared:
    """Evaluate candidates on the validation parts of folds.

    Each training is a job. Its result is kept in the directory, so that an interrupted run repeats none.

    Args:
        candidates: the simplest first.
        frozen: the network of each candidate's name.
        folds: at least one.
        parallel: use all cores.
        directory: of the run.
    """
    data = frozen[candidates[0].name].data
    assert data.labels is not None
    trained = [c for c in candidates if c.is_trained]
    results = iter(_trained(trained, frozen, folds.trainings, parallel, directory))
    of, variants, blocks = [], [], []
    for candidate in candidates:
        its = frozen[candidate.name]
        names = [""] if candidate.is_trained else its.variants
        of += [candidate] * len(names)
        variants += [f"{candidate} {name}".strip() for name in names]
        blocks.append(next(results)[None] if candidate.is_trained else its.probabilities)
    macro = any(c.config["balance"] != "none" for c in candidates)
    groups = None if data.groups is None else np.unique(data.groups, return_inverse=True)[1]
    predictions = Predictions([c.name for c in of], np.concatenate(blocks), data.labels.numpy(), macro, groups)
    return Compared(of, variants, predictions)


def _trained(
    candidates: Sequence[Candidate],
    frozen: Mapping[str, Frozen],
    folds: Sequence[Fold],
    parallel: bool,
    directory: Path,
) -> list[np.ndarray]:
    """Return the probabilities of each trained candidate, `N x classes`, NaN for images in no validation part."""
    if not candidates:
        return []
    folder = directory / "folds"
    folder.mkdir(exist_ok=True)
    data = frozen[candidates[0].name].data
    images = (folder / "images.npy").absolute()  # worker processes keep the current folder of their start
    np.save(images, data.images[:].permute(0, 2, 3, 1).numpy())
    jobs = [_job(c, frozen[c.name], images, fold) for c in candidates for fold in folds]
    files = [folder / f"{_digest(job)}.npy" for job in jobs]
    todo = [i for i, file in enumerate(files) if not file.is_file()]
    each = [images_of(job) for job in jobs]
    with progress("validation training", len(jobs), "images", len(jobs) - len(todo), sum(each) / len(each)) as advance:
        for i, p in run_jobs(fold_probabilities, [jobs[i] for i in todo], parallel):
            with replacing(files[todo[i]]) as temporary, temporary.open("wb") as out:
                np.save(out, p)
            advance(1)
    results = []
    for i in range(len(candidates)):
        p = np.full((len(data), len(data.class_names)), np.nan, dtype=np.float32)
        for fold, file in zip(folds, files[i * len(folds) : (i + 1) * len(folds)], strict=True):
            p[fold.val] = np.load(file)
        results.append(p)
    return results


def _job(candidate: Candidate, frozen: Frozen, images: Path, fold: Fold) -> FoldTraining:
    smoothing = candidate.config["label_smoothing"]
    head = frozen.initial_head(fold.train, smoothing) if candidate.name == TUNED else None
    arrays = (head[0].numpy(), head[1].numpy()) if head else None
    config = {**candidate.config, "pooling": frozen.pooling}
    return FoldTraining(config, frozen.state, arrays, images, frozen.labels.numpy(), frozen.classes, fold)


def _digest(job: FoldTraining) -> str:
    config = {k: v for k, v in job.config.items() if k != "resume"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for array in (job.fold.train, job.fold.val, job.labels, *(job.head or ()), *job.encoder.values()):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
