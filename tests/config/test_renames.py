"""Old names of 0.1.0: config keys in every spelling, with one notice each, and files of old runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.config import renames
from sslrun.config.renames import KEYS, renamed_config, renamed_overrides, with_label_counts
from tests.helpers import QUICK, Cli

HERE = Path(__file__).parents[2]
TINY = ("backbone=smallcnn", "backbone.widths=[4]", "dataset=digits", "dataset.image_size=16", "dataset.max_images=200")
NOTICE = re.compile(r"^(\w+) is now called (\w+); the old name is accepted until 0\.2\.0\.$", re.M)


@pytest.fixture(autouse=True)
def _first_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "_noted", set())


def newest(stage: str) -> Path:
    return max(p.parent for p in Path("outputs", stage).glob("*/summary.json"))


def config(stage: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((newest(stage) / "summary.json").read_text())["config"]
    return found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("readout=grid", "pooling=grid"),
        ("+readout=grid", "+pooling=grid"),
        ("++readout=average,grid", "++pooling=average,grid"),
        ("~readout", "~pooling"),
        ("finetune.readout=grid", "finetune.pooling=grid"),
        ("labelled=labelled/readout=x", "labeled=labelled/readout=x"),
        ("augment.tilt=3", "++augment.degrees=3"),
        ("~augment.tilt", "~augment.degrees"),
        ("finetune.augment.tilt=3,4", "finetune.augment.degrees=3,4"),
        ("pretext.augment.tilt=3", "++pretext.augment.degrees=3"),
        ("pretext.augment={tilt: 3,blur: 0.0}", "pretext.augment={degrees: 3,blur: 0.0}"),
        ('search=["readout=grid","augment.tilt=3"]', 'search=["pooling=grid","augment.degrees=3"]'),
        ("finetune=['readout=grid',~augment.tilt]", "finetune=['pooling=grid',~augment.degrees]"),
        ('finetune.search=["readout=grid"]', 'finetune.search=["pooling=grid"]'),
        ('pretexts=["simclr pretext.augment.tilt=3",jigsaw]', 'pretexts=["simclr pretext.augment.degrees=3",jigsaw]'),
        ("dataset.root=readout=x", "dataset.root=readout=x"),
        ("pretext.readout=3", "pretext.readout=3"),
        ("mytilt=3", "mytilt=3"),
    ],
)
def test_overrides(old: str, new: str) -> None:
    assert renamed_overrides([old]) == [new]
    assert renamed_overrides([new]) == [new]


def test_a_config_of_0_1_is_renamed_without_a_notice(capfd: pytest.CaptureFixture[str]) -> None:
    augment = {"_target_": "sslrun.augment.Augment", "tilt": 5.0, "horizontal_flip": "${dataset.horizontal_flip}"}
    old = {"readout": "grid", "augment": augment, "search": ["readout=grid"], "dataset": {"readout": 1}}
    new = {"_target_": "sslrun.augment.Augment", "degrees": 5.0, "horizontal_flip": "${dataset.horizontal_flip}"}
    assert renamed_config(old) == {
        "pooling": "grid", "augment": new, "search": ["pooling=grid"], "dataset": {"readout": 1},
    }  # fmt: skip
    assert "tilt" in augment
    assert capfd.readouterr().err == ""


def test_an_old_key_wins_over_the_default_and_the_command_line_over_both() -> None:
    both = {"pooling": "auto", "readout": "grid"}
    assert renamed_config(both) == renamed_config(dict(reversed(both.items()))) == {"pooling": "grid"}
    assert renamed_config({"readout": "grid", "pooling": "average"}, ["pooling=average"]) == {"pooling": "average"}


def test_every_new_key_exists_and_no_old_one_does() -> None:
    text = "\n".join(p.read_text() for p in (HERE / "conf").rglob("*.yaml"))
    for old, new in KEYS.items():
        assert re.search(rf"^\s*{new.rpartition('.')[2]}:", text, re.M), new
        assert not re.search(rf"^\s*{old.rpartition('.')[2]}:", text, re.M), old


def test_old_keys_on_the_command_line_get_one_notice_each(cli: Cli) -> None:
    once = (
        "init=scratch",
        "mode=finetune",
        "train.steps=1",
        "train.evaluations=1",
        "label_fraction=0.2",
        *TINY,
        *QUICK,
    )
    answer = cli("finetune", "readout=grid", "augment.tilt=3", *once)
    assert answer.code == 0, answer.err
    assert NOTICE.findall(answer.err) == [("readout", "pooling"), ("tilt", "degrees")]
    now = OmegaConf.create(config("finetune"))
    assert (now.pooling, now.augment.degrees) == ("grid", 3)
    assert "readout" not in now
    assert not NOTICE.findall(cli("finetune", "readout=grid", *once).err)  # logged before, in this process


def test_old_keys_in_a_sweep(cli: Cli) -> None:
    answer = cli(
        "finetune", "-m", "init=scratch", "mode=probe", "readout=average,grid", "label_fraction=0.2", *TINY, *QUICK
    )
    assert answer.code == 0, answer.err
    assert NOTICE.findall(answer.err) == [("readout", "pooling")]
    made = [
        json.loads(p.read_text())["config"]["pooling"]
        for p in sorted(Path("outputs").glob("finetune/*/*/summary.json"))
    ]
    assert made == ["average", "grid"]


def test_mistakes_in_old_keys_are_reported_with_new_names(cli: Cli) -> None:
    assert (
        "pooling: must be one of average or grid or auto"
        in cli("finetune", "readout=mean", "init=scratch", "dataset=digits", "backbone=smallcnn", *QUICK).err
    )
    assert "pooling: no such key" in cli("pretrain", "dataset=digits", "readout=grid", *QUICK).err
    assert (
        "pretext.augment.degrees: must be at most 45"
        in cli("pretrain", "dataset=digits", "pretext.augment.tilt=99", *QUICK).err
    )


@pytest.mark.slow
def test_old_keys_in_user_yaml_files(cli: Cli) -> None:
    shutil.copytree(HERE / "conf/pretext", "mine/pretext")
    own = Path("mine/pretext/tilted.yaml")
    own.write_text(Path("mine/pretext/rotation.yaml").read_text().replace("degrees: 0.0", "tilt: 10.0"))
    Path("mine/experiment").mkdir()
    Path("mine/experiment/extended.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /pretext: rotation\npretext:\n  augment:\n    tilt: 20.0\n"
    )
    short = ("-cd", "mine", "train.steps=1", "train.evaluations=1", *TINY, *QUICK)
    for given, degrees, notices in (
        (("pretext=tilted",), 10.0, 1),
        (("experiment=extended",), 20.0, 0),
        (("pretext=tilted", "pretext.augment.tilt=5"), 5, 0),
        (("experiment=extended", "pretext.augment.degrees=6"), 6, 0),
    ):
        answer = cli("pretrain", "dataset=digits", *short[:2], *given, *short[2:])
        assert answer.code == 0, answer.err
        assert len(NOTICE.findall(answer.err)) == notices
        made = OmegaConf.create(config("pretrain")).pretext.augment
        assert made.degrees == degrees
        assert "tilt" not in made


@pytest.mark.parametrize(
    ("old", "budget"),
    [
        ({"label_fraction": 0.1, "labels_per_class": None}, "label_fraction=0.1"),
        ({"label_fraction": None, "labels_per_class": 5}, "labels_per_class=5"),
        ({}, "label_fraction=1"),
    ],
)
def test_the_labels_of_older_runs_are_counted_as_today(old: dict[str, object], budget: str) -> None:
    summary = {"stage": "finetune", "labels": {"train": 30, "validation": 12}, **old}
    assert with_label_counts(summary) == {
        "stage": "finetune", **old, "label_budget": budget, "labels_total": 42, "labels_train": 30, "labels_val": 12,
        "val/images": 12,
    }  # fmt: skip
    for today in ({"stage": "pretrain"}, {"labels_total": 60, "labels_train": 60, "labels_val": 0}):
        assert with_label_counts(today) == today


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["pretexts=[rotation,simclr]"], "[rotation,simclr]"),
        (["pretexts=[rotation]", "imagenet=false"], "[rotation]"),
        (["pretexts=[rotation]", "imagenet=auto"], "[rotation]"),
        (['pretexts=[rotation,"simclr seed=3"]', "imagenet=true"], '[rotation,"simclr seed=3",pretrained]'),
        (["imagenet=true"], "[jigsaw,pretrained]"),
        (["pretexts=[rotation]", "imagenet=True"], "[rotation,pretrained]"),  # Hydra takes any case
        (["pretexts=NULL", "imagenet=TRUE"], "[jigsaw,pretrained]"),
        (["imagenet=False"], "[jigsaw]"),
        (["imagenet=false"], "[jigsaw]"),
        (["imagenet=auto"], "null"),
        (["pretexts=null"], "null"),
        (["pretexts=simclr"], "simclr"),  # which is reported as no list
    ],
)
def test_older_keys_of_a_study_become_its_inits(old: list[str], new: str, caplog: pytest.LogCaptureFixture) -> None:
    assert renames.with_inits(["seeds=3", *old], lambda: "jigsaw") == ["seeds=3", f"inits={new}"]
    keys = [o.partition("=")[0] + "=" for o in old]
    verb = "are" if len(old) > 1 else "is"
    assert caplog.messages == [f"{' and '.join(keys)} {verb} now inits=; read as inits={new}"]


@pytest.mark.parametrize("value", ["yes", "1", "", "[true]"])
def test_another_value_of_imagenet_is_one_line(value: str) -> None:
    message = f"^imagenet={re.escape(value)}: must be auto, true or false; it is now inits=\\[\\.\\.\\.,pretrained\\]$"
    with pytest.raises(UserError, match=message):
        renames.with_inits(["pretexts=[rotation]", f"imagenet={value}"], lambda: "jigsaw")
    with pytest.raises(UserError, match=message):
        renamed_config({"pretexts": ["rotation"], "imagenet": value})


def test_overrides_with_inits_stay_and_both_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert renames.with_inits(["inits=[simclr]", "seeds=3"], lambda: "jigsaw") == ["inits=[simclr]", "seeds=3"]
    assert not caplog.messages
    with pytest.raises(UserError, match="pretexts= is now inits=; give only that"):
        renames.with_inits(["inits=[simclr]", "pretexts=[simclr]"], lambda: "jigsaw")


@pytest.mark.parametrize(
    ("old", "inits"),
    [
        ({"pretexts": ["rotation"], "imagenet": "auto"}, ["rotation"]),
        ({"pretexts": ["rotation"], "imagenet": True}, ["rotation", "pretrained"]),
        ({"pretexts": None, "imagenet": True}, ["simclr", "pretrained"]),
        ({"pretexts": None, "imagenet": False}, ["simclr"]),
        ({"pretexts": None, "imagenet": "auto"}, None),
        ({"pretexts": ["rotation"], "inits": None}, ["rotation"]),  # of a YAML file, with the default of the new key
    ],
)
def test_the_config_of_an_older_study_has_inits(old: dict[str, object], inits: list[str] | None) -> None:
    pretext = {"_target_": "sslrun.tasks.pretext.simclr.SimCLR"}
    assert renamed_config({"seeds": 3, "pretext": pretext, **old}) == {"seeds": 3, "pretext": pretext, "inits": inits}
    mixed = {"pretext": pretext, **old, "inits": ["jigsaw"]}
    assert renamed_config(mixed, ["inits=[jigsaw]"])["inits"] == ["jigsaw"]


def test_older_keys_of_a_study_on_the_command_line(cli: Cli) -> None:
    answer = cli("compare", "dataset=digits", "pretexts=[rotation,simclr]", "imagenet=true", "seeds=0", *QUICK)
    assert answer.code == 1
    assert "pretexts= and imagenet= are now inits=; read as inits=[rotation,simclr,pretrained]\n" in answer.err
    assert "seeds: must be at least 1" in answer.err
    answer = cli("compare", "imagenet=true", "experiment=rotation_flowers", "seeds=0", *QUICK)
    assert "imagenet= is now inits=; read as inits=[rotation,pretrained]\n" in answer.err
