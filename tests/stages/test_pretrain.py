"""`sslrun pretrain`."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sslrun.base.errors import UserError
from sslrun.base.paths import CONF
from sslrun.data.dataset import listed, load_train
from sslrun.data.images import Images
from sslrun.data.options import describe
from sslrun.models.encoder import Encoder
from sslrun.run import checkpoint
from sslrun.run.find import LAST
from sslrun.stages import pretrain
from sslrun.training import loop, settings
from tests.helpers import DIGITS, PRETRAIN, QUICK, REPOSITORY, TINY, Cli, folder_node, runs, stopping, summary


def test_case_53_permuted_labels_leave_pretrained_weights_unchanged(cli: Cli) -> None:
    Path("mine/dataset").mkdir(parents=True)
    Path("permuted.py").write_text(
        "from dataclasses import replace\nimport numpy as np\nfrom sslrun.data.sources.digits import digits\n"
        "def permuted(split, *, root):\n    found = digits(split, root=None)\n"
        "    return found and replace(found, labels=np.random.default_rng(0).permutation(found.labels))\n"
    )
    ours = (REPOSITORY / "conf/dataset/digits.yaml").read_text()
    Path("mine/dataset/permuted.yaml").write_text(
        ours.replace("sslrun.data.sources.digits.digits", "permuted.permuted")
    )
    states = []
    for name in ("digits", "permuted"):
        settings = ("pretext=simclr", f"dataset={name}", "dataset.val_fraction=0", "dataset.image_size=16", *TINY,
                    "train.steps=3")  # fmt: skip
        assert cli("pretrain", "-cd", "mine", *settings).code == 0
        states.append(torch.load(runs("pretrain")[-1] / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_the_first_line_has_the_loss_of_simclr(cli: Cli) -> None:
    data = ("dataset=digits", "dataset.max_images=40", "dataset.image_size=16", *TINY, "train.steps=1")
    lines = cli("pretrain", *data).err
    assert "Pretraining smallcnn with simclr (loss DCL, temperature 0.2) on " in lines
    lines = cli("pretrain", *data, "pretext.loss=ntxent", "pretext.temperature=0.5").err
    assert "Pretraining smallcnn with simclr (loss NT-Xent, temperature 0.5) on " in lines
    assert "Pretraining smallcnn with rotation on " in cli("pretrain", *data, "pretext=rotation").err


def test_unlabeled_images_are_added_to_pretraining(cli: Cli, photos: Path) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", *TINY, "train.steps=2")
    assert cli("pretrain", *data).code == 0
    assert cli("pretrain", *data, f"unlabeled={photos / 'flower'}").code == 0
    a, b = (summary(p)["images"] for p in runs("pretrain"))
    assert b == a + 30
    result, content = summary(runs("pretrain")[0]), checkpoint.load(runs("pretrain")[0] / "last.pt")
    own, _ = load_train(result["config"]["dataset"])
    assert result["images"] == len(own) == 48
    assert result["data_fingerprint"] == own.images.fingerprint().hexdigest()[:16]
    assert (result["pretext"], result["backbone"]) == ("simclr", "smallcnn")
    assert result["dataset"] == describe(result["config"]["dataset"])
    assert (result["precision"], result["memory_format"]) == ("fp32", "channels_last")
    assert (content["stage"], content["step"], content["config"]) == ("pretrain", 2, result["config"])
    pixels = own.images[:].double().transpose(0, 1).flatten(1) / 255
    for name, values in (("mean", pixels.mean(1)), ("std", pixels.std(1, correction=0))):
        assert content["model"][f"encoder.{name}"].flatten().tolist() == pytest.approx(values.tolist(), abs=1e-4)


def test_pretraining_uses_both_the_unlabeled_split_and_the_unlabeled_folder(
    cli: Cli, photos: Path, few_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(few_photos, "set/train")
    shutil.copytree(photos / "flower", "set/unlabeled")
    seen: list[int] = []

    def sampled(images: Images, seed: int) -> None:
        seen.append(len(images))
        raise UserError("no training here")

    monkeypatch.setattr(pretrain, "sample_images", sampled)
    data = ("dataset=folder", "dataset.root=set", "dataset.image_size=16", "dataset.val_fraction=0", *TINY)
    cli("pretrain", *data, f"unlabeled={photos / 'temple'}")
    train = len(listed(folder_node("set"), "train").names)  # type: ignore[union-attr]
    assert seen == [train + 30 + 30]


@pytest.mark.slow
def test_case_47_an_unlabeled_folder_pretrains_and_finetuning_on_it_is_a_clear_error(cli: Cli, photos: Path) -> None:
    data = ("dataset=folder", f"dataset.root={photos / 'flower'}", "dataset.image_size=16")
    assert cli("pretrain", *data, *TINY, "train.steps=2").code == 0
    result = summary(runs("pretrain")[-1])
    assert "val/effective_rank" in result
    assert "val/knn_accuracy" not in result
    answer = cli("finetune", "mode=finetune", *QUICK)
    assert answer.code == 1
    assert "has no labels: put the images into one folder per class" in answer.err
    other = ("dataset=folder", f"dataset.root={photos}")
    assert cli("finetune", f"init={runs('pretrain')[-1]}", *other, "mode=probe", *QUICK).code == 0


TASKS = ("rotation", "simclr", "jigsaw", "distill")
TWELVE = [(b, p) for b in ("smallcnn", "resnet18", "mobilenetv2") for p in TASKS]
SLOW = [  # they autotune; the others get a precision and memory format, which saves seconds
    ("resnet18", "distill"),
    ("mobilenetv2", "distill"),
    ("resnet18", "rotation"),
    ("resnet18", "simclr"),
    ("mobilenetv2", "rotation"),
    ("mobilenetv2", "jigsaw"),
    ("mobilenetv2", "simclr"),
    ("resnet18", "jigsaw"),
    ("smallcnn", "jigsaw"),
    ("smallcnn", "rotation"),
]


def task(pretext: str, teacher_weights: str) -> list[str]:
    """Return the arguments of a task; a distillation's teacher is a small random network."""
    teacher = ["pretext.teacher=test_resnet", f"pretext.weights={teacher_weights}"]
    return [f"pretext={pretext}", *(teacher if pretext == "distill" else ())]


