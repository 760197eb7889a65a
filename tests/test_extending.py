"""The examples of docs/extending.md, each as it stands on the page."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from sslrun.base.paths import EXTENDING
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST
from tests.helpers import QUICK, Cli

SECTIONS = {text.partition("\n")[0]: text for text in EXTENDING.read_text().split("\n## ")}
SHORT = {
    "pretrain": ("train.steps=3", "train.evaluations=1", "dataset.max_images=120", *QUICK),
    "finetune": ("train.steps=3", "train.evaluations=1", *QUICK),
    "evaluate": QUICK,
    "data check": (*QUICK, "batch_size=8"),
}
SMALL = ("backbone.widths=[8,16]", "train.batch_size=32")


def written(section: str) -> list[list[str]]:
    """Write the files of a section, each below a line with its name, and return the commands."""
    files = re.findall(r"^`([\w/]+\.(?:py|yaml))`\n\n```(?:python|yaml)\n(.*?)^```$", SECTIONS[section], re.M | re.S)
    assert [Path(name).suffix for name, _ in files] == [".py", ".yaml"]
    for name, text in files:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    commands = re.findall(r"^sslrun (.+)$", SECTIONS[section], re.M)
    assert commands
    return [line.split() for line in commands]


def run_all(cli: Cli, commands: list[list[str]], *of_pretrain: str) -> None:
    for command in commands:
        name = " ".join(command[: 1 + (command[0] == "data")])
        answer = cli(*command, *SHORT.get(name, ()), *(of_pretrain if name == "pretrain" else ()))
        assert answer.code == 0, answer.err


def only(stage: str) -> Path:
    (run,) = Path("outputs", stage).iterdir()
    return run


def summary(stage: str) -> dict:
    return json.loads((only(stage) / "summary.json").read_text())


def test_every_python_block_of_the_page_is_in_a_section_that_is_run() -> None:
    run = [s for s, text in SECTIONS.items() if "```python" in text]
    assert run == ["A pretext task", "A task with a teacher", "A task with a decoder", "A backbone", "A data set"]


ALWAYS = ("curves", "neighbors")  # figures of every pretraining


@pytest.mark.parametrize(
    ("section", "figures", "downstream"),
    [
        ("A pretext task", {"views", *ALWAYS}, "encoder"),
        pytest.param("A task with a teacher", {"views", *ALWAYS}, "teacher.encoder", marks=pytest.mark.slow),
        pytest.param("A task with a decoder", {"views", "outputs", *ALWAYS}, "encoder", marks=pytest.mark.slow),
    ],
)
def test_a_task_of_the_page_pretrains_resumes_and_is_probed(
    cli: Cli, section: str, figures: set[str], downstream: str
) -> None:
    run_all(cli, written(section), *SMALL)
    pretrained = only("pretrain")
    assert {p.stem for p in pretrained.glob("figures/*.png")} == figures
    assert checkpoint.load(pretrained / LAST)["downstream"] == downstream
    assert summary("finetune")["init"] in ("flips", "mean_teacher", "hidden_cells")
    assert cli("pretrain", "resume=latest", "train.steps=5").code == 0
    assert checkpoint.load(pretrained / LAST)["step"] == 5


@pytest.mark.slow
def test_the_backbone_of_the_page_trains_predicts_and_says_where_its_file_has_to_be(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, "images")
    run_all(cli, written("A backbone"), "train.batch_size=32")
    assert checkpoint.load(only("finetune") / BEST)["downstream"] == "classifier.encoder"
    run = only("finetune").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    answer = cli("predict", f"run={run}", str(photos))
    assert answer.code == 1
    assert "widenet.widenet" in answer.err
    assert "run sslrun in the folder that has widenet.py" in answer.err


@pytest.mark.slow
def test_the_data_set_of_the_page_is_checked_pretrained_on_and_evaluated(cli: Cli, photos: Path) -> None:
    shutil.copytree(photos, "images")
    commands = written("A data set")
    with open("images/labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "split"])
        for i, path in enumerate(sorted(photos.glob("*/*.jpg"))):
            table.writerow([path.relative_to(photos).as_posix(), path.parent.name, "test" if i % 5 == 0 else "train"])
    run_all(cli, commands, *SMALL, "dataset.val_fraction=0.2")
    done = json.loads(next(Path("outputs/evaluate").glob("*/summary.json")).read_text())
    assert done["test/accuracy"] > 0.5
    Path("images/labels.csv").unlink()
    answer = cli("pretrain", "-cd", "conf", "dataset=listed", *SHORT["pretrain"])
    assert answer.code == 1
    assert re.search(r"dataset: listed.listed \(listed.py\): .* FileNotFoundError: .* \(listed.py:8\)", answer.err)
    assert len(answer.lines()) == 1
