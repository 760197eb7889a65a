import json
from pathlib import Path

import pytest

from tests.helpers import SMALL_STUDY, Cli, runs, study_runs, study_table, summary


@pytest.mark.slow
def test_what_is_the_same_is_taken_once_and_what_is_lost_is_made_anew(cli: Cli) -> None:
    twice = ('pretexts=[rotation,"rotation  train.steps=4"]', "label_fractions=[0.01,0.02]", "mode=finetune", "seeds=1")
    answer = cli("compare", *SMALL_STUDY, *twice)
    assert answer.code == 0, answer.err
    assert "0.01 and 0.02 of the labels are the same 10: they are taken once." in answer.err
    assert "rotation  train.steps=4 is the same as rotation: it is taken once." in answer.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 3)
    (study,) = runs("compare")
    assert len(study_table(study)) == 3
    own = cli("report", str(study))  # in which nothing chooses, since no probe was asked for
    assert own.code == 0, own.err
    assert "auto" not in own.out + own.err
    (weights,) = {p.parent for p in Path("outputs/pretrain/study_runs").glob("*/*.pt")}
    before = (weights / "summary.json").read_text()
    for path in weights.glob("*.pt"):
        path.unlink()
    again = cli("compare", *SMALL_STUDY, *twice[:-1], "seeds=2")
    assert again.code == 0, again.err
    assert (len(study_runs("pretrain")), len(study_runs("finetune"))) == (1, 6)
    assert json.loads(before)["data_fingerprint"] == summary(weights)["data_fingerprint"]
    damaged = Path("outputs/finetune/study_runs", min(study_runs("finetune")))
    (damaged / "summary.json").write_text("{")
    wrong = cli("compare", *SMALL_STUDY, *twice)
    assert wrong.code == 1
    assert f"move {damaged} away to have it made anew" in wrong.err
    (study / "results.csv").write_text("begin,mode\n1,2\n")
    for there, words in ((study, "is not as a study writes it"), (runs("compare")[-1], "has not come to its end")):
        wrong = cli("report", str(there))
        assert wrong.code == 1
        assert words in wrong.err
        assert "Traceback" not in wrong.err
