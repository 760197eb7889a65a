"""Five classes of flower photos."""

from pathlib import Path

from sslrun.data import fetch
from sslrun.data.sources.folder import class_folders, folder
from sslrun.data.sources.source import Listing, SplitName


def flowers(split: SplitName, *, root: str, url: str, md5: str) -> Listing | None:
    """Five classes of flower photos: TensorFlow's `flower_photos/<class>`, or Kaggle's `flowers/<class>` in `root`."""
    if split == "unlabeled":
        return None
    below = next((Path(root, n) for n in ("flower_photos", "flowers") if Path(root, n).is_dir()), None)
    if below is None and not class_folders(Path(root)):
        below = fetch.archive(root, "flower_photos", url, md5)
    return folder(split, root=str(below or root))
