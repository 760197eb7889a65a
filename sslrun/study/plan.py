"""The plan of a study: the compared classifiers, their label budgets, and the runs that they need."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sslrun.base.console import log
from sslrun.base.errors import UserError
from sslrun.base.text import counted
from sslrun.config.commands import EVALUATE, FINETUNE, PRETRAIN
from sslrun.config.compose import compose_config
from sslrun.config.grammar import literal
from sslrun.config.nodes import plain
from sslrun.config.types import Node
from sslrun.data.dataset import listed, listing_hash, load_unlabeled
from sslrun.data.images import Images
from sslrun.data.labeled import Pool, Validation, load_pool
from sslrun.data.labels import LabelBudget
from sslrun.data.options import describe
from sslrun.models.published import Published, published
from sslrun.models.teacher import is_run, node_of
from sslrun.run.encoders import PIXELS, PRETRAINED, SCRATCH
from sslrun.run.run import Stages
from sslrun.study.equal_time import usual_steps
from sslrun.study.launch import StudyRun, study_run
from sslrun.study.results import EQUAL_TIME, PUBLISHED
from sslrun.study.settings import device_of, overrides_of
from sslrun.training.candidates import AUTO, KNN, PROBE, TUNED, folds_of

DISTILL = "sslrun.tasks.pretext.distill.Distill"
FRACTIONS = (0.01, 0.1, 1.0)  # the default label budgets


@dataclass(frozen=True)
class Cell:
    """One classifier of a study.

    Attributes:
        initialization: name of a pretraining, `scratch`, `pretrained`, or `pixels`.
        mode: `finetune`, `probe`, `knn`, or `equal_time`: trained for as long as a pretraining takes.
        budget: the label budget; its seed is also that of the training.
        pretrain_seed: of the pretraining.
    """

    initialization: str
    mode: str
    budget: LabelBudget
    pretrain_seed: int | None = None

    @property
    def name(self) -> str:
        """Return a name for the run's folder."""
        network = self.initialization + (f"_seed{self.pretrain_seed}" if self.pretrain_seed is not None else "")
        return f"{network}_{self.mode}_{self.budget.key}{self.budget.value:g}_subset{self.budget.seed}"


@dataclass
class StudyData:
    """The data of a study without the test split, which is read only by evaluations.

    Attributes:
        pool: images from which the label budgets are drawn.
        images: for pretraining: all training images, and unlabeled ones.
        test: hash of the names, sizes and times of the test files.
        tested: the number of test images.
    """

    pool: Pool
    images: Images
    test: str
    tested: int = 0


@dataclass
class Plan:
    """The runs of a study.

    Attributes:
        classified: data of the classifiers, which may have fewer or merged classes.
        pretrainings: by task and seed.
        classifiers, evaluations: by cell.
        matched: the number of classifiers that will be trained for as long as a pretraining, once its time is known.
        network: with published weights, if it is compared.
    """

    classified: StudyData
    pretrainings: dict[str, dict[int, StudyRun]]
    classifiers: dict[Cell, StudyRun]
    evaluations: dict[Cell, StudyRun]
    matched: int = 0
    network: Published | None = None

    @property
    def each_pretraining(self) -> list[StudyRun]:
        """Return the pretrainings of all tasks and seeds."""
        return [run for runs in self.pretrainings.values() for run in runs.values()]

    @property
    def scratch(self) -> dict[LabelBudget, Path]:
        """Return the directories of the networks trained from scratch, by label budget and subset seed."""
        cells = {c.budget: c for c in self.classifiers if (c.initialization, c.mode) == (SCRATCH, TUNED)}
        return {budget: self.classifiers[cell].directory for budget, cell in cells.items()}

    @property
    def budgets(self) -> list[LabelBudget]:
        """Return the label budgets, with the first subset seed."""
        return list(dict.fromkeys(replace(c.budget, seed=0) for c in self.classifiers))


def load_data(
    dataset: Node, unlabeled: str | None, validation: Validation | Literal["auto"], keys: Collection[str] = ()
) -> StudyData:
    """Load the data of a study.

    Args:
        dataset: node of the config.
        unlabeled: a folder of further images for pretraining.
        validation, keys: see `load_pool`.

    Raises:
        UserError: there are no labels, fewer than two classes, or no test split.
    """
    pool = load_pool(dataset, validation, keys)
    if pool.data.labels is None or len(pool.data.class_names) < 2:
        raise UserError(f"{describe(dataset)}: a study needs labeled images of at least two classes")
    test = listing_hash(dataset, "test")
    if not test:
        raise UserError(f"{describe(dataset)} has no test split, which a study needs")
    images = pool.train.images
    for extra in load_unlabeled({**dataset, "range": pool.data.range}, unlabeled):
        images = images + extra.images
    listing = listed(dataset, "test")
    return StudyData(pool, images, test, len(listing.names) if listing else 0)


