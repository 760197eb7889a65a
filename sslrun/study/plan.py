"""The plan of a study: what is compared, on which labels, and the runs that it takes."""

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sslrun import estimate
from sslrun.backbones import imagenet_at_hand, imagenet_weights
from sslrun.config import Node, UserError, check, choices, compose_config, locate, nearest
from sslrun.console import duration, quietly
from sslrun.data.dataset import Dataset, describe, listing, load_train, load_unlabeled
from sslrun.data.images import Images
from sslrun.data.splits import counts, label_subset
from sslrun.overrides import differing, key_of, literal, plain
from sslrun.start import PREPROCESSING
from sslrun.study.choice import folds_of, score_of, searched
from sslrun.study.parts import Part, part
from sslrun.train import batches_per_epoch, total_steps

NODES = ("dataset", "backbone", "optimizer", "device")  # that a study and its pretrainings have in common
OF_THE_STUDY = (  # keys of a classifier that cannot be set for all of them
    "init", "mode", "fold", "resume", "seed", "subset_seed", "label_fraction", "labels_per_class",
    "search", "backbone", "dataset", "dataset.root", "dataset.val_fraction", "dataset.split_seed",
    *(f"dataset.{k}" for k in PREPROCESSING),
)  # fmt: skip
OF_A_TASK = ("pretext", "train", "optimizer", "seed", "dataset.max_images")  # that tasks may differ in
SCRATCH, IMAGENET = "scratch", "imagenet"
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Cell:
    """One classifier of a study.

    Attributes:
        start: a pretraining's name, `scratch` or `imagenet`.
        mode: `finetune` or `probe`.
        amount: of labels: a part of them, or how many of each class.
        a_class: which of the two.
        seed: of the label subset and of the training.
        setting: that it is tried with, as an override, or ''; of each network the best setting is evaluated.
    """

    start: str
    mode: str
    amount: float
    a_class: bool
    seed: int
    setting: str = ""

    @property
    def labels(self) -> dict[str, float]:
        """Return how many labels it has, as a setting of finetune."""
        return {"labels_per_class" if self.a_class else "label_fraction": self.amount}

    def subset(self, data: Dataset) -> np.ndarray:
        """Return the rows of its label subset.

        Raises:
            UserError: there are fewer.
        """
        assert data.labels is not None
        amount: dict[str, Any] = {"per_class" if self.a_class else "fraction": self.amount}
        return label_subset(
            data.labels.numpy(), self.seed, **amount, class_names=data.class_names, class_sizes=data.class_sizes
        )


@dataclass
class Pictures:
    """What a study reads, apart from the test split, which only its evaluations read.

    Attributes:
        data, val: training with its labels, and validation.
        images: that are pretrained on: those of training and those without labels.
        test: a hash of the test split's files by name, size and time.
    """

    data: Dataset
    val: Dataset | None
    images: Images
    test: str


@dataclass
class Plan:
    """The runs of a study: pretrainings by name, classifiers and their evaluations by cell.

    `trials` are classifiers without a part of their labels, by which is chosen where validation is small; `classified`
    are the pictures of the classifiers, which may have a few of the study's classes, or joined ones.
    """

    classified: Pictures
    pretrainings: dict[str, Part]
    classifiers: dict[Cell, Part]
    evaluations: dict[Cell, Part]
    trials: dict[Cell, list[Part]]


def pictures_of(dataset: Node, unlabeled: str | None) -> Pictures:
    """Load the pictures of a study.

    Raises:
        UserError: they have no labels, or one class.
    """
    data, val = load_train(dataset)
    if data.labels is None or len(data.class_names) < 2:
        raise UserError(f"{describe(dataset)} has no two classes of labelled pictures: there is nothing to compare on")
    test = listing(dataset, "test")
    if not test:
        raise UserError(f"{describe(dataset)} has no test split to compare on")
    images = data.images
    for extra in load_unlabeled(dataset, unlabeled):
        images = images + extra.images
    return Pictures(data, val, images, test)


