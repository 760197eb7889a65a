"""Overrides of the command line."""

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from sslrun.base.errors import UserError
from sslrun.config.overrides import check_overrides
from sslrun.stages.table import settings as settings_named
from tests.helpers import TINY, Cli, bounded, runs, summary


def test_case_68_and_69_overrides_win_and_the_saved_config_runs_again(cli: Cli) -> None:
    arguments = (
        "pretrain",
        "pretext=simclr",
        "pretext.temperature=0.3",
        "dataset.max_images=100",
        *TINY,
        "train.steps=3",
    )
    assert cli(*arguments).code == 0
    first = summary(runs("pretrain")[-1])
    assert first["config"]["pretext"]["temperature"] == 0.3
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/again.yaml").write_text(
        "# @package _global_\n" + (runs("pretrain")[-1] / "config.yaml").read_text()
    )
    assert cli("pretrain", "-cd", "mine", "experiment=again").code == 0
    second = summary(runs("pretrain")[-1])
    assert second["train/loss"] == first["train/loss"]
    assert second["config"] == first["config"]


WORDS = [
    "pretext", "simclr", "train", ".steps", ".batch_size", "backbone", ".widths", "dataset", ".root", "device", "seed",
    "=", "==", ",", "[", "]", "{", "}", "(", ")", "'", '"', "\\", "$", "${", "}", "~", "+", "++", "@", ":", "/", " ",
    "null", "true", "1", "-1", "0.5", "1e400", "nan", "choice(", "range(", "glob(", "*", "é", "\x00", "\n", "oc.env:X",
    "hydra", ".run.dir", "_target_", "???",
]  # fmt: skip


@bounded(60)
@given(st.lists(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=6).map("".join), max_size=3))
@example(["dataset.root=${oc.env:X}"])
@example(["seed=[1,{a:2}]", "~seed"])
@example(["train={}"])
def test_any_override_is_taken_or_refused_in_words(overrides: list[str]) -> None:
    for multirun in (False, True):
        try:
            check_overrides("pretrain", settings_named("pretrain"), overrides, None, multirun)
        except UserError as error:
            assert str(error).strip()
