import gzip
import http.server
import io
import os
import pickle
import shutil
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslrun.console import start_logging
from sslrun.data import fetch, sources
from sslrun.data.dataset import load, load_test, load_train
from sslrun.errors import UserError

SHARED = {"image_size": 16, "val_fraction": 0.2}


def node(name: str, root: Path | str | None, **more: Any) -> dict[str, Any]:
    return {
        "_target_": f"sslrun.data.sources.{name}",
        "root": None if root is None else str(root),
        **SHARED,
        **more,
    }


# --------------------------------------------------------------------------------------------------------- folders


def test_digits_are_split_without_overlap_and_completely() -> None:
    train, val = load_train(node("digits", None))
    test = load_test(node("digits", None))
    assert val is not None
    names = [set(d.names) for d in (train, val, test)]
    assert len(set.union(*names)) == sum(map(len, names)) == 1797
    assert train.images.shape[1:] == (3, 16, 16)
    assert train.class_names == [str(i) for i in range(10)]


def test_one_folder_a_class_is_split_for_the_user(photos: Path) -> None:
    train, val = load_train(node("folder", photos))
    test = load_test(node("folder", photos))
    assert val is not None
    assert [len(train), len(val), len(test)] == [38, 10, 12]
    assert train.class_names == ["flower", "temple"]
    assert not set(train.names) & set(test.names)
    assert sorted(load_test(node("folder", photos)).names) == sorted(test.names)
    assert all(n.startswith(train.class_names[c]) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_train_and_test_folders(photos: Path, test_name: str) -> None:
    shutil.copytree(photos, "set/train")
    shutil.copytree(photos / "temple", f"set/{test_name}/temple")
    shutil.copytree(photos / "flower", "set/unlabeled")
    train, _ = load_train(node("folder", "set", val_fraction=0.0))
    assert len(train) == 60
    test = load_test(node("folder", "set"))
    assert len(test) == 30
    assert set(test.labels.tolist()) == {1}  # type: ignore[union-attr]
    more = load(node("folder", "set"), "unlabeled")
    assert more is not None
    assert len(more) == 30
    assert more.labels is None
    Path(f"set/{test_name}/temple").rename(f"set/{test_name}/castle")
    with pytest.raises(UserError, match="castle"):
        load_test(node("folder", "set"))


def test_case_47_piles_without_labels_flat_and_nested(photos: Path) -> None:
    shutil.copytree(photos / "flower", "flat")
    shutil.copytree(photos, "nested/2021/summer")
    for root, n in (("flat", 30), ("nested", 60)):
        train, val = load_train(node("folder", root))
        assert (len(train), val, train.labels) == (n, None, None)
        with pytest.raises(UserError, match="no labels"):
            load_test(node("folder", root))


@pytest.mark.parametrize("inner", ["flowers", "flowers/flowers"])
def test_case_44_flowers_as_kaggle_has_them_with_their_nested_duplicate(photos: Path, inner: str) -> None:
    shutil.copytree(photos, "data/flowers")
    if inner != "flowers":
        shutil.copytree(photos, f"data/{inner}")
    for root in ("data", "data/flowers"):
        train, _ = load_train(node("flowers", root, val_fraction=0.0))
        assert len(train) == 48
        assert train.class_names == ["flower", "temple"]


def test_a_class_of_folders_is_a_class_and_a_stray_picture_is_named(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start_logging()
    shutil.copytree(photos, "set")
    shutil.copytree(photos / "flower", "set/deep/summer")
    assert load_train(node("folder", "set"))[0].class_names == ["deep", "flower", "temple"]
    shutil.copy(photos / "flower/flower 00.jpg", "set/cover.jpg")
    assert load_train(node("folder", "set"))[0].labels is None
    assert "cover.jpg" in capfd.readouterr().err


def test_a_wrapper_folder_is_stepped_into(photos: Path) -> None:
    shutil.copytree(photos, "download/my photos")
    assert load_train(node("folder", "download"))[0].class_names == ["flower", "temple"]


@pytest.mark.parametrize(("make", "words"), [(None, "no such folder"), ("empty", "no pictures")])
def test_case_45_missing_and_empty_folders(make: str | None, words: str) -> None:
    if make:
        Path(make).mkdir()
    with pytest.raises(UserError, match=words):
        load_train(node("folder", make or "nowhere"))


def test_classes_a_subset_in_the_order_given(photos: Path) -> None:
    train, _ = load_train(node("folder", photos, classes=["temple"]))
    assert train.class_names == ["temple"]
    train, _ = load_train(node("folder", photos, classes=["temple", "flower"]))
    assert train.class_names == ["temple", "flower"]
    assert all(n.startswith("temple") == (c == 0) for n, c in zip(train.names, train.labels.tolist(), strict=True))  # type: ignore[union-attr]


def test_classes_joined_in_groups() -> None:
    train, _ = load_train(node("digits", None, classes={"round": ["0", "8"], "straight": ["1", "7", "4"]}))
    assert train.class_names == ["round", "straight"]
    assert train.class_sizes[1] > train.class_sizes[0]


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["temple", "flowr"], "no class flowr; did you mean flower"),
        ({"a": ["temple"], "b": ["temple"]}, "two groups"),
    ],
)
def test_unknown_classes(photos: Path, classes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_train(node("folder", photos, classes=classes))


def test_max_images_caps_training_and_not_test(photos: Path) -> None:
    train, val = load_train(node("folder", photos, max_images=20))
    assert len(train) + len(val or ()) == 20
    assert len(load_test(node("folder", photos))) == 12
    flat, _ = load_train(node("folder", photos / "flower", max_images=7))
    assert len(flat) == 7


def test_fingerprints_tell_data_apart(photos: Path) -> None:
    a, _ = load_train(node("folder", photos))
    assert a.fingerprint() == load_train(node("folder", photos))[0].fingerprint()
    assert a.fingerprint() != load_train(node("folder", photos, image_size=15))[0].fingerprint()
    assert a.fingerprint() != load_train(node("folder", photos, split_seed=1))[0].fingerprint()


# ----------------------------------------------------------------------------------- published data sets, in miniature


def png(colour: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (colour, 100, 100)).save(data, "JPEG")
    return data.getvalue()


def cifar_files(n: int = 20) -> dict[str, bytes]:
    """The members of cifar-10-python.tar.gz; each picture's red is its batch, its green its label."""
    files = {}
    for b, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 1):
        labels = [i % 10 for i in range(n)]
        planes = np.stack([np.concatenate([np.full(1024, v) for v in (b, c, 0)]) for c in labels]).astype(np.uint8)
        content = {b"batch_label": b"x", b"labels": labels, b"data": planes, b"filenames": [b"f.png"] * n}
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, protocol=2)
    names = [
        b"airplane",
        b"automobile",
        b"bird",
        b"cat",
        b"deer",
        b"dog",
        b"frog",
        b"horse",
        b"ship",
        b"truck",
    ]
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2)
    return files