def plan_of(config: Node, chosen: Mapping[str, str], pictures: Pictures, config_dir: str | None = None) -> Plan:
    """Return the runs of a study.

    Args:
        config: of the study, resolved.
        chosen: the study's choice in each config group.
        config_dir: the user's own config folder, if there is one.

    Raises:
        UserError: an unknown task or setting, with a line for every mistake.
    """
    starts: dict[str, Part] = {}
    pretrainings, common, settings = settings_of(config, chosen, config_dir)
    for name, overrides in pretrainings.items():
        composed = plain(compose_config("pretrain", overrides, None))
        starts[name] = part("pretrain", name, composed, overrides, pictures.images.fingerprint().hexdigest())
    composed_with = {s: plain(compose_config("finetune", [*common, *filter(None, [s])], None)) for s in ["", *settings]}
    classified = _classified(composed_with[""]["dataset"], config["dataset"], pictures)
    evaluating = _device(config, chosen, "evaluate")
    made, evaluated, trials = {}, {}, {}
    fingerprints = [d.fingerprint() if d else "" for d in (classified.data, classified.val)]
    for cell in _cells(config, list(starts), settings):
        init = starts[cell.start].directory.as_posix() if cell.start in starts else cell.start
        own = {"init": init, "mode": cell.mode, **cell.labels, "seed": cell.seed}
        amount = f"{cell.amount:g}" + "_a_class" * cell.a_class
        name = f"{cell.start}_{cell.mode}_{amount}_seed{cell.seed}"

        def classifier(name: str, settings: Node, setting: str) -> Part:
            said = [*common, *(f"{k}={literal(v)}" for k, v in settings.items()), *([setting] if setting else [])]
            whole = composed_with[setting] | settings | {"subset_seed": settings["seed"]}
            return part("finetune", name, whole, said, *fingerprints, setting=setting)

        made[cell] = classifier(name, own, cell.setting)
        if folds := _folds(cell, classified, len(settings), config["mode"]):
            trials[cell] = [classifier(f"{name}_without{k}", own | {"fold": [k, n]}, cell.setting) for k, n in folds]
        reading = [f"run={literal(made[cell].directory.as_posix())}", *evaluating]
        if "root" in config["dataset"]:  # where the pictures are now
            reading.append(f"dataset.root={literal(config['dataset']['root'])}")
        read = {"run": made[cell].directory.as_posix(), "device": config["device"]}
        evaluated[cell] = part("evaluate", name, read, reading, pictures.test)
    return Plan(classified, starts, made, evaluated, trials)


