"""`sslrun compare`: does pretraining help on these images, and at which label budgets?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from sslrun.base.console import ERR, log
from sslrun.base.text import counted, seconds_of
from sslrun.config.commands import COMPARE, FINETUNE, PRETRAIN
from sslrun.config.grammar import key_of
from sslrun.config.types import Count, Node, Positive, PositiveInt
from sslrun.data.labels import LabelBudget
from sslrun.data.options import DatasetNode, describe
from sslrun.data.orientation import pixels, sample
from sslrun.evaluation.validation import SCORES
from sslrun.models.encoder import BackboneNode
from sslrun.report import check
from sslrun.report.plots import name_of
from sslrun.report.study import Maps, publish
from sslrun.runs.encoders import SCRATCH
from sslrun.runs.find import find, read_summary
from sslrun.runs.resume import STUDY
from sslrun.runs.run import Run
from sslrun.study import results
from sslrun.study.budget import times_of
from sslrun.study.choice import AUTO, mean_scores
from sslrun.study.embeddings import embedding_maps
from sslrun.study.launch import StudyRun, launch_all, launcher_overrides, user_config_dir
from sslrun.study.plan import Plan, StudyData, best_settings, load_data, plan_of
from sslrun.study.settings import overrides_of
from sslrun.tasks.task import TaskNode

NotEmpty = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Settings of `sslrun compare`, documented in conf/compare.yaml."""

    pretexts: Annotated[list[str], NotEmpty] | None
    label_fractions: Annotated[list[Positive], NotEmpty]
    labels_per_class: Annotated[list[PositiveInt], NotEmpty] | None
    seeds: PositiveInt
    mode: Literal["auto", "finetune", "probe"]
    imagenet: bool | Literal["auto"]
    search: list[str]
    finetune: list[str]
    budget: str | None
    pretext: TaskNode
    backbone: BackboneNode
    dataset: DatasetNode
    unlabeled: str | None
    device: Node
    optimizer: Node
    train: Node
    seed: Count
    resume: str | None


def compare(run: Run, settings: Compare) -> dict[str, Any]:
    """Pretrain once with each task; train classifiers from it and from scratch on the same label subsets.

    Every classifier is evaluated on the test split. Choices (`mode=auto`, the best epoch) are made on validation, or by
    k-fold cross-validation on the labeled images if validation is small.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no labels, a task or setting that does not exist, a budget that is too small, or runs that failed.
    """
    run.note(resumable=STUDY)
    for fraction in settings.label_fractions:
        LabelBudget(fraction).check(run.overrides)
    limit = None if settings.budget is None else seconds_of("budget", settings.budget)
    chosen, config_dir = _choices(run)
    overrides_of(run.stages, run.config, chosen, config_dir)  # reports mistakes before images are decoded
    loaded = load_data(settings.dataset, settings.unlabeled)
    advice = check.advice(pixels(sample(loaded.images)), settings.dataset["horizontal_flip"])
    for sentence in advice:
        log.info("Advice: %s.", sentence)
    run.refuse_other_data(loaded.data.fingerprint(), len(loaded.data))
    plan = _planned(run, chosen, config_dir, loaded, limit, settings.train)
    run.note(
        pretext=", ".join(plan.pretrainings),
        backbone=run.summary["choices"]["backbone"],
        dataset=describe(settings.dataset),
        images=len(loaded.images),
        data_fingerprint=loaded.data.fingerprint(),
        advice=advice,
        seeds={"training": settings.seed, "split": settings.dataset["split_seed"], "subsets": settings.seeds},
    )
    run.keep_changes()
    rows = _evaluated(run, plan, settings.mode)
    pretrained = {n: p.directory for n, p in plan.pretrainings.items()}
    run.note(pretraining_seconds={n: read_summary(d)["wall_time_seconds"] for n, d in pretrained.items()})
    conclusions = publish(run.directory, rows, settings.mode, _maps(settings, pretrained, loaded), run.summary)
    best = results.best_classifier(rows)
    if best:
        name = name_of(best.initialization, best.mode)
        score = SCORES[results.score_among([r for r in rows if r.labels == best.labels])]
        by = "cross-validation" if best.cv_accuracy is not None else "validation"
        ERR.print(f"Best classifier at {counted(best.labels, 'label')} by {by} {score}: {name}", markup=False)
        ERR.print(f"To use it: sslrun predict image.jpg run={best.finetuned}", markup=False)
    return {"conclusions": conclusions, "best_classifier": best and best.finetuned}