def write_all(files: dict[str, bytes], top: str) -> None:
    for name, data in files.items():
        Path(top, name).parent.mkdir(parents=True, exist_ok=True)
        Path(top, name).write_bytes(data)


def test_cifar10_as_published() -> None:
    write_all(cifar_files(), "data")
    train, _ = load_train(node("cifar10", "data", image_size=32, val_fraction=0.0))
    test = load_test(node("cifar10", "data", image_size=32))
    assert (len(train), len(test)) == (100, 20)
    assert train.class_names[3] == "cat"
    assert train.labels is not None
    assert (train.images[:, 1, 5, 5] == train.labels).all()
    assert set(train.images[:, 0, 0, 0].tolist()) == {1, 2, 3, 4, 5}
    assert set(test.images[:, 0, 0, 0].tolist()) == {6}


def test_a_pickle_that_would_run_code_is_refused() -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, ("touch owned",)

    write_all({**cifar_files(), "cifar-10-batches-py/test_batch": pickle.dumps(Evil())}, "data")
    with pytest.raises(UserError, match="refused to load"):
        load_test(node("cifar10", "data"))
    assert not Path("owned").exists()


def tiny_imagenet_files() -> dict[str, bytes]:
    ids = ["n01855672", "n01443537", "n02056570"]
    top = "tiny-imagenet-200"
    files = {f"{top}/wnids.txt": "\n".join(ids).encode()}
    files[f"{top}/words.txt"] = b"n01443537\tgoldfish, Carassius auratus\nn01855672\tgoose\nn02056570\tking penguin\n"
    rows = []
    for c, wnid in enumerate(ids):
        files[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = b"n_0.JPEG\t0\t10\t63\t58\n"
        for i in range(6):
            files[f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"] = png(80 * c)
        files[f"{top}/val/images/val_{c}.JPEG"] = png(80 * c)
        rows.append(f"val_{c}.JPEG\t{wnid}\t0\t32\t44\t62")
    files[f"{top}/val/val_annotations.txt"] = "\n".join(rows).encode()
    files[f"{top}/test/images/test_0.JPEG"] = png(0)
    return files


def test_tinyimagenet_as_published() -> None:
    write_all(tiny_imagenet_files(), "data")
    train, _ = load_train(node("tinyimagenet", "data", image_size=64))
    test = load_test(node("tinyimagenet", "data"))
    assert train.class_names == ["goldfish", "goose", "king penguin"]  # words, in the order of the ids
    assert len(test) == 3
    red = {c: int(test.images[i, 0, 8, 8]) for i, c in enumerate(test.labels.tolist())}  # type: ignore[union-attr]
    assert red[1] < red[0] < red[2]  # goose 0, goldfish 80, penguin 160: the annotations were read
    two, _ = load_train(
        node("tinyimagenet", "data", classes={"bird": ["n01855672", "n02056570"], "fish": ["goldfish"]})
    )
    assert two.class_names == ["bird", "fish"]


def test_fashion_mnist_as_published() -> None:
    raw = Path("data/FashionMNIST/raw")
    raw.mkdir(parents=True)
    for part, n in (("train", 40), ("t10k", 10)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.repeat(labels * 20, 784).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        for kind in ("labels-idx1", "images-idx3"):
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write((raw / f"{part}-{kind}-ubyte").read_bytes())
    train, _ = load_train(node("fashion_mnist", "data", image_size=32, val_fraction=0.0))
    assert len(train) == 40
    assert len(load_test(node("fashion_mnist", "data"))) == 10
    assert train.class_names[9] == "Ankle boot"
    assert train.labels is not None
    assert (train.images[:, 0, 4, 4] == train.labels * 20).all()


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "flowers", "tinyimagenet"])
def test_case_43_without_network_one_line_says_what_to_fetch_and_where_to_put_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"cannot be downloaded \(.*\): fetch https?://\S+ elsewhere and put it"
    ) as caught:
        load_train(node(name, "data"))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- fetching


