"""The plan of a study: the compared classifiers, their label budgets, and the runs that they need."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.commands import EVALUATE, FINETUNE, PRETRAIN
from sslrun.config.compose import compose_config
from sslrun.config.grammar import literal
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, listing_hash, load_train, load_unlabeled
from sslrun.data.images import Images
from sslrun.data.labels import LabelBudget
from sslrun.data.options import describe
from sslrun.models.weights import imagenet_cached, imagenet_weights
from sslrun.runs.encoders import IMAGENET, SCRATCH
from sslrun.runs.run import Stages
from sslrun.study.choice import AUTO, PROBE, TUNED, folds_of, score_among, score_of
from sslrun.study.launch import StudyRun, study_run
from sslrun.study.settings import device_of, overrides_of


@dataclass(frozen=True)
class Cell:
    """One classifier of a study.

    Attributes:
        initialization: name of a pretraining, `scratch` or `imagenet`.
        mode: `finetune` or `probe`.
        budget: the label budget; its seed is also that of the training.
        setting: override of a search, or ''; only the best setting of each network is evaluated.
    """

    initialization: str
    mode: str
    budget: LabelBudget
    setting: str = ""

    @property
    def labels(self) -> dict[str, float]:
        """Return the label budget as a setting of finetune."""
        return {"label_fraction" if self.budget.per_class is None else "labels_per_class": self.budget.value}


@dataclass
class StudyData:
    """The data of a study without the test split, which is read only by evaluations.

    Attributes:
        data, val: labeled training and validation data.
        images: for pretraining: training and unlabeled images.
        test: hash of the names, sizes and times of the test files.
    """

    data: Dataset
    val: Dataset | None
    images: Images
    test: str


@dataclass
class Plan:
    """The runs of a study.

    Attributes:
        classified: data of the classifiers, which may have fewer or merged classes.
        pretrainings: by name.
        classifiers, evaluations: by cell.
        trials: runs of cross-validation by cell, each without one fold of the labels; none if validation is large.
    """

    classified: StudyData
    pretrainings: dict[str, StudyRun]
    classifiers: dict[Cell, StudyRun]
    evaluations: dict[Cell, StudyRun]
    trials: dict[Cell, list[StudyRun]]


def load_data(dataset: Node, unlabeled: str | None) -> StudyData:
    """Load the data of a study.

    Args:
        dataset: node of the config.
        unlabeled: a folder of further images for pretraining.

    Raises:
        UserError: there are no labels, fewer than two classes, or no test split.
    """
    data, val = load_train(dataset)
    if data.labels is None or len(data.class_names) < 2:
        raise UserError(f"{describe(dataset)}: a study needs labeled images of at least two classes")
    test = listing_hash(dataset, "test")
    if not test:
        raise UserError(f"{describe(dataset)} has no test split, which a study needs")
    images = data.images
    for extra in load_unlabeled({**dataset, "range": data.range}, unlabeled):
        images = images + extra.images
    return StudyData(data, val, images, test)


def plan_of(
    stages: Stages, config: Node, chosen: Mapping[str, str], loaded: StudyData, config_dir: str | None = None
) -> Plan:
    """Return the runs of a study.

    Args:
        stages, config, chosen, config_dir: as in `overrides_of`.
        loaded: the data.

    Raises:
        UserError: as in `overrides_of`; or there are no validation images and too few labels for cross-validation.
    """
    pretrained_by: dict[str, StudyRun] = {}
    pretrainings, common, settings = overrides_of(stages, config, chosen, config_dir)
    for name, overrides in pretrainings.items():
        composed = plain(compose_config(PRETRAIN, overrides, None))
        pretraining = study_run(stages, PRETRAIN, name, composed, overrides, loaded.images.fingerprint().hexdigest())
        same = next((n for n, p in pretrained_by.items() if p.key == pretraining.key), None)
        if same is None:
            pretrained_by[name] = pretraining
        else:
            log.info("pretexts: %s is the same as %s, so it is run only once.", name, same)
    composed_with = {s: plain(compose_config(FINETUNE, [*common, *filter(None, [s])], None)) for s in ["", *settings]}
    classified = _classified(composed_with[""]["dataset"], config["dataset"], loaded)
    evaluating = device_of(config, chosen, EVALUATE)
    classifiers, evaluations, trials = {}, {}, {}
    fingerprints = [d.fingerprint() if d else "" for d in (classified.data, classified.val)]
    for cell in _cells(config, list(pretrained_by), settings, _budgets(config, classified.data)):
        init = (
            pretrained_by[cell.initialization].directory.as_posix()
            if cell.initialization in pretrained_by
            else cell.initialization
        )
        own = {"init": init, "mode": cell.mode, **cell.labels, "seed": cell.budget.seed}
        label_budget = f"{cell.budget.value:g}" + "_per_class" * (cell.budget.per_class is not None)
        name = f"{cell.initialization}_{cell.mode}_{label_budget}_seed{cell.budget.seed}"

        def classifier(name: str, settings: Node, setting: str) -> StudyRun:
            all_overrides = [
                *common,
                *(f"{k}={literal(v)}" for k, v in settings.items()),
                *([setting] if setting else []),
            ]
            whole = composed_with[setting] | settings | {"subset_seed": settings["seed"]}
            return study_run(stages, FINETUNE, name, whole, all_overrides, *fingerprints, setting=setting)

        classifiers[cell] = classifier(name, own, cell.setting)
        if folds := _folds(cell, classified, len(settings), config["mode"]):
            trials[cell] = [
                classifier(f"{name}_fold{k + 1}of{n}", own | {"fold": [k, n]}, cell.setting) for k, n in folds
            ]
        reading = [f"run={literal(classifiers[cell].directory.as_posix())}", *evaluating]
        if "root" in config["dataset"]:  # the current location of the images, which may have been moved
            reading.append(f"dataset.root={literal(config['dataset']['root'])}")
        if "test_fraction" in config["dataset"]:
            reading.append(f"dataset.test_fraction={literal(config['dataset']['test_fraction'])}")
        read = {"run": classifiers[cell].directory.as_posix(), "device": config["device"]}
        evaluations[cell] = study_run(stages, EVALUATE, name, read, reading, loaded.test)
    return Plan(classified, pretrained_by, classifiers, evaluations, trials)


def best_settings(plan: Plan) -> list[Cell]:
    """Return the classifiers to evaluate: each network with its best setting."""
    by_network: dict[Cell, list[Cell]] = {}
    for cell in plan.classifiers:
        by_network.setdefault(replace(cell, setting=""), []).append(cell)
    return [_best_setting(plan, cells) for cells in by_network.values()]


def _best_setting(plan: Plan, cells: Sequence[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    judged = {c: plan.trials.get(c) or [plan.classifiers[c]] for c in cells}
    name = score_among(r for runs in judged.values() for r in runs)
    return max(cells, key=lambda c: score_of(judged[c], name))


def _classified(dataset: Node, of_study: Node, loaded: StudyData) -> StudyData:
    """Return the data of the classifiers, whose data set may have other classes than the study's."""
    if dataset == of_study:
        return loaded
    data, val = load_train(dataset)
    return replace(loaded, data=data, val=val)