def plan_of(
    stages: Stages,
    config: Node,
    chosen: Mapping[str, str],
    loaded: StudyData,
    config_dir: str | None = None,
    equal_time: Mapping[str, int] | None = None,
) -> Plan:
    """Return the runs of a study.

    Args:
        stages, config, chosen, config_dir: as in `overrides_of`.
        loaded: the data.
        equal_time: numbers of steps by label budget, see `equal_time_steps`; None if they are not known yet.

    Raises:
        UserError: as in `overrides_of`; or a label budget is too small, or groups leave a fold without a class.
    """
    given = overrides_of(stages, config, chosen, config_dir)
    pretrained = _pretrainings(stages, given.pretrainings, config["pretrain_seeds"], loaded)
    classified = _classified(given.common, config["dataset"], loaded)
    pool = classified.pool
    budgets = _budgets(config, pool)
    seeded = {t: list(runs) for t, runs in pretrained.items()}
    cells = list(_cells(config, seeded, budgets, given.pretrained is not None))
    timed = [c for c in cells if c.mode == EQUAL_TIME]
    if equal_time is None:
        cells = [c for c in cells if c.mode != EQUAL_TIME]
    fingerprints = [d.fingerprint() if d else "" for d in (pool.data, pool.val)]
    composed: dict[tuple[str, ...], Node] = {}
    evaluating = [*device_of(config, chosen, EVALUATE), f"logger={literal(config['logger'])}"]
    classifiers: dict[Cell, StudyRun] = {}
    evaluations: dict[Cell, StudyRun] = {}
    for cell in cells:
        common, own = given.of_classifier(cell.initialization, cell.mode), _own(cell, pretrained, pool, given.search)
        longer: dict[str, int | None] = {}
        if tuple(common) not in composed:
            composed[tuple(common)] = plain(compose_config(FINETUNE, common, None))
        if equal_time and cell.mode == EQUAL_TIME:
            steps = equal_time[cell.budget.text]
            if steps == usual_steps(composed[tuple(common)]["train"], len(pool.labeled(cell.budget).budget)):
                usual = replace(cell, mode=TUNED)
                classifiers[cell], evaluations[cell] = classifiers[usual], evaluations[usual]
                continue
            longer = {"steps": steps, "epochs": None}
        settings = [
            *(f"{k}={literal(v)}" for k, v in own.items()),
            *(f"train.{k}={literal(v)}" for k, v in longer.items()),
        ]
        whole = composed[tuple(common)] | own | {"subset_seed": cell.budget.seed}
        whole["train"] = whole["train"] | longer
        weights = [given.network.identity] if given.network and cell.initialization == PRETRAINED else []
        read = (*fingerprints, *weights)
        classifiers[cell] = study_run(stages, FINETUNE, cell.name, whole, [*common, *settings], *read)
        evaluations[cell] = _evaluation(stages, config, cell.name, classifiers[cell], evaluating, loaded.test)
    matched = len(timed) if equal_time is None else 0
    return Plan(classified, pretrained, classifiers, evaluations, matched, given.network)


def _pretrainings(
    stages: Stages, overrides: Mapping[str, Sequence[str]], seeds: int, loaded: StudyData
) -> dict[str, dict[int, StudyRun]]:
    """Return the pretrainings by task and seed, without tasks that are the same as an earlier one."""
    out: dict[str, dict[int, StudyRun]] = {}
    for task, given in overrides.items():
        first = int(plain(compose_config(PRETRAIN, list(given), None))["seed"])
        runs = {}
        for seed in range(first, first + seeds):
            own = [*(o for o in given if o.partition("=")[0] != "seed"), f"seed={seed}"]
            config = plain(compose_config(PRETRAIN, own, None))
            read = (loaded.images.fingerprint().hexdigest(), *_weights(config))
            runs[seed] = study_run(stages, PRETRAIN, f"{task}_seed{seed}", config, own, *read)
        keys = {r.key for r in runs.values()}
        same = next((t for t, others in out.items() if keys & {r.key for r in others.values()}), None)
        if same is None:
            out[task] = runs
        else:
            log.info("inits: %s is the same as %s, so it is run only once.", task, same)
    return out


def _weights(pretraining: Node) -> list[str]:
    """Return the identities of the weights that a pretraining starts from or is taught by; those of a run have none."""
    out = [published(pretraining["backbone"])] if pretraining["init"] in PUBLISHED else []
    if pretraining["pretext"]["_target_"] == DISTILL:
        teacher, file = pretraining["pretext"]["teacher"], pretraining["pretext"]["weights"]
        if teacher is None or not is_run(teacher):
            out.append(published(node_of(teacher, file)))
    return [w.identity for w in out]