def _evaluated(run: Run, plan: Plan, mode: str) -> list[results.Row]:
    """Launch the runs of a study, and return one row for each classifier, with its best setting."""
    launched: set[StudyRun] = set()
    trials = chain.from_iterable(plan.trials.values())
    for title, runs in (
        (PRETRAIN, plan.pretrainings.values()),
        (FINETUNE, plan.classifiers.values()),
        ("fold", trials),
    ):
        fresh = [r for r in runs if r not in launched]
        launch_all(fresh, run.stages, title)
        launched.update(fresh)
    evaluated = {c: plan.evaluations[c] for c in best_settings(plan)}
    launch_all(list(evaluated.values()), run.stages)
    cv = {c: mean_scores(trials) for c, trials in plan.trials.items()}
    rows = [results.row_of(p.directory, c.initialization, cv.get(c), c.setting) for c, p in evaluated.items()]
    if mode == AUTO:
        rows += results.with_auto(rows, [s for s in dict.fromkeys(r.initialization for r in rows) if s != SCRATCH])
    return rows


def _maps(settings: Compare, pretrained: Mapping[str, Path], loaded: StudyData) -> Maps | None:
    """Return maps of the validation images; None if the classifiers may have other classes than the study."""
    if any(key_of(s).startswith("dataset.") for s in settings.finetune):
        return None
    mapped = loaded.val or loaded.data
    return embedding_maps(pretrained, settings.backbone, settings.dataset, settings.device, loaded.data, mapped)


def _choices(run: Run) -> tuple[dict[str, str], str | None]:
    """Return the choice of each config group, and the user's own config folder if there is one."""
    hydra = HydraConfig.get()
    chosen = run.summary.get("choices") or {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra")}
    config_dir = user_config_dir()
    run.note(choices=chosen, config_dir=config_dir, launcher=launcher_overrides())
    return chosen, config_dir


def _planned(
    run: Run, chosen: dict[str, str], config_dir: str | None, loaded: StudyData, limit: float | None, train: Node
) -> Plan:
    """Plan the runs, fit the number of epochs to the time budget, and log how long they will take."""
    to_be_fitted = limit is not None and "budget_epochs" not in run.summary
    plan = plan_of(run.stages, run.config, chosen, loaded, config_dir)
    times = times_of(plan, loaded, new_epochs=to_be_fitted)
    if to_be_fitted:
        assert limit is not None

        def with_epochs(epochs: int) -> Plan:
            config = {**run.config, "train": {**train, "epochs": epochs, "steps": None}}
            return plan_of(run.stages, config, chosen, loaded, config_dir)

        epochs = _epochs_before(run, with_epochs) or times.epochs_within(limit)
        run.resolve(train={**train, "epochs": epochs, "steps": None})
        run.note(budget_epochs=epochs)
        plan = with_epochs(epochs)
        times = times_of(plan, loaded)
        budget = run.config["budget"]
        log.info("budget=%s allows %s of each pretraining.", budget, counted(epochs, "epoch"))
    log.info("%s", times.describe(plan))
    return plan


def _epochs_before(run: Run, with_epochs: Callable[[int], Plan]) -> int | None:
    """Return the number of epochs of an earlier study with the same settings whose pretrainings can be reused."""
    wanted = _without_epochs(run.config)
    for directory, summary in reversed(find([COMPARE])):
        if "budget_epochs" in summary and _without_epochs(summary["config"]) == wanted:
            epochs = int(summary["budget_epochs"])
            if any(p.directory.is_dir() for p in with_epochs(epochs).pretrainings.values()):
                log.info("Using the number of epochs of the same study in %s, to reuse its pretrainings.", directory)
                return epochs
    return None


def _without_epochs(config: Node) -> Node:
    train = {k: v for k, v in config["train"].items() if k not in ("epochs", "steps")}
    return {**config, "train": train, "resume": None}