@pytest.mark.parametrize(
    ("backbone", "pretext"), [pytest.param(*n, marks=pytest.mark.slow) if n in SLOW else n for n in TWELVE]
)
def test_every_task_times_three_backbones_pretrain_and_finetune(
    cli: Cli, photos: Path, teacher_weights: str, pretext: str, backbone: str
) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", "train.batch_size=4")
    steps = ("train.steps=2", "train.evaluations=1", *(() if (backbone, pretext) in SLOW else QUICK))
    assert cli("pretrain", *task(pretext, teacher_weights), f"backbone={backbone}", *data, *steps).code == 0
    assert cli("finetune", "mode=finetune", *steps).code == 0
    assert cli("evaluate", *steps[2:]).code == 0


QUICKLY = ("dino", "masked")  # with a teacher that goes downstream, sparse
VICREG = ("invariance", "variance", "covariance")
OTHERS = sorted({p.stem for p in (CONF / "pretext").glob("*.yaml")} - {*TASKS})


@pytest.mark.parametrize("pretext", [n if n in QUICKLY else pytest.param(n, marks=pytest.mark.slow) for n in OTHERS])
def test_every_other_task_pretrains_resumes_and_finetunes(
    cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch, pretext: str
) -> None:
    """Interrupted after 2 of 4 steps, it ends as if it had not been, to the bit: with its queue and its teacher."""
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=32", f"pretext={pretext}", *TINY)
    steps = ("train.evaluations=2", "train.batch_size=16", "train.steps=4")
    answer = cli("pretrain", *data, *steps)
    assert answer.code == 0, answer.err
    assert (runs("pretrain")[-1] / "figures/views.png").is_file()
    whole = checkpoint.load(runs("pretrain")[-1] / LAST)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopping(loop.train_step, 1, []))
        assert cli("pretrain", *data, *steps).code == 143
    assert checkpoint.load(runs("pretrain")[-1] / LAST)["step"] == 2
    answer = cli("pretrain", "resume=latest")
    assert answer.code == 0, answer.err
    resumed = checkpoint.load(runs("pretrain")[-1] / LAST)
    assert (resumed["step"], whole["step"]) == (4, 4)
    assert all(torch.equal(v, resumed["model"][k]) for k, v in whole["model"].items())
    assert cli("finetune", "init=latest", "mode=probe", *QUICK).code == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["pretext=moco", "pretext.queue=4096"], "pretext.queue=4096 is longer than the data set: at most 48"),
        (["pretext=moco", "pretext.queue=1000000000"], "pretext.queue=1000000000 is longer than the data set"),
        (["pretext=swav", "pretext.prototypes=1000000000"], "pretext.prototypes=1000000000 is more than a batch"),
        (["pretext=swav", "pretext.iterations=1000000"], "pretext.iterations: must be at most 1000, found 1000000"),
        (["pretext=byol", "pretext.output_dim=1"], "pretext.output_dim: must be at least 2, found 1"),
        (["pretext=vicreg", *(f"pretext.{n}_weight=0" for n in VICREG)], "variance_weight and covariance_weight must"),
        (["pretext=jigsaw", "pretext.permutations=25"], "pretext.permutations must be 2 to 24 for 4 tiles, found 25"),
        (["pretext=byol", "pretext.augment=null"], "pretext.augment: must be a mapping, found null"),
        (["seed=99999999999999999999"], "seed: must be at most 4294967295, found 99999999999999999999"),
        (["pretext=swav", "pretext.prototypes=300"], "pretext.prototypes=300 is more than a batch has images: 16"),
        (["pretext=masked", "pretext.mask_ratio=1"], "pretext.mask_ratio: must be less than 1.0, found 1"),
        (["pretext=inpainting", "pretext.mask_ratio=0"], "pretext.mask_ratio: must be greater than 0.0, found 0"),
        (["pretext=masked", "pretext.grid=20"], "Masked: pretext.grid must be 2 to 16 for images of 32 px, found 20"),
        (
            ["pretext=relative_patch", "pretext.grid=3", "dataset.image_size=12"],
            "tiles of 3 px are too small, at least 4 px",
        ),
        (["pretext=colorization", "dataset.root=gray"], "the images are gray: take another pretext"),
    ],
)
def test_what_does_not_fit_the_data_is_one_line(cli: Cli, photos: Path, keys: list[str], message: str) -> None:
    for file in photos.rglob("*.jpg"):
        for folder, mode in (("gray", "L"), ("color", "RGB")):
            place = Path(folder, file.parent.name)
            place.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert(mode).save(place / file.name)
    data = ("dataset=folder", "dataset.root=color", "dataset.image_size=32", "train.steps=1", *TINY)
    answer = cli("pretrain", *data, "train.batch_size=16", *keys)
    assert answer.code == 1
    assert message in answer.err
    assert len([line for line in answer.lines() if line.startswith("sslrun: ")]) == 1
    assert "Traceback" not in answer.err


