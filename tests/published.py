"""The published data sets in miniature: archives with exactly their real layout, of pieces of two photographs."""

import functools
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_sample_images

from tests.helpers import REPOSITORY

Files = dict[str, bytes]


@functools.cache
def photographs() -> list[np.ndarray]:
    return load_sample_images().images


def piece(side: int, seed: int) -> Image.Image:
    """Return a piece of a photograph; even seeds are of a temple, odd ones of a flower."""
    photo = photographs()[seed % 2]
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, photo.shape[0] - 160), rng.integers(0, photo.shape[1] - 160)
    return Image.fromarray(photo[y : y + 160, x : x + 160]).resize((side, side))


def jpeg(side: int, seed: int) -> bytes:
    data = io.BytesIO()
    piece(side, seed).save(data, "JPEG", quality=90)
    return data.getvalue()


def tar_of(files: Files) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zip_of(files: Files) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return data.getvalue()


def write_all(files: Files, top: str | Path) -> None:
    for name, data in files.items():
        Path(top, name).parent.mkdir(parents=True, exist_ok=True)
        Path(top, name).write_bytes(data)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


# -------------------------------------------------------------------------------------------- what is in the archives

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_files(n: int = 20) -> Files:
    """The members of cifar-10-python.tar.gz; the top left pixel's red is the batch, its green the label."""
    files = {}
    for b, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 1):
        labels = [i % 10 for i in range(n)]
        rows = []
        for i, c in enumerate(labels):
            pixels = np.array(piece(32, 1000 * b + i))
            pixels[0, 0] = (b, c, 0)
            rows.append(pixels.transpose(2, 0, 1).ravel())  # 1,024 red, then green, then blue
        content = {
            b"batch_label": b"x",
            b"labels": labels,
            b"data": np.stack(rows),
            b"filenames": [f"f_{i}.png".encode() for i in range(n)],
        }
        files[f"cifar-10-batches-py/{name}"] = pickle.dumps(content, protocol=2)
    meta = {b"label_names": [c.encode() for c in CIFAR_CLASSES], b"num_vis": 3072, b"num_cases_per_batch": 10000}
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps(meta, protocol=2)
    files["cifar-10-batches-py/readme.html"] = b"<html></html>"
    return files


WNIDS = ["n01855672", "n01443537", "n02056570"]