def _folds(cell: Cell, loaded: StudyData, settings: int, mode: str) -> list[list[int]]:
    """Return the folds for cross-validation of a classifier; none if validation is large enough.

    Without `mode=auto` and with a single setting, nothing is chosen and there are no folds. With several settings,
    probes are cross-validated, too, so that they can be compared when the best classifier is named.
    """
    if (settings < 2 and mode != AUTO) or (cell.initialization, cell.mode) == (SCRATCH, PROBE):
        return []
    folds = folds_of(len(loaded.val or ()), loaded.data.within(cell.budget).smallest_class_size())
    if folds == [None] and not loaded.val:
        (label_budget,) = (f"{k}={v:g}" for k, v in cell.labels.items())
        raise UserError(
            f"cannot choose a classifier without validation images and with {label_budget}; set mode=finetune search=[]"
        )
    return [f for f in folds if f is not None]


def _budgets(config: Node, data: Dataset) -> list[LabelBudget]:
    """Return the label budgets; of those that give the same number of labels only the first."""
    per_class = config["labels_per_class"]
    if per_class is not None:
        budgets = [LabelBudget(per_class=n) for n in sorted(set(per_class))]
    else:
        budgets = [LabelBudget(fraction) for fraction in sorted(set(config["label_fractions"]))]
    sizes: dict[int, LabelBudget] = {}
    for budget in budgets:
        if short := data.shortage(budget):
            log.info("%s.", short)
        n = len(data.within(budget))
        if sizes.setdefault(n, budget) != budget:
            values = sizes[n].value, budget.value
            log.info("Label budgets %g and %g both give %s; only the first is used.", *values, counted(n, "label"))
    return list(sizes.values())


def _cells(
    config: Node, pretrained: Sequence[str], settings: Sequence[str], budgets: Sequence[LabelBudget]
) -> Iterator[Cell]:
    """Yield the classifiers: from scratch, a probe of the randomly initialized network, and the pretrained ones."""
    network = (config["backbone"], config["dataset"]["image_size"])
    imagenet = imagenet_cached(*network) if config["imagenet"] == "auto" else config["imagenet"]
    if imagenet and not imagenet_weights(*network):
        raise UserError("imagenet=true: no ImageNet weights for this backbone; use resnet18 or mobilenetv2")
    modes = [TUNED, PROBE] if config["mode"] == AUTO else [config["mode"]]
    for unseeded in budgets:
        for seed in range(config["seeds"]):
            budget = replace(unseeded, seed=seed)
            yield Cell(SCRATCH, PROBE, budget)
            for initialization in [SCRATCH, *([IMAGENET] if imagenet else []), *pretrained]:
                for mode in modes if initialization != SCRATCH else [TUNED]:
                    for setting in settings if mode == TUNED else [""]:
                        yield Cell(initialization, mode, budget, setting)
