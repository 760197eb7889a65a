from pathlib import Path
from typing import Any

import pytest

from sslrun.base.errors import UserError
from sslrun.run.encoders import newest_encoder, source_of
from sslrun.run.find import FoundRun


def pretrained(name: str, root: str, status: str = "finished", pretext: str = "simclr") -> FoundRun:
    """Return a pretrain run on a folder of images, with a checkpoint."""
    path = Path("outputs/pretrain", name)
    path.mkdir(parents=True)
    (path / "last.pt").touch()
    dataset = {"_target_": "sslrun.data.sources.folder.folder", "root": root}
    config = {"dataset": dataset, "backbone": {"_target_": "smallcnn"}, "pretext": {"_target_": f"a.{pretext}"}}
    return path, {"status": status, "config": config}


def test_the_newest_run_is_of_the_same_images_and_task_and_finished() -> None:
    Path("mine").mkdir()
    runs = [
        pretrained("a", "mine"),
        pretrained("b", "./mine", pretext="rotation"),
        pretrained("c", "other"),
        pretrained("d", "mine", status="interrupted"),
    ]

    def newest(dataset: dict[str, Any], pretext: str | None = None) -> str | None:
        run = newest_encoder(runs, {}, dataset, pretext)
        return run and run[0].name

    of_folder = {"_target_": "sslrun.data.sources.folder.folder"}
    assert newest({}) == "c"
    assert newest({**of_folder, "root": str(Path("mine").resolve())}) == "b"
    assert newest({**of_folder, "root": "mine"}, "simclr") == "a"
    assert newest({**of_folder, "root": "third"}) is None
    assert newest({"_target_": "digits"}) is None
    (runs[2][0] / "last.pt").unlink()
    assert newest({}) == "b"


def test_the_newest_run_has_the_same_backbone() -> None:
    runs = [pretrained("a", "mine"), pretrained("b", "mine")]
    runs[1][1]["config"]["backbone"]["_target_"] = "resnet18"
    for target, name in (("smallcnn", "a"), ("resnet18", "b")):
        run = newest_encoder(runs, {"_target_": target}, {})
        assert run is not None
        assert run[0].name == name
    assert newest_encoder(runs, {"_target_": "mobilenetv2"}, {}) is None
    (runs[1][0] / "last.pt").rename(runs[1][0] / "previous.pt")
    run = newest_encoder(runs, {}, {})
    assert run is not None
    assert run[0].name == "b"


def test_values_of_init() -> None:
    runs = [pretrained("a", "mine"), pretrained("b", "mine", pretext="mine"), pretrained("c", "mine", pretext="other")]
    dataset = {"_target_": "sslrun.data.sources.folder.folder", "root": "mine"}

    def found(init: str, backbone: str = "smallcnn") -> str:
        return str(source_of(init, runs, {"_target_": backbone}, dataset))

    assert found("latest") == "outputs/pretrain/c"
    assert found("simclr") == "outputs/pretrain/a"
    assert found("mine") == "outputs/pretrain/b"
    Path("weights.bin").touch()
    Path("simclr").touch()
    Path("rotation").mkdir()
    assert [found(n) for n in ("weights.bin", "simclr")] == ["weights.bin", "simclr"]  # files of these names
    for init, words in (
        ("rotation", "no pretrain rotation run of smallcnn on folder (3 other runs in outputs/pretrain); pretrain with "
                     "sslrun pretrain pretext=rotation, or use init=scratch"),
        ("a/b", "init=a/b: no such run or file"),
        ("a.ckpt", "init=a.ckpt: no such run or file"),
        ("simcrl", "init=simcrl: no such pretext task, run or file; did you mean simclr? Pretrained here: mine, other, "
                   "simclr; or use auto, latest, scratch, pretrained, a run directory or a file"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            found(init)
        assert words in str(error.value)
    with pytest.raises(UserError) as error:
        found("latest", "resnet18")
    assert "no pretrain run of resnet18 on folder (3 other runs" in str(error.value)
    assert str(error.value).endswith("sslrun pretrain, or use init=scratch")
    Path("rotation/summary.json").touch()
    assert found("rotation") == "rotation"
    assert found("outputs/pretrain/a") == "outputs/pretrain/a"
