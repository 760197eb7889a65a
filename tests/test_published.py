"""Every published data set, as it is published: fetched from a server, checked, looked at, and trained on."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from sslrun.base.errors import UserError
from sslrun.config.types import Node
from sslrun.data.dataset import Dataset, load, load_test
from tests import published
from tests.helpers import QUICK, REPOSITORY, TINY, Cli, Served, load_split

NAMES = ["cifar10", "fashion_mnist", "flowers", "flowers102", "stl10", "tinyimagenet"]


def node(name: str, served: Served, **more: Any) -> Node:
    """Return a data set's node as its YAML has it, but for the server and what is given here."""
    published.mirrored(name, served.folder, served.address, Path("mine"))
    shared = OmegaConf.load(REPOSITORY / "conf" / "dataset" / "_shared.yaml")
    own = OmegaConf.load(f"mine/dataset/{name}_here.yaml")
    merged = OmegaConf.merge(shared, own, OmegaConf.create({"val_fraction": 0.0, **more}))
    return OmegaConf.to_container(merged)  # type: ignore[return-value]


def labels(data: Dataset) -> np.ndarray:
    assert data.labels is not None
    return data.labels.numpy()


# Run in make test-all; their layouts are tested below all the same.
RARE = ("cifar10", "fashion_mnist", "stl10", "flowers102", "tinyimagenet")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in NAMES])
def test_fetch_check_preview_pretrain_finetune_evaluate(name: str, served: Served, cli: Cli) -> None:
    published.mirrored(name, served.folder, served.address, Path("mine"))
    mine = ("-cd", "mine")
    data = (f"dataset={name}_here", "dataset.image_size=16")
    fetched = cli("data", "fetch", *mine, f"dataset={name}_here")
    assert fetched.code == 0, fetched.err
    requests = len(served.requests)
    assert requests == len(published.archives(name))
    checked = cli("data", "check", *mine, *data, *QUICK, "backbone.widths=[8,16]", "batch_size=32", "format=json")
    assert checked.code == 0, checked.err
    report = json.loads(checked.out)
    assert report["splits"]["test"]["images"] > 0
    assert sum(report["splits"]["train"]["classes"].values()) == report["splits"]["train"]["images"]
    assert not report["splits"]["train"]["unreadable"]
    assert report["estimate"]["epoch_seconds"] > 0
    shown = cli("data", "preview", *mine, *data, "images=3")
    assert shown.code == 0, shown.err
    assert Path(shown.out.strip()).read_bytes().startswith(b"\x89PNG")
    assert cli("pretrain", *mine, *data, *TINY, "dataset.val_fraction=0.3", "train.steps=3").code == 0
    pretrained = json.loads(next(Path("outputs/pretrain").glob("*/summary.json")).read_text())
    assert pretrained["dataset"] == name
    unlabeled = report["splits"].get("unlabeled", {"images": 0})["images"]
    assert unlabeled == (50 if name == "stl10" else 0)
    assert pretrained["images"] > unlabeled
    assert cli("finetune", "mode=finetune", *QUICK, "train.steps=4").code == 0
    assert cli("evaluate", *QUICK).code == 0
    evaluated = json.loads(next(Path("outputs/evaluate").glob("*/summary.json")).read_text())
    assert evaluated["images"] == report["splits"]["test"]["images"]
    assert len(served.requests) == requests  # it was fetched once


def test_cifar10_pixels_labels_and_splits(served: Served) -> None:
    train, _ = load_split(node("cifar10", served))
    test = load_test(node("cifar10", served))
    assert (len(train), len(test)) == (100, 20)
    assert train.class_names[3] == "cat"
    corner = train.images[:][:, :, 0, 0]
    assert corner[:, 1].tolist() == labels(train).tolist()
    assert set(corner[:, 0].tolist()) == {1, 2, 3, 4, 5}
    assert set(test.images[:][:, 0, 0, 0].tolist()) == {6}


def test_fashion_mnist_pixels_and_labels(served: Served) -> None:
    train, _ = load_split(node("fashion_mnist", served, image_size=28))
    assert (len(train), len(load_test(node("fashion_mnist", served)))) == (100, 20)
    assert train.class_names[9] == "Ankle boot"
    assert train.images[:][:, 0, 0, 0].tolist() == (labels(train) * 20).tolist()