def settings_of(
    config: Node, chosen: Mapping[str, str], config_dir: str | None
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Return the overrides of each pretraining by its name, those of all classifiers, and the settings to be searched.

    Args: as of `plan_of`.

    Raises:
        UserError: an unknown task or setting, with a line for every mistake.
    """
    mistakes: list[str] = []

    def found(look: Callable[[], Any]) -> Any:
        try:
            return look()
        except UserError as error:
            mistakes.extend(str(error).splitlines())

    pretrainings = found(lambda: _pretrainings(config, chosen, config_dir))
    common, settings = found(lambda: _common(config, chosen)), found(lambda: _settings(config))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return pretrainings, common, settings


def best_settings(plan: Plan) -> list[Cell]:
    """Return the classifiers that are evaluated: of each network the one whose setting was best where it was judged."""
    best: dict[Cell, Cell] = {}
    for cell in plan.classifiers:
        network = replace(cell, setting="")
        if network not in best or _score(plan, cell) > _score(plan, best[network]):
            best[network] = cell
    return list(best.values())


def _score(plan: Plan, cell: Cell) -> tuple[float, float]:
    return score_of(plan.trials.get(cell) or [plan.classifiers[cell]])


def _classified(dataset: Node, of_study: Node, pictures: Pictures) -> Pictures:
    """Return the pictures that are classified, by the classifiers' own data set, which may have other classes."""
    if dataset == of_study:
        return pictures
    data, val = load_train(dataset)
    return replace(pictures, data=data, val=val)


def _folds(cell: Cell, pictures: Pictures, settings: int, mode: str) -> list[list[int]]:
    """Return the parts of a classifier's labels that are held out in turns.

    There are none where validation is enough, and where nothing is to be chosen: with one setting, but for `mode=auto`.
    With more than one, probes are judged like that, too, so that the best classifier of all can be named.
    """
    assert pictures.data.labels is not None
    rows = cell.subset(pictures.data)
    if (settings < 2 and mode != "auto") or (cell.start, cell.mode) == (SCRATCH, "probe"):
        return []
    found = folds_of(len(pictures.val or ()), min(counts(pictures.data.labels.numpy()[rows]).values()))
    if found == [None] and not pictures.val:
        (amount,) = (f"{k}={v:g}" for k, v in cell.labels.items())
        raise UserError(
            f"there is nothing to choose by, without validation and with {amount}: say mode=finetune search=[]"
        )
    return [f for f in found if f is not None]


def _pretrainings(config: Node, chosen: Mapping[str, str], config_dir: str | None) -> dict[str, list[str]]:
    """Return the overrides of each pretraining by its name."""
    out: dict[str, list[str]] = {}
    mistakes: list[str] = []
    for said in config["pretexts"] or [chosen["pretext"]]:
        try:
            out[said] = _pretraining(said, config, chosen, config_dir)
        except UserError as error:
            mistakes += [f"pretexts: {said}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return out


def _pretraining(said: str, config: Node, chosen: Mapping[str, str], config_dir: str | None) -> list[str]:
    """Return the overrides of one pretraining, such as `simclr pretext.temperature=0.1`, on top of the study's."""
    try:
        name, *settings = shlex.split(said) or [""]
    except ValueError as error:
        raise UserError(str(error)) from None
    if name != chosen["pretext"] and name not in (known := choices("pretext", config_dir)):
        raise UserError(f"no pretext {name!r}{nearest(name, known)} Choices: {', '.join(known)}")
    for s in settings:
        if key_of(s) in ("train.epochs", "train.steps") and config["budget"]:
            raise UserError(f"budget= sets the epochs of every pretraining: leave {s} away")
        if key_of(s) not in OF_A_TASK and key_of(s).split(".")[0] not in OF_A_TASK:
            raise UserError(
                f"{s}: a study has one network and one data set; its tasks have pretext., train., optimizer."
            )
    overrides = [*(f"{n}={chosen[n]}" for n in NODES), f"pretext={name}"]
    nodes = (*NODES, "train", "unlabeled", "seed", *(["pretext"] if name == chosen["pretext"] else []))
    overrides += differing({k: config[k] for k in nodes}, plain(compose_config("pretrain", overrides, None)))
    try:
        composed = compose_config("pretrain", [*overrides, *settings], None)
    except Exception as error:  # Hydra's and OmegaConf's, of many kinds
        raise UserError(str(error).splitlines()[0]) from None
    mistakes = check(composed, locate("sslrun.stages.pretrain.pretrain"))
    if mistakes:
        raise UserError("\n".join(mistakes))
    return [*overrides, *settings]


def _common(config: Node, chosen: Mapping[str, str]) -> list[str]:
    """Return the overrides that all classifiers have in common."""
    fixed = [s for s in config["finetune"] if key_of(s) in OF_THE_STUDY or key_of(s).startswith("backbone.")]
    if fixed:
        raise UserError(f"finetune.{fixed[0]}: the study sets {fixed[0].partition('=')[0]} itself: leave it away")
    overrides = [f"{n}={chosen[n]}" for n in ("dataset", "backbone")]
    for n in ("dataset", "backbone"):  # all keys, since what is not said is taken from the newest pretraining
        overrides += [f"{n}.{k}={literal(v)}" for k, v in config[n].items() if k != "_target_"]
    overrides += [*_device(config, chosen, "finetune"), *config["finetune"]]
    try:
        composed = compose_config("finetune", overrides, None)
    except Exception as error:  # Hydra's and OmegaConf's, of many kinds
        raise UserError(f"finetune: {str(error).splitlines()[0]}") from None
    mistakes = check(composed, locate("sslrun.stages.finetune.finetune"))
    if mistakes:
        raise UserError("\n".join(f"finetune.{m}" for m in mistakes))
    return overrides


def _device(config: Node, chosen: Mapping[str, str], stage: str) -> list[str]:
    choice = f"device={chosen['device']}"
    return [choice, *differing({"device": config["device"]}, plain(compose_config(stage, [choice], None)))]


def _settings(config: Node) -> list[str]:
    """Return the settings that every trained network is tried with; one that changes nothing, if none is searched."""
    return searched(config["search"], [key_of(s) for s in config["finetune"]]) or [""]


def _cells(config: Node, pretrained: Sequence[str], settings: Sequence[str]) -> Iterator[Cell]:
    """Yield the classifiers of a study: from scratch and frozen random always, the pretrained in each mode."""
    network = (config["backbone"], config["dataset"]["image_size"])
    imagenet = imagenet_at_hand(*network) if config["imagenet"] == "auto" else config["imagenet"]
    if imagenet and not imagenet_weights(*network):
        raise UserError("imagenet=true: there are no ImageNet weights for this backbone; resnet18 and mobilenetv2 have")
    modes = ["finetune", "probe"] if config["mode"] == "auto" else [config["mode"]]
    a_class = config["labels_per_class"] is not None
    for amount in sorted(set(config["labels_per_class"] if a_class else config["label_fractions"])):
        for seed in range(config["seeds"]):
            yield Cell(SCRATCH, "probe", amount, a_class, seed)
            for start in [SCRATCH, *([IMAGENET] if imagenet else []), *pretrained]:
                for mode in modes if start != SCRATCH else ["finetune"]:
                    for setting in settings if mode == "finetune" else [""]:
                        yield Cell(start, mode, amount, a_class, seed, setting)


def seconds_of(budget: str) -> float:
    """Return the seconds that `90s`, `30m` or `1.5h` stands for.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if not found or float(found[1]) == 0:
        raise UserError(f"budget={budget}: say a time such as 90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2]]


@dataclass
class Times:
    """About how long the unfinished runs of a study take on this machine, in seconds.

    Attributes:
        classifiers: all of them, with their evaluations.
        epoch: of each pretraining, by name.
        epochs: of each pretraining, by name; a part of one where its steps end sooner.
    """

    classifiers: float
    epoch: dict[str, float]
    epochs: dict[str, float]

    def epochs_within(self, limit: float) -> int:
        """Return how many epochs of every pretraining fit into a time beside the classifiers.

        Raises:
            UserError: not one.
        """
        epochs = math.floor((limit - self.classifiers) / sum(self.epoch.values()))
        if epochs < 1:
            raise UserError(
                f"budget: the classifiers take about {duration(self.classifiers)} and one epoch of every pretraining "
                f"{duration(sum(self.epoch.values()))}: give more, or take fewer seeds or a lower finetune.train.steps"
            )
        return epochs

    def said(self, plan: Plan) -> str:
        """Return the estimate in words, before the start."""
        todo = {n: p for n, p in plan.pretrainings.items() if not p.finished()}
        each = {n: self.epochs[n] * self.epoch[n] for n in todo}
        every = [*plan.classifiers.values(), *(p for trials in plan.trials.values() for p in trials)]
        classifiers = sum(not p.finished() for p in every)
        told = [f"{n} {self.epochs[n]:.3g} epochs, {duration(s)}" for n, s in each.items()]
        whole = sum(each.values()) + self.classifiers
        if not todo and not classifiers:
            finished = all(plan.evaluations[c].finished() for c in best_settings(plan))
            return "All runs of this study are finished." if finished else "To do: evaluations."
        pretrainings = f"{len(todo)} pretrainings ({'; '.join(told)})" if todo else ""
        trained = f"{classifiers} classifiers ({duration(self.classifiers)})" if classifiers else ""
        doing = " and ".join(filter(None, [pretrainings, trained]))
        return f"To do: {doing}; about {duration(whole)} in all, one after another."


def times_of(plan: Plan, pictures: Pictures) -> Times:
    """Estimate the times of the runs that are not finished, by a few steps of each kind."""
    with quietly():
        return _measured(plan, pictures)


def _measured(plan: Plan, pictures: Pictures) -> Times:
    found = Times(0.0, {}, {})
    for name, p in plan.pretrainings.items():
        c = plain(compose_config("pretrain", list(p.overrides), None))
        took = estimate.pretraining(
            pictures.images, c["pretext"], c["backbone"], c["optimizer"], c["device"], c["dataset"]["image_size"],
            c["train"]["batch_size"],
        )  # fmt: skip
        n, train = min(len(pictures.images), c["dataset"]["max_images"] or len(pictures.images)), c["train"]
        found.epoch[name] = n / took.images_per_second
        steps = total_steps(n, train["epochs"], train["steps"], train["batch_size"], quiet=True)
        found.epochs[name] = steps / batches_per_epoch(n, train["batch_size"])
    configs: dict[str, Node] = {}
    measured: dict[float, tuple[int, estimate.OfClassifier]] = {}
    data, val = plan.classified.data, plan.classified.val
    every = [*plan.classifiers.items(), *((c, p) for c, trials in plan.trials.items() for p in trials)]
    for cell, p in every:
        if p.finished():
            continue
        if cell.setting not in configs:
            configs[cell.setting] = plain(compose_config("finetune", list(p.overrides), None))
        if cell.amount not in measured:
            n = len(cell.subset(data))
            measured[cell.amount] = n, estimate.classifier(configs[cell.setting], data, val, n)
        n, each = measured[cell.amount]
        train = configs[cell.setting]["train"]
        found.classifiers += each.probe if cell.mode == "probe" else each.finetuning(train, n, len(val or ()))
    return found