def tar_of(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(served))

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def md5(data: bytes) -> str:
    import hashlib

    return hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_fetched_verified_unpacked_and_used_again(server: str, kind: str, tmp_path: Path) -> None:
    data = tar_of(cifar_files()) if kind == "tar" else zip_of(cifar_files())
    (tmp_path / "served" / "a.bin").write_bytes(data)
    folder = fetch.archive("data", "cifar-10-batches-py", f"{server}/a.bin", md5(data))
    assert sorted(p.name for p in folder.iterdir())[:2] == ["batches.meta", "data_batch_1"]
    (tmp_path / "served" / "a.bin").unlink()
    assert fetch.archive("data", "cifar-10-batches-py", f"{server}/a.bin", md5(data)) == folder
    assert {p.name for p in Path("data").iterdir()} == {"a.bin", "cifar-10-batches-py"}


def test_case_41_a_wrong_checksum_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "served" / "a.tar.gz").write_bytes(tar_of(cifar_files()))
    with pytest.raises(UserError, match="wrong checksum"):
        fetch.archive("data", "cifar-10-batches-py", f"{server}/a.tar.gz", "0" * 32)
    assert not Path("data/cifar-10-batches-py").exists()


def test_a_file_put_there_by_hand_is_used() -> None:
    data = tar_of(cifar_files())
    Path("data").mkdir()
    Path("data/a.tar.gz").write_bytes(data)
    assert fetch.archive("data", "cifar-10-batches-py", "http://127.0.0.1:9/a.tar.gz", md5(data)).is_dir()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "cifar-10-batches-py/../../evil.txt"])
def test_case_40_members_that_leave_their_folder(name: str) -> None:
    for pack in (tar_of, zip_of):
        shutil.rmtree("data", ignore_errors=True)
        Path("data").mkdir()
        data = pack({**cifar_files(), name: b"evil"})
        Path("data/a.bin").write_bytes(data)
        try:
            fetch.archive("data", "cifar-10-batches-py", "http://127.0.0.1:9/a.bin", md5(data))
        except UserError as error:
            assert "unpacked" in str(error)  # noqa: PT017
        kept = {p.name for p in Path("data").iterdir()}
        assert kept <= {"a.bin", "cifar-10-batches-py"}
        assert not [p for place in (".", "..", "/") for p in Path(place).glob("evil.txt")]


def test_sources_read_only_the_split_that_is_asked_for() -> None:
    write_all(cifar_files(), "data")
    Path("data/cifar-10-batches-py/test_batch").unlink()
    assert sources.cifar10("train", root="data") is not None
    with pytest.raises(UserError, match="test_batch"):
        sources.cifar10("test", root="data")