@pytest.mark.slow
@pytest.mark.parametrize("pretext", OTHERS)
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("backbone", ["smallcnn", "resnet18", "mobilenetv2"])
def test_all_other_tasks_train_three_backbones_at_two_sizes(
    cli: Cli, photos: Path, pretext: str, backbone: str, size: int
) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", f"dataset.image_size={size}", f"backbone={backbone}", *QUICK)
    steps = ("train.batch_size=8", "train.steps=2", "train.evaluations=1")
    answer = cli("pretrain", f"pretext={pretext}", *data, *steps)
    assert answer.code == 0, answer.err
    assert cli("finetune", "init=latest", "mode=probe", *QUICK).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("pretext", TASKS)
@pytest.mark.parametrize(("library", "name"), [("timm", "test_efficientnet"), ("torchvision", "shufflenet_v2_x0_5")])
def test_all_tasks_train_networks_of_libraries_and_classifiers_start_from_them(
    cli: Cli, photos: Path, teacher_weights: str, pretext: str, library: str, name: str
) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=64", "train.batch_size=4")
    steps = ("train.steps=2", "train.evaluations=1", *QUICK)
    network = (f"backbone={library}", f"backbone.name={name}")
    answer = cli("pretrain", *task(pretext, teacher_weights), *network, *data, *steps)
    assert answer.code == 0, answer.err
    assert f"Pretraining {name} with {pretext}" in answer.err
    assert summary(runs("pretrain")[-1])["backbone"] == name
    answer = cli("finetune", *network, "mode=finetune", *steps)
    assert answer.code == 0, answer.err
    assert cli("evaluate", *steps[2:]).code == 0
    answer = cli("finetune", "init=latest", f"backbone={library}", "backbone.name=mobilenet_v2", *steps)
    assert answer.code == 1
    assert "no pretrain run of mobilenet_v2" in answer.err


