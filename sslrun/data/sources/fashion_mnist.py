"""Fashion-MNIST."""

from pathlib import Path

from sslrun.data import fetch
from sslrun.data.sources.source import Listing, SplitName, as_published


def fashion_mnist(split: SplitName, *, root: str, url: str, files: dict[str, str]) -> Listing | None:
    """60,000 + 10,000 grayscale images of clothing, 28 x 28 px (Xiao et al. 2017), read by torchvision."""
    from torchvision.datasets import FashionMNIST

    if split == "unlabeled":
        return None
    fetch.gzipped(Path(root, "FashionMNIST", "raw"), url, files)
    with as_published("Fashion-MNIST", Path(root, "FashionMNIST", "raw")):
        data = FashionMNIST(root, train=split == "train")
    names = [f"{split}-{i:05d}" for i in range(len(data.data))]
    return Listing(data.data.numpy()[..., None], names, data.targets.numpy(), tuple(data.classes))