def test_stl10_pixels_labels_and_the_unlabelled(served: Served) -> None:
    train, _ = load_split(node("stl10", served))
    assert train.class_names[5] == "dog"
    assert labels(train)[:12].tolist() == [*range(10), 0, 1]
    first = np.array(published.piece(96, 300 * len("train")))
    assert (train.images[:1][0].permute(1, 2, 0).numpy() == first).all()  # columns and rows are not swapped
    unlabeled = load(node("stl10", served), "unlabeled")
    assert unlabeled is not None
    assert (len(train), len(load_test(node("stl10", served))), len(unlabeled)) == (60, 20, 50)
    assert unlabeled.labels is None
    some, _ = load_split(node("stl10", served, classes=["dog", "cat"]))
    assert (len(some), some.class_names) == (12, ["dog", "cat"])
    assert load(node("stl10", served, classes=["dog", "cat"]), "unlabeled") is not None


def test_tinyimagenet_words_and_annotations(served: Served) -> None:
    train, _ = load_split(node("tinyimagenet", served))
    test = load_test(node("tinyimagenet", served))
    assert train.class_names == ["goldfish", "goose", "king penguin"]  # words, in the order of the ids
    assert (len(train), len(test)) == (90, 6)
    expected = {f"val/images/val_{2 * c + i}.JPEG": sorted(published.WNIDS).index(w)
                for c, w in enumerate(published.WNIDS) for i in range(2)}  # fmt: skip
    assert dict(zip(test.names, labels(test).tolist(), strict=True)) == expected
    two, _ = load_split(
        node("tinyimagenet", served, classes={"bird": ["n01855672", "n02056570"], "fish": ["goldfish"]})
    )
    assert two.class_names == ["bird", "fish"]


def test_flowers_as_tensorflow_has_them(served: Served) -> None:
    train, _ = load_split(node("flowers", served))
    assert train.class_names == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert (len(train), len(load_test(node("flowers", served)))) == (80, 20)


@pytest.mark.parametrize("inner", ["flowers", "flowers/flowers"])
def test_case_44_flowers_as_kaggle_has_them_with_their_nested_duplicate(
    photos: Path, inner: str, served: Served
) -> None:
    shutil.copytree(photos, "data/flowers")
    if inner != "flowers":
        shutil.copytree(photos, f"data/{inner}")
    for root in ("data", "data/flowers"):
        train, _ = load_split(node("flowers", served, root=root))
        assert len(train) == 48
        assert train.class_names == ["flower", "temple"]
    assert served.requests == []


def test_flowers102_splits_and_names(served: Served) -> None:
    train, _ = load_split(node("flowers102", served, image_size=16))
    test = load_test(node("flowers102", served, image_size=16))
    assert (len(train), len(test), len(train.class_names)) == (204, 204, 102)
    assert not set(train.names) & set(test.names)
    assert train.names[0] == "jpg/image_00001.jpg"
    assert labels(train).tolist() == [*range(102)] * 2
    assert train.class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]


@pytest.mark.parametrize("name", NAMES)
def test_case_43_without_network_one_line_says_what_to_fetch_and_where_to_put_it_and_there_it_is_used(
    name: str, served: Served
) -> None:
    settings = node(name, served)
    files = published.archives(name)
    served.server.shutdown()
    served.server.server_close()
    places = {}
    for _ in files:
        with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused.*\): download") as caught:
            load_split(settings)
        text = str(caught.value)
        assert "\n" not in text
        assert all(n in text for n in files if n not in places)  # all that are missing are named
        place = Path(text.split(" is not at ")[1].split(" and cannot")[0])
        address = text.split(": download ")[1].split(" elsewhere")[0]
        assert address == f"{served.address}/{place.name}"
        place.write_bytes(files[place.name])
        places[place.name] = place
    assert len(load_split(settings)[0]) > 0
    assert set(places) == set(files)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cifar10", "data/cifar10/cifar-10-batches-py/data_batch_3"),
        ("cifar10", "data/cifar10/cifar-10-batches-py/batches.meta"),
        ("fashion_mnist", "data/fashion_mnist/FashionMNIST/raw/train-images-idx3-ubyte"),
        ("flowers102", "data/flowers102/flowers-102/setid.mat"),
        ("stl10", "data/stl10/stl10_binary/train_X.bin"),
        ("tinyimagenet", "data/tinyimagenet/tiny-imagenet-200/words.txt"),
    ],
)
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_a_damaged_data_set_is_named_in_one_line(name: str, damage: str, how: str, served: Served) -> None:
    settings = node(name, served)
    load_split(settings)
    path = Path(damage)
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])
    else:
        path.unlink()
    served.requests.clear()
    for p in Path("data").rglob("*.gz"):
        p.unlink()
    served.server.shutdown()
    if name == "tinyimagenet" and how == "cut":
        assert load_split(settings)[0].class_names[-1] in published.WNIDS  # the id stands for the word that is missing
        return
    if how == "missing" and name in ("fashion_mnist", "flowers102"):
        served.server.server_close()
    with pytest.raises(UserError, match=r"does not match the published|cannot be downloaded") as caught:
        load_split(settings)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(served: Served) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("touch owned",)

    files = {**published.cifar_files(), "cifar-10-batches-py/test_batch": pickle.dumps(Evil())}
    published.write_all(files, "data")
    with pytest.raises(UserError, match="refused to load"):
        load_test(node("cifar10", served, root="data"))
    assert not Path("owned").exists()


