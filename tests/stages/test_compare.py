"""`sslrun compare`."""

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import SMALL_STUDY, STUDY_RUNS, Cli, study_runs, study_table, summary


def test_a_study_has_all_networks_on_the_same_subsets_and_all_outputs(in_study: Path) -> None:
    assert len(study_runs("pretrain")) == 2
    assert len(study_runs("finetune")) == len(study_runs("evaluate")) == STUDY_RUNS
    rows = study_table(in_study)
    networks = {(r["initialization"], r["mode"]) for r in rows}
    modes = ("finetune", "probe", "auto")
    assert networks == {("scratch", "finetune"), ("scratch", "probe")} | {
        (s, m) for s in ("rotation", "simclr") for m in modes
    }
    for seed in "01":
        same = [r for r in rows if r["seed"] == seed]
        assert len(same) == 8
        assert {r["labels"] for r in same} == {"30"}
        assert len({r["subset"] for r in same}) == 1
    assert len({r["subset"] for r in rows}) == 2
    figures = {p.name for p in (in_study / "figures").iterdir()}
    for name in ("label_efficiency", "learning_curves", "confusion_matrices", "class_gains", "embeddings"):
        assert {f"{name}.png", f"{name}.svg"} <= figures
    answer = summary(in_study)
    assert len(answer["conclusions"]) == 2
    assert {"choices", "pretraining_seconds", "data_fingerprint", "seeds", "command"} <= answer.keys()
    assert Path(answer["best_classifier"], "best.pt").is_file()


def test_accuracies_are_those_of_the_evaluations_and_auto_uses_validation_only(in_study: Path) -> None:
    rows = study_table(in_study)
    for r in rows:
        predicted = np.load(Path(r["evaluated"]) / "predictions.npz")
        right = predicted["probabilities"].argmax(1) == predicted["labels"]
        assert float(r["test_accuracy"]) == pytest.approx(right.mean(), abs=0.006)  # they are kept with 11 bits
    for r in [r for r in rows if r["mode"] == "auto"]:
        rivals = [
            o
            for o in rows
            if o["mode"] != "auto"
            and (o["subset"], o["seed"]) == (r["subset"], r["seed"])
            and (
                o["initialization"] == r["initialization"]
                or (o["initialization"], o["mode"]) == ("scratch", "finetune")
            )
        ]
        assert len(rivals) == 3
        assert float(r["val_accuracy"]) == max(float(o["val_accuracy"]) for o in rivals)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("pretexts=[simclrr]",), "no pretext 'simclrr'; did you mean simclr?"),
        (('pretexts=["simclr pretext.temprature=1"]',), "pretext.temprature"),
        (('pretexts=["simclr pretext.temperature=-1"]',), "pretext.temperature: must be greater than 0"),
        (("pretexts=[]",), "pretexts: must be a list of at least 1"),
        (("finetune.train.stepz=3",), "finetune.train.stepz: no such key; did you mean train.steps?"),
        (("finetune.label_smoothing=2",), "finetune.label_smoothing: must be at most 1"),
        (("label_fractions=[2.0]",), "label_fraction must be at most 1"),
        (("label_fractions=0.1",), "label_fractions: must be a list"),
        (("budget=soon",), "budget=soon: expected a time such as 90s, 30m or 2h"),
        (("budget=3s",), "one epoch of every pretraining"),
        (("mode=knn",), "mode: must be one of"),
        (("-m", "seeds=1,2"), "compare runs its own sweeps"),
        (('dataset.classes=["1"]',), "needs labeled images of at least two classes"),
        (('pretexts=["simclr backbone=resnet18"]',), "backbone=resnet18: cannot differ between the tasks of a study"),
        (('pretexts=["simclr train.epochs=3"]', "budget=9m"), "budget= sets the epochs of each pretraining"),
        (("finetune.backbone=resnet18",), "the study sets backbone itself"),
        (("finetune.dataset.image_size=8",), "the study sets dataset.image_size itself"),
        (("finetune.optimizer=sgd", "finetune.optimizer.betas=[0.9,0.9]"), "finetune.optimizer.betas: no such key"),
        (('pretexts=["simclr unlabeled=more"]',), "unlabeled=more: cannot differ between the tasks of a study"),
        (("imagenet=true",), "imagenet=true: no ImageNet weights for this backbone"),
    ],
)
def test_mistakes(cli: Cli, overrides: tuple[str, ...], words: str) -> None:
    flags = [a for a in overrides if a.startswith("-")]
    study = (*SMALL_STUDY, "pretexts=[rotation]", "seeds=1")
    answer = cli("compare", *flags, *study, *(a for a in overrides if a not in flags))
    assert words in answer.err
    assert answer.code == 1
    assert "Traceback" not in answer.err
    assert not study_runs("pretrain")
