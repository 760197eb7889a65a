from pathlib import Path
from typing import Any

from sslrun.runs.encoders import newest_encoder
from sslrun.runs.find import FoundRun


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