def test_case_52_training_reads_nothing_of_test(served: Served) -> None:
    settings = node("cifar10", served, root="data")
    load_split(settings)
    Path("data/cifar-10-batches-py/test_batch").unlink()
    assert len(load_split(settings)[0]) == 100
    with pytest.raises(UserError, match="test_batch"):
        load_test(settings)


@pytest.mark.parametrize("name", [*NAMES, "digits"])
def test_license_and_source_are_in_the_yaml_and_in_the_docs(name: str) -> None:
    text = (REPOSITORY / "conf" / "dataset" / f"{name}.yaml").read_text()
    assert "# Source: http" in text
    assert "License: " in text
    assert f"| `{name}` |" in (REPOSITORY / "docs/data.md").read_text()


def test_a_run_from_before_a_data_set_had_an_address_is_refused_in_words(served: Served) -> None:
    old = {k: v for k, v in node("cifar10", served).items() if k not in ("url", "md5")}
    with pytest.raises(UserError, match=r"cifar10 needs dataset.url, dataset.md5, which an older run lacks"):
        load_split(old)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "name", "more"),
    [
        ("rotation_flowers", "flowers", ("label_fractions=[0.1]", "mode=finetune")),
        ("simclr_cifar10", "cifar10", ("labels_per_class=[2]", "mode=probe")),
        ("rotation_cifar10", "cifar10", ("labels_per_class=[2]", "mode=finetune", "search=[]")),
        (
            "rotation_tinyimagenet",
            "tinyimagenet",
            ("labels_per_class=[4]", "finetune.dataset.classes={bird: [n01855672, n02056570], fish: [n01443537]}"),
        ),
    ],
)
def test_the_source_recipes_in_miniature(
    preset: str, name: str, more: tuple[str, ...], served: Served, cli: Cli
) -> None:
    published.mirrored(name, served.folder, served.address, Path("mine"))
    small = ("dataset.image_size=16", "dataset.val_fraction=0.3", "train.steps=2", "train.batch_size=8",
             "train.evaluations=1", "finetune.train.steps=2", "finetune.train.evaluations=1", "seeds=1")  # fmt: skip
    answer = cli("compare", "-cd", "mine", f"experiment={preset}", f"dataset={name}_here", *small, *more, *QUICK)
    assert answer.code == 0, answer.err
    assert "Report: outputs/compare/" in answer.err
    (pretrained,) = Path("outputs/pretrain/study_runs").glob("*/summary.json")
    config = json.loads(pretrained.read_text())["config"]
    preset_file: Any = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf/experiment" / f"{preset}.yaml"))
    wanted = {str(k): v for k, v in preset_file.items() if k not in ("defaults", "dataset")}
    for group, keys in wanted.items():
        for key, value in keys.items():
            assert config[group][key] == value or f"{group}.{key}" in " ".join(small)
    evaluated = [json.loads(p.read_text()) for p in Path("outputs/evaluate/study_runs").glob("*/summary.json")]
    assert {e["init"] for e in evaluated} >= {"scratch", preset.split("_")[0]}
    if preset == "rotation_tinyimagenet":
        assert {len(e["subset_fingerprint"]) for e in evaluated} == {16}
        report = json.loads(next(Path("outputs/evaluate/study_runs").glob("*/report.json")).read_text())
        assert [c["class"] for c in report["classes"]] == ["bird", "fish"]


def test_every_group_that_the_readme_lists_is_there() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for p in (REPOSITORY / "conf" / "dataset").glob("[!_]*.yaml"):
        assert p.stem == "from_checkpoint" or f"`{p.stem}`" in text
