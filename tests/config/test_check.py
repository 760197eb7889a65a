"""All mistakes of a config are reported together, with the nearest valid name."""

from pathlib import Path

from tests.helpers import Cli


def test_cases_65_to_67_all_mistakes_at_once_with_the_nearest_name(cli: Cli) -> None:
    answer = cli(
        "pretrain", "pretext.temprature=0.2", "train.batch_size=many", "optimizer=adamv", "epochs=3", "seed=1.5",
    )  # fmt: skip
    assert answer.code == 1
    result = answer.err
    assert "pretext.temprature: no such key; did you mean pretext.temperature?" in result
    assert "train.batch_size: must be an integer, found many" in result
    assert "optimizer=adamv: no such optimizer; did you mean adam? Choices: adam, adamw, lars, sgd" in result
    assert "epochs: no such key; did you mean train.epochs?" in result
    assert "seed: must be an integer, found 1.5" in result
    assert len(answer.lines()) == 5
    answer = cli("pretrain", "dataset=digits", "train.epochs=0", "device.precision=bf17")  # known from signatures only
    assert answer.code == 1
    assert "train.epochs: must be at least 1, found 0" in answer.err
    assert "device.precision: must be one of auto, fp32, bf16 or fp16, found bf17" in answer.err
    assert len(answer.lines()) == 2
    assert not Path("outputs").exists()


def test_a_typo_inside_a_yaml_file_is_caught(cli: Cli) -> None:
    Path("mine/dataset").mkdir(parents=True)
    Path("mine/experiment").mkdir()
    Path("mine/dataset/mine.yaml").write_text(
        "defaults: [_shared, _self_]\n_target_: sslrun.data.sources.digits.digits\nroot: null\n"
        "image_sise: 24\nimage_size: big\n"
    )
    Path("mine/experiment/mine.yaml").write_text("# @package _global_\ntrain: {epochz: 3}\nsed: 1\n")
    answer = cli("pretrain", "-cd", "mine", "dataset=mine", "experiment=mine")
    assert answer.code == 1
    assert "dataset.image_sise: no such key; did you mean dataset.image_size?" in answer.err
    assert "dataset.image_size: must be an integer, found big" in answer.err
    assert "train.epochz: no such key; did you mean train.epochs?" in answer.err
    assert "sed: no such key; did you mean seed?" in answer.err
    assert len(answer.lines()) == 4
