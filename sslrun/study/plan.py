"""The plan of a study: what is compared, on which labels, and the runs that it takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sslrun.base.console import log
from sslrun.base.errors import UserError
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
from sslrun.study.choice import AUTO, PROBE, TUNED, folds_of, score_of
from sslrun.study.launch import StudyRun, study_run
from sslrun.study.settings import device_of, overrides_of


@dataclass(frozen=True)
class Cell:
    """One classifier of a study.

    Attributes:
        initialization: a pretraining's name, `scratch` or `imagenet`.
        mode: `finetune` or `probe`.
        budget: of labels; its seed is that of the training, too.
        setting: that it is tried with, as an override, or ''; of each network the best setting is evaluated.
    """

    initialization: str
    mode: str
    budget: LabelBudget
    setting: str = ""

    @property
    def labels(self) -> dict[str, float]:
        """Return how many labels it has, as a setting of finetune."""
        return {"label_fraction" if self.budget.per_class is None else "labels_per_class": self.budget.value}


@dataclass
class StudyData:
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

    classified: StudyData
    pretrainings: dict[str, StudyRun]
    classifiers: dict[Cell, StudyRun]
    evaluations: dict[Cell, StudyRun]
    trials: dict[Cell, list[StudyRun]]


def load_data(dataset: Node, unlabeled: str | None) -> StudyData:
    """Load the pictures of a study.

    Raises:
        UserError: they have no labels, or one class.
    """
    data, val = load_train(dataset)
    if data.labels is None or len(data.class_names) < 2:
        raise UserError(f"{describe(dataset)} has no two classes of labeled pictures: there is nothing to compare on")
    test = listing_hash(dataset, "test")
    if not test:
        raise UserError(f"{describe(dataset)} has no test split to compare on")
    images = data.images
    for extra in load_unlabeled(dataset, unlabeled):
        images = images + extra.images
    return StudyData(data, val, images, test)


def plan_of(
    stages: Stages, config: Node, chosen: Mapping[str, str], loaded: StudyData, config_dir: str | None = None
) -> Plan:
    """Return the runs of a study.

    Args, raises: as of `overrides_of`.
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
            log.info("pretexts: %s is the same as %s: it is taken once.", name, same)
    composed_with = {s: plain(compose_config(FINETUNE, [*common, *filter(None, [s])], None)) for s in ["", *settings]}
    classified = _classified(composed_with[""]["dataset"], config["dataset"], loaded)
    evaluating = device_of(config, chosen, EVALUATE)
    made, evaluated, trials = {}, {}, {}
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

        made[cell] = classifier(name, own, cell.setting)
        if folds := _folds(cell, classified, len(settings), config["mode"]):
            trials[cell] = [classifier(f"{name}_without{k}", own | {"fold": [k, n]}, cell.setting) for k, n in folds]
        reading = [f"run={literal(made[cell].directory.as_posix())}", *evaluating]
        if "root" in config["dataset"]:  # where the pictures are now
            reading.append(f"dataset.root={literal(config['dataset']['root'])}")
        read = {"run": made[cell].directory.as_posix(), "device": config["device"]}
        evaluated[cell] = study_run(stages, EVALUATE, name, read, reading, loaded.test)
    return Plan(classified, pretrained_by, made, evaluated, trials)


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


def _classified(dataset: Node, of_study: Node, loaded: StudyData) -> StudyData:
    """Return the pictures that are classified, by the classifiers' own data set, which may have other classes."""
    if dataset == of_study:
        return loaded
    data, val = load_train(dataset)
    return replace(loaded, data=data, val=val)


def _folds(cell: Cell, loaded: StudyData, settings: int, mode: str) -> list[list[int]]:
    """Return the folds of a classifier's labels that are held out in turns.

    There are none where validation is enough, and where nothing is to be chosen: with one setting, but for `mode=auto`.
    With more than one, probes are judged like that, too, so that the best classifier of all can be named.
    """
    if (settings < 2 and mode != AUTO) or (cell.initialization, cell.mode) == (SCRATCH, PROBE):
        return []
    folds = folds_of(len(loaded.val or ()), loaded.data.within(cell.budget).smallest_class_size())
    if folds == [None] and not loaded.val:
        (label_budget,) = (f"{k}={v:g}" for k, v in cell.labels.items())
        raise UserError(
            f"there is nothing to choose by, without validation and with {label_budget}: say mode=finetune search=[]"
        )
    return [f for f in folds if f is not None]


def _budgets(config: Node, data: Dataset) -> list[LabelBudget]:
    """Return the amounts of labels, of those that come to the same subsets the first."""
    per_class = config["labels_per_class"]
    if per_class is not None:
        budgets = [LabelBudget(per_class=n) for n in sorted(set(per_class))]
    else:
        budgets = [LabelBudget(fraction) for fraction in sorted(set(config["label_fractions"]))]
    sizes: dict[int, LabelBudget] = {}
    for budget in budgets:
        n = len(data.within(budget))
        if sizes.setdefault(n, budget) != budget:
            values = sizes[n].value, budget.value
            log.info("%g and %g of the labels are the same %d: they are taken once.", *values, n)
    return list(sizes.values())


def _cells(
    config: Node, pretrained: Sequence[str], settings: Sequence[str], budgets: Sequence[LabelBudget]
) -> Iterator[Cell]:
    """Yield the classifiers of a study: from scratch and frozen random always, the pretrained in each mode."""
    network = (config["backbone"], config["dataset"]["image_size"])
    imagenet = imagenet_cached(*network) if config["imagenet"] == "auto" else config["imagenet"]
    if imagenet and not imagenet_weights(*network):
        raise UserError("imagenet=true: there are no ImageNet weights for this backbone; resnet18 and mobilenetv2 have")
    modes = [TUNED, PROBE] if config["mode"] == AUTO else [config["mode"]]
    for unseeded in budgets:
        for seed in range(config["seeds"]):
            budget = replace(unseeded, seed=seed)
            yield Cell(SCRATCH, PROBE, budget)
            for initialization in [SCRATCH, *([IMAGENET] if imagenet else []), *pretrained]:
                for mode in modes if initialization != SCRATCH else [TUNED]:
                    for setting in settings if mode == TUNED else [""]:
                        yield Cell(initialization, mode, budget, setting)
