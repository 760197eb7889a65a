"""`sslrun compare`: does pretraining help on these images, and at which label budgets?"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from sslrun.base.console import ERR, log
from sslrun.base.errors import UserError
from sslrun.base.text import counted, seconds_of
from sslrun.config.commands import COMPARE
from sslrun.config.grammar import key_of
from sslrun.config.nodes import network_name
from sslrun.config.types import Count, Node, Positive, PositiveInt
from sslrun.data.labeled import Validation
from sslrun.data.labels import LabelBudget
from sslrun.data.options import DatasetNode, describe
from sslrun.data.orientation import pixels, sample
from sslrun.evaluation.validation import SCORES
from sslrun.models.encoder import BackboneNode
from sslrun.report import check
from sslrun.report.comparison import labels_text
from sslrun.report.evaluation import log_small_classes
from sslrun.report.plots import name_of
from sslrun.report.study import Maps, publish
from sslrun.run.encoders import PIXELS, SCRATCH
from sslrun.run.find import find, read_summary, whole_seconds
from sslrun.run.loggers import LoggerName
from sslrun.run.resume import STUDY
from sslrun.run.run import Run
from sslrun.study import results
from sslrun.study.auto import with_auto
from sslrun.study.budget import times_of
from sslrun.study.costs import with_costs
from sslrun.study.embeddings import embedding_maps
from sslrun.study.entry import budget_of
from sslrun.study.equal_time import equal_time_steps
from sslrun.study.launch import launch_all, launcher_overrides, user_config_dir
from sslrun.study.plan import Plan, StudyData, load_data, plan_of
from sslrun.study.settings import StudyOverrides, inits_of, overrides_of
from sslrun.tasks.task import TaskNode
from sslrun.training.candidates import AUTO

NotEmpty = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Settings of `sslrun compare`, documented in conf/compare.yaml."""

    inits: Annotated[list[str], NotEmpty] | None
    labels: Annotated[list[PositiveInt], NotEmpty] | None
    labels_per_class: Annotated[list[PositiveInt], NotEmpty] | None
    label_fractions: Annotated[list[Positive], NotEmpty] | None
    validation: Literal["auto"] | Validation
    seeds: PositiveInt
    pretrain_seeds: PositiveInt
    equal_time: bool
    mode: Literal["auto", "finetune", "probe"]
    search: list[str]
    finetune: list[str]
    budget: str | None
    pretext: TaskNode
    init: Literal["scratch"]
    backbone: BackboneNode
    dataset: DatasetNode
    unlabeled: str | None
    device: Node
    optimizer: Node
    train: Node
    seed: Count
    logger: list[LoggerName]
    resume: str | None


def compare(run: Run, settings: Compare) -> dict[str, Any]:
    """Pretrain with each task; train classifiers from it and from scratch on the same label subsets.

    Every classifier makes its choices inside its own label budget, or on an extra validation split. Each is evaluated
    on the test split at the end.

    Returns:
        Entries of the run's summary.

    Raises:
        UserError: no labels, a task or setting that does not exist, a budget that is too small, or runs that failed.
    """
    run.note(resumable=STUDY)
    for fraction in settings.label_fractions or []:
        LabelBudget(fraction=fraction).check()
    limit = None if settings.budget is None else seconds_of("budget", settings.budget)
    chosen, config_dir = _choices(run)
    if chosen["backbone"] == PIXELS:
        raise UserError("backbone=pixels has no weights to pretrain; a study has it as a baseline anyway")
    validation = settings.validation
    if validation == "auto" and chosen.get("experiment"):
        validation = "extra"  # as in the publication
    inits = inits_of(run.config, chosen)
    for entry in [e for e, count in Counter(inits).items() if count > 1]:
        log.info("inits: %s is named several times, and run only once.", entry)
    run.resolve(inits=inits)
    given = overrides_of(run.stages, run.config, chosen, config_dir)  # reports mistakes before images are decoded
    _note_network(run, given, settings)
    loaded = load_data(settings.dataset, settings.unlabeled, validation, run.overrides)
    run.resolve(validation=loaded.pool.validation)
    advice = check.advice(pixels(sample(loaded.images)), settings.dataset["horizontal_flip"])
    for sentence in advice:
        log.info("Advice: %s.", sentence)
    data = loaded.pool.data
    run.refuse_other_data(data.fingerprint(), len(data))
    plan = _planned(run, chosen, config_dir, loaded, limit, settings.train)
    run.note(
        pretext=", ".join(plan.pretrainings),
        backbone=run.summary["choices"]["backbone"],
        dataset=describe(settings.dataset),
        images=len(loaded.images),
        data_fingerprint=data.fingerprint(),
        label_budgets=_sizes(plan),
        advice=advice,
        seeds={
            "training": settings.seed,
            "split": settings.dataset["split_seed"],
            "subsets": settings.seeds,
            "pretraining": settings.pretrain_seeds,
        },
    )
    run.keep_changes()
    rows = _evaluated(
        run, plan, settings, lambda steps: plan_of(run.stages, run.config, chosen, loaded, config_dir, steps)
    )
    times = {
        t: [whole_seconds(read_summary(r.directory)) for r in runs.values()] for t, runs in plan.pretrainings.items()
    }
    run.note(pretraining_seconds={t: sum(seconds) / len(seconds) for t, seconds in times.items()})
    first = {t: next(iter(runs.values())).directory for t, runs in plan.pretrainings.items()}
    conclusions = publish(run.directory, rows, settings.mode, _maps(settings, first, loaded), run.summary)
    best = results.best_classifier(rows)
    if best:
        name = name_of(best.initialization, best.mode)
        score = SCORES[results.score_among([r for r in rows if r.labels == best.labels])]
        by = "validation" if best.labels_val else "cross-validation"
        at = labels_text(budget_of(best))
        ERR.print(f"Best classifier at {at} by {by} {score}: {name}", markup=False)
    return {"conclusions": conclusions, "best_classifier": best and best.finetuned}