def _own(
    cell: Cell, pretrained: Mapping[str, Mapping[int, StudyRun]], pool: Pool, search: Sequence[str]
) -> dict[str, Any]:
    """Return the settings of one classifier."""
    init = cell.initialization if cell.initialization != PIXELS else SCRATCH
    if cell.pretrain_seed is not None:
        init = pretrained[cell.initialization][cell.pretrain_seed].directory.as_posix()
    mode = TUNED if cell.mode == EQUAL_TIME else cell.mode
    own = {"init": init, "mode": mode, cell.budget.key: cell.budget.value, "validation": pool.validation}
    own |= {"search": list(search)} if mode == TUNED and search else {}
    return own | {"seed": cell.budget.seed}


def _evaluation(
    stages: Stages, config: Node, name: str, classifier: StudyRun, overrides: Sequence[str], test: str
) -> StudyRun:
    """Return the evaluation of a classifier on the test split."""
    run, dataset = classifier.directory.as_posix(), config["dataset"]
    reading = [f"run={literal(run)}", *overrides]
    if "root" in dataset:  # the current location of the images, which may have been moved
        reading.append(f"dataset.root={literal(dataset['root'])}")
    if "test_fraction" in dataset:
        reading.append(f"dataset.test_fraction={literal(dataset['test_fraction'])}")
    return study_run(stages, EVALUATE, name, {"run": run, "device": config["device"]}, reading, test)


def _classified(common: Sequence[str], of_study: Node, loaded: StudyData) -> StudyData:
    """Return the data of the classifiers, whose data set may have other classes than the study's."""
    dataset = plain(compose_config(FINETUNE, list(common), None))["dataset"]
    dataset |= {k: of_study[k] for k in ("val_fraction", "split_seed")}  # which are for validation=extra alone
    if dataset == of_study:
        return loaded
    return replace(loaded, pool=load_pool(dataset, loaded.pool.validation))


def _budgets(config: Node, pool: Pool) -> list[LabelBudget]:
    """Return the label budgets, checked for every subset; of those that give the same number only the first."""
    budgets = [LabelBudget(total=n) for n in sorted(set(config["labels"] or []))]
    budgets = budgets or [LabelBudget(per_class=n) for n in sorted(set(config["labels_per_class"] or []))]
    budgets = budgets or [LabelBudget(fraction=f) for f in sorted(set(config["label_fractions"] or []))]
    budgets = budgets or [b for f in FRACTIONS if _has_every_class(b := LabelBudget(fraction=f), pool)]
    sizes: dict[int, LabelBudget] = {}
    for budget in budgets:
        n = len(pool.labeled(budget).budget)
        if sizes.setdefault(n, budget) != budget:
            values = sizes[n].text, budget.text
            log.info("Label budgets %s and %s both give %s; only the first is used.", *values, counted(n, "label"))
    for budget in sizes.values():
        _check_folds(budget, pool, config["seeds"])
    return list(sizes.values())


def _has_every_class(budget: LabelBudget, pool: Pool) -> bool:
    """Return whether a budget has a label for each class; log if not."""
    try:
        pool.labeled(budget)
    except UserError as error:
        if budget.value == FRACTIONS[-1]:
            raise  # another reason
        log.info("%s; this budget is left out.", str(error).partition(";")[0])
        return False
    return True


def _check_folds(budget: LabelBudget, pool: Pool, seeds: int) -> None:
    """Raise if groups leave a fold of a subset without a class; log if nothing can be chosen within a budget."""
    if pool.validation == "extra":
        return
    lacking = 0
    for seed in range(seeds):
        seeded = replace(budget, seed=seed)
        try:
            lacking += not folds_of(pool.labeled(seeded), seed).regressions
        except UserError as error:
            raise UserError(f"{budget.text}, subset {seed}: {error}") from None
    if lacking:
        log.info(
            "%s: every class has one label%s, so nothing can be chosen by cross-validation, and the defaults are used.",
            budget.text,
            " or one group" if pool.data.groups is not None else "",
        )


def _cells(
    config: Node, pretrained: Mapping[str, Sequence[int]], budgets: Sequence[LabelBudget], published: bool
) -> Iterator[Cell]:
    """Yield the classifiers: from scratch, baselines without training, and the pretrained ones, for every subset.

    Of a network with published weights it is the probe, unless mode=finetune: it is large, and so are its images.
    """
    modes = [PROBE, TUNED] if config["mode"] == AUTO else [config["mode"]]
    for unseeded in budgets:
        for seed in range(config["seeds"]):
            budget = replace(unseeded, seed=seed)
            yield Cell(SCRATCH, TUNED, budget)
            if config["equal_time"] and pretrained:
                yield Cell(SCRATCH, EQUAL_TIME, budget)
            yield from (Cell(SCRATCH, PROBE, budget), Cell(PIXELS, PROBE, budget), Cell(PIXELS, KNN, budget))
            if published:
                yield Cell(PRETRAINED, modes[0], budget)
            for task, pretrain_seeds in pretrained.items():
                for pretrain_seed in pretrain_seeds:
                    yield from (Cell(task, mode, budget, pretrain_seed) for mode in modes)