def tiny_imagenet_files() -> Files:
    """The members of tiny-imagenet-200.zip, with 3 of its 200 classes."""
    top = "tiny-imagenet-200"
    files = {f"{top}/wnids.txt": "\n".join(WNIDS).encode()}
    files[f"{top}/words.txt"] = b"n01443537\tgoldfish, Carassius auratus\nn01855672\tgoose\nn02056570\tking penguin\n"
    rows = []
    for c, wnid in enumerate(WNIDS):
        files[f"{top}/train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t10\t63\t58\n".encode()
        for i in range(30):
            files[f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(64, 100 * c + i)
        for i in range(2):
            files[f"{top}/val/images/val_{2 * c + i}.JPEG"] = jpeg(64, 5000 + 10 * c + i)
            rows.append(f"val_{2 * c + i}.JPEG\t{wnid}\t0\t32\t44\t62")
    files[f"{top}/val/val_annotations.txt"] = "\n".join(rows).encode()
    files[f"{top}/test/images/test_0.JPEG"] = jpeg(64, 9999)
    return files


def fashion_mnist_files(train: int = 100, test: int = 20) -> Files:
    """The four files of Fashion-MNIST; the top left pixel is twenty times the label."""
    files = {}
    for part, n in (("train", train), ("t10k", test)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = np.stack([np.array(piece(28, 10 * i + (part == "train")).convert("L")) for i in range(n)])
        images[:, 0, 0] = labels * 20
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(struct.pack(">II", 0x801, n) + labels.tobytes())
        head = struct.pack(">IIII", 0x803, n, 28, 28)
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(head + images.tobytes())
    return files


def flower_photos_files() -> Files:
    """The members of flower_photos.tgz: photos of all shapes in five folders, and a licence."""
    files = {"flower_photos/LICENSE.txt": b"All photos in this archive are licensed under CC BY 2.0"}
    for c, name in enumerate(("daisy", "dandelion", "roses", "sunflowers", "tulips")):
        for i in range(20):
            data = io.BytesIO()
            piece(80, 100 * c + i).crop((0, 0, 80, 60)).save(data, "JPEG", quality=90)
            files[f"flower_photos/{name}/{1000 + i}_a{c}.jpg"] = data.getvalue()
    return files


def flowers102_files(per_class: int = 4) -> Files:
    """The members of 102flowers.tgz, `jpg/image_00001.jpg` and so on, with 102 classes."""
    return {f"jpg/image_{i + 1:05d}.jpg": jpeg(40, i) for i in range(102 * per_class)}


@functools.cache
def flowers102_lists(per_class: int = 4) -> Files:
    """imagelabels.mat and setid.mat: one of each class for training, one for validation, the rest for test."""
    n = 102 * per_class
    files = {}
    for name, content in {
        "imagelabels.mat": {"labels": np.arange(n)[None] % 102 + 1},
        "setid.mat": {
            "trnid": np.arange(1, 103)[None],
            "valid": np.arange(103, 205)[None],
            "tstid": np.arange(205, n + 1)[None],
        },
    }.items():
        data = io.BytesIO()
        savemat(data, content)
        files[name] = data.getvalue()
    return files


def stl10_files() -> Files:
    """The members of stl10_binary.tar.gz; planes lie there column after column, labels begin at 1."""
    top = "stl10_binary"
    words = "airplane bird car cat deer dog horse monkey ship truck"
    files = {f"{top}/class_names.txt": words.replace(" ", "\n").encode(), f"{top}/fold_indices.txt": b"0 1 2\n"}
    for split, n in (("train", 60), ("test", 20), ("unlabeled", 50)):
        images = np.stack([np.array(piece(96, i + 7000 * (split == "test") + 300 * len(split))) for i in range(n)])
        files[f"{top}/{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        if split != "unlabeled":
            files[f"{top}/{split}_y.bin"] = (np.arange(n) % 10 + 1).astype(np.uint8).tobytes()
    return files


@functools.cache
def archives(name: str) -> Files:
    """Return what lies at a data set's address, by its file name."""
    made: dict[str, Callable[[], Files]] = {
        "cifar10": lambda: {"cifar-10-python.tar.gz": tar_of(cifar_files())},
        "fashion_mnist": fashion_mnist_files,
        "flowers": lambda: {"flower_photos.tgz": tar_of(flower_photos_files())},
        "flowers102": lambda: {"102flowers.tgz": tar_of(flowers102_files()), **flowers102_lists()},
        "stl10": lambda: {"stl10_binary.tar.gz": tar_of(stl10_files())},
        "tinyimagenet": lambda: {"tiny-imagenet-200.zip": zip_of(tiny_imagenet_files())},
    }
    return made[name]()


def mirrored(name: str, served: Path, address: str, config_dir: Path) -> Files:
    """Serve a data set's archives, and write a YAML for them, `NAME_here`, as one would for a mirror of one's own.

    Returns:
        What is served.
    """
    files = archives(name)
    write_all(files, served)
    node = OmegaConf.load(REPOSITORY / "conf" / "dataset" / f"{name}.yaml")
    if "files" in node:
        assert set(node.files) == set(files)
        node.url = f"{address}/"
        node.files = {n: md5(files[n]) for n in node.files}
    else:
        (packed,) = files
        assert node.url.endswith(f"/{packed}")
        node.url, node.md5 = f"{address}/{packed}", md5(files[packed])
    place = config_dir / "dataset" / f"{name}_here.yaml"
    place.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(node, place)
    return files