def _note_network(run: Run, given: StudyOverrides, settings: Compare) -> None:
    """Log and note which published weights are compared or teach, and if the other networks differ."""
    others = f"{network_name(settings.backbone)} at {settings.dataset['image_size']} px"
    kinds = {"published": ("pretrained", given.network), "teacher": ("the teacher of distill", given.teacher)}
    for key, (what, network) in kinds.items():
        if network is not None:
            name = f"{network.name} at {network.image_size} px"
            differ = f"; the others are {others}" if key == "published" and others != name else ""
            log.info("%s is %s (%s, license: %s)%s.", what, name, network.source, network.license, differ)
            run.note(**{key: {"network": name, "source": network.source, "license": network.license}})


def _sizes(plan: Plan) -> dict[str, dict[str, float]]:
    """Return the number of labels of each budget, and their fraction of the images from which they were drawn.

    Subsets of one budget are drawn from the same images, so the fraction is also how far two of them overlap.
    """
    pool = plan.classified.pool
    sizes = {b.text: len(pool.labeled(b).budget) for b in plan.budgets}
    return {text: {"labels": n, "overlap": round(n / len(pool.data), 6)} for text, n in sizes.items()}


def _evaluated(
    run: Run, plan: Plan, settings: Compare, with_equal_time: Callable[[dict[str, int]], Plan]
) -> list[results.Row]:
    """Launch the runs of a study, and return one row for each classifier.

    Args:
        with_equal_time: returns the plan with classifiers trained from scratch for as long as a pretraining.
    """
    launch_all(plan.each_pretraining, run.stages)
    launch_all(list(plan.classifiers.values()), run.stages)
    if plan.matched:
        plan = with_equal_time(_equal_time(run, plan))
        launch_all(list(plan.classifiers.values()), run.stages, "equal time")
    launch_all(list(plan.evaluations.values()), run.stages)
    scores = next(iter(plan.evaluations.values())).directory / "report.json"
    if scores.is_file():
        log_small_classes(json.loads(scores.read_text())["classes"])
    rows = [results.row_of(p.directory, c.initialization, c.mode) for c, p in plan.evaluations.items()]
    rows = with_costs(rows, settings.device)
    if settings.mode == AUTO:
        pretrained = [i for i in dict.fromkeys(r.initialization for r in rows) if i not in (SCRATCH, PIXELS)]
        rows += with_auto(rows, pretrained)
    return rows


def _equal_time(run: Run, plan: Plan) -> dict[str, int]:
    """Return and note the steps of each label budget that take as long as a pretraining, once all have been run."""
    steps = equal_time_steps([r.directory for r in plan.each_pretraining], plan.scratch)
    run.note(equal_time_steps=steps)
    named = ", ".join(f"{n:,} ({text})" for text, n in steps.items())
    log.info("Steps from scratch for as long as a pretraining takes: %s.", named)
    return steps


def _maps(settings: Compare, pretrained: Mapping[str, Path], loaded: StudyData) -> Maps | None:
    """Return maps of validation or else training images; None if the classifiers may have other classes."""
    if any(key_of(s).startswith("dataset.") for s in settings.finetune):
        return None
    pool = loaded.pool
    return embedding_maps(
        pretrained, settings.backbone, settings.dataset, settings.device, pool.train, pool.val or pool.data
    )


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

    def planned(config: Node, steps: dict[str, int] | None = None) -> Plan:
        return plan_of(run.stages, config, chosen, loaded, config_dir, steps)

    to_be_fitted = limit is not None and "budget_epochs" not in run.summary
    plan = planned(run.config, run.summary.get("equal_time_steps"))
    times = times_of(plan, loaded, new_epochs=to_be_fitted)
    if to_be_fitted:
        assert limit is not None

        def with_epochs(epochs: int) -> Plan:
            config = {**run.config, "train": {**train, "epochs": epochs, "steps": None}}
            return planned(config)

        epochs = _epochs_before(run, with_epochs) or times.epochs_within(limit)
        run.resolve(train={**train, "epochs": epochs, "steps": None})
        run.note(budget_epochs=epochs)
        plan = with_epochs(epochs)
        times = times_of(plan, loaded)
        budget = run.config["budget"]
        log.info("budget=%s allows %s of each pretraining.", budget, counted(epochs, "epoch"))
    if plan.matched and all(r.finished() for r in [*plan.each_pretraining, *plan.classifiers.values()]):
        plan = planned(run.config, _equal_time(run, plan))  # which another study may have trained
        times = times_of(plan, loaded)
    log.info("%s", times.describe(plan))
    return plan


def _epochs_before(run: Run, with_epochs: Callable[[int], Plan]) -> int | None:
    """Return the number of epochs of an earlier study with the same settings whose pretrainings can be reused."""
    wanted = _without_epochs(run.config)
    for directory, summary in reversed(find([COMPARE])):
        if "budget_epochs" in summary and _without_epochs(summary["config"]) == wanted:
            epochs = int(summary["budget_epochs"])
            if any(r.directory.is_dir() for r in with_epochs(epochs).each_pretraining):
                log.info("Using the number of epochs of the same study in %s, to reuse its pretrainings.", directory)
                return epochs
    return None


def _without_epochs(config: Node) -> Node:
    train = {k: v for k, v in config["train"].items() if k not in ("epochs", "steps")}
    return {**config, "train": train, "resume": None}