@pytest.mark.slow
def test_what_taught_a_network_goes_with_it_and_labels_that_the_teacher_has_seen_are_named(
    cli: Cli, photos: Path, teacher_weights: str
) -> None:
    data = ("dataset=folder", f"dataset.root={photos}", "dataset.image_size=16", "train.batch_size=4")
    steps = ("train.steps=2", "train.evaluations=1", *QUICK)
    assert cli("pretrain", *task("distill", teacher_weights), *data, *steps).code == 0
    assert cli("finetune", "mode=finetune", "labels=20", "freeze_batch_norm=false", *steps).code == 0
    first = {"source": teacher_weights, "license": "not stated"}
    finetuned = runs("finetune")[-1]
    assert summary(runs("pretrain")[-1])["teacher"] == summary(finetuned)["teacher"] == first

    answer = cli("pretrain", "pretext=distill", f"pretext.teacher={finetuned}", *data, *steps)
    assert f"{finetuned} was trained with labels (labels=20), which later label budgets do not count" in answer.err
    student = summary(runs("pretrain")[-1])
    assert student["teacher"] == {"source": str(finetuned), "teacher": first}
    assert student["labels_seen"] == "labels=20"
    answer = cli("finetune", "mode=probe", "labels=20", *QUICK)
    assert "was trained with labels (labels=20): the label budget of this run does not count them" in answer.err


def test_pretraining_has_all_images_and_the_knn_accuracy_some(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []

    def fit(*arguments: Any) -> None:
        given.append(arguments[-1].args)
        raise UserError("no training here")

    monkeypatch.setattr(pretrain, "fit", fit)
    cli("pretrain", *DIGITS, "train.steps=2")
    ((encoder, images, (bank, queries), _),) = given
    assert len(images) == len(bank) + len(queries) == 120
    assert len(queries) == 24
    assert not set(bank.names) & set(queries.names)
    assert isinstance(encoder, Encoder)


def test_a_short_training_is_evaluated_less_often(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 steps of two views of 32 images, and evaluations of 120 + 120 + 120 images at a third of the cost."""
    monkeypatch.setattr(settings, "EVALUATION_SHARE", 0.3)
    answer = cli(*PRETRAIN, "train.evaluations=20")
    assert "Evaluations: 2 instead of train.evaluations=20; more would take over a tenth of the training." in answer.err
    assert answer.err.count("step 24/24") == 1
    assert len([line for line in answer.lines() if line.startswith("step ")]) == 2
