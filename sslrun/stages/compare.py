"""`sslrun compare`: does pretraining help on these pictures, and from how many labels on?"""

from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from sslrun import page, preflight, results, study
from sslrun.config import Count, DatasetNode, Node, Positive, PositiveInt, UserError
from sslrun.console import ERR, log
from sslrun.data import survey
from sslrun.data.dataset import describe
from sslrun.data.splits import check_amount
from sslrun.maps import embedding_maps
from sslrun.parts import run_parts
from sslrun.report import write_csv
from sslrun.run import Run, read_summary

NotEmpty = Field(min_length=1)


def compare(
    run: Run,
    *,
    pretexts: Annotated[list[str], NotEmpty] | None,
    label_fractions: Annotated[list[Positive], NotEmpty],
    labels_per_class: Annotated[list[PositiveInt], NotEmpty] | None,
    seeds: PositiveInt,
    mode: Literal["auto", "finetune", "probe"],
    imagenet: bool | Literal["auto"],
    finetune: list[str],
    budget: str | None,
    pretext: Node,
    backbone: Node,
    dataset: DatasetNode,
    unlabeled: str | None,
    device: Node,
    optimizer: Node,
    train: Node,
    seed: Count,
    resume: str | None,
) -> dict[str, Any]:
    """Pretrain once with each task; train classifiers from there, from scratch and frozen on the same label subsets.

    Every classifier is evaluated on the test split; choices (`mode=auto`, the best epoch) are made on validation.

    Returns:
        What goes into the summary.

    Raises:
        UserError: no labels, a task or setting that does not exist, a budget that is too small, or runs that failed.
    """
    chosen = run.summary.get("choices") or dict(HydraConfig.get().runtime.choices)
    own = next((s.path for s in HydraConfig.get().runtime.config_sources if s.provider == "command-line"), None)
    run.note(choices={k: v for k, v in chosen.items() if not k.startswith("hydra")})
    for fraction in label_fractions:
        check_amount(fraction, run.asked)
    limit = None if budget is None else study.seconds_of(budget)
    pictures = study.pictures_of(dataset, unlabeled)
    plan = study.plan(run.summary["config"], chosen, pictures, own)
    if mode == "auto" and pictures.val is None:
        raise UserError("mode=auto chooses on validation, and dataset.val_fraction=0 leaves none: say mode=finetune")
    advice = preflight.advice(survey.pixels(survey.sample(pictures.images)), dataset["horizontal_flip"])
    for sentence in advice:
        log.info("Advice: %s.", sentence)
    times = study.times(plan, pictures)
    if limit is not None and "budget_epochs" not in run.summary:
        epochs = times.epochs_within(limit)
        config = run.settle(train={**train, "epochs": epochs, "steps": None})
        run.note(budget_epochs=epochs)
        plan = study.plan(config, chosen, pictures, own)
        log.info("budget=%s leaves room for %d epochs of each pretraining.", budget, epochs)
    log.info("%s", times.said(plan))
    names = ", ".join(plan.pretrainings)
    run.note(
        pretext=names,
        backbone=chosen["backbone"],
        dataset=describe(dataset),
        images=len(pictures.images),
        data_fingerprint=pictures.data.fingerprint(),
        advice=advice,
        seeds={"training": seed, "split": dataset["split_seed"], "subsets": seeds},
    )
    run.goes_on()
    run_parts(list(plan.pretrainings.values()))
    run_parts(list(plan.classifiers.values()))
    run_parts(list(plan.evaluations.values()))

    rows = [results.row_of(part.directory, cell.start) for cell, part in plan.evaluations.items()]
    if mode == "auto":
        rows += results.with_auto(rows, [s for s in dict.fromkeys(r["start"] for r in rows) if s != "scratch"])
    write_csv(run.directory / "results.csv", rows)
    entries = results.compared(rows)
    conclusions = results.conclusions(entries, mode)
    pretrained = {n: p.directory for n, p in plan.pretrainings.items()}
    run.note(pretraining_seconds={n: read_summary(d)["wall_time_seconds"] for n, d in pretrained.items()})
    places = None
    if not any(s.lstrip("+").startswith("dataset.") for s in finetune):  # else the classifiers have other classes
        places = embedding_maps(pretrained, backbone, dataset, device, pictures.data, pictures.val or pictures.data)
    page.write(run.directory, rows, entries, conclusions, mode, places, run.summary)
    ERR.print(results.table(entries))
    for sentence in conclusions:
        ERR.print(sentence, markup=False)
    ERR.print(f"The report: {run.directory / 'report.html'}", markup=False)
    best = results.best_classifier(rows)
    ERR.print(f"The best classifier: sslrun predict image.jpg run={best}", markup=False)
    return {"conclusions": conclusions, "best_classifier": best}
