"""The range of a data set's gray images of more than 8 bits: which values become black and white.

It is measured once for a data set, since the same value must have the same brightness in all of its images.

    $SSLRUN_CACHE/ranges/<key>.json     range and numbers of images, of the same files

Worker processes import this module, so it does not import torch.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sslrun.base.cached import Cached
from sslrun.base.console import log_once, progress
from sslrun.base.files import replacing
from sslrun.base.paths import home
from sslrun.base.text import counted
from sslrun.data import depth
from sslrun.data.decode import TRANSIENT, UnreadableImage, opened
from sslrun.data.workers import in_order, workers

MEASURED = 1000  # images whose values are read
IGNORED = 0.001  # fraction of an image's values, and of the images, that is ignored at each end
WIDER = 2.1  # how many times as wide as the measured range a usual one may be
USUAL = tuple(2**k - 1 for k in (8, 10, 12, 14, 16, 32))  # largest values of sensors
CHUNK = 64  # files per task
Extremes = tuple[float, float] | None


@dataclass(frozen=True)
class GrayRange:
    """Range of the gray images of more than 8 bits.

    Attributes:
        limits: the values that become black and white; None if there are no such images.
        kinds: number of such images by kind.
        others: number of the other images.
        unopened: number of files that cannot be opened now; they may be next time.
    """

    limits: list[float] | None
    kinds: dict[str, int]
    others: int
    unopened: int = 0

    def __str__(self) -> str:
        assert self.limits is not None
        text = f"{counted(sum(self.kinds.values()), 'gray image')} of {' and '.join(self.kinds)}"
        text += ": range {:.10g} to {:.10g} (dataset.range)".format(*self.limits)
        return text + (f"; {counted(self.others, 'image')} of 8 bits read as they are" if self.others else "")


def measured(files: Sequence[str]) -> list[float] | None:
    """Measure the range of image files, or read the cached result, and log it.

    Each image's smallest and largest 0.1 % of the values, at least one, are ignored, then one image in a thousand. The
    range is the smallest usual one (0 to 1 for floating point, 0 to 255, 1023, 4095, 16383, 65535, 2**32 - 1) around
    the rest, unless that is more than twice as wide.

    Returns:
        The values that become black and white; None if no image has more than 8 bits.
    """
    deep = [f for f in files if os.path.splitext(f)[1].lower() in depth.SUFFIXES]
    result = _cached(deep) if deep else GrayRange(None, {}, 0)
    if result.limits is None:
        return None
    log_once(os.path.dirname(deep[0]), f"{replace(result, others=result.others + len(files) - len(deep))}.")
    return result.limits


def _cached(files: list[str]) -> GrayRange:
    from sslrun.data.cache import key_of  # which imports torch

    def load(path: Path) -> GrayRange:
        return GrayRange(**json.loads(path.read_text()))

    path = home() / "ranges" / f"{key_of(files, 'range')}.json"
    cached = Cached(path, "measuring the range of the same images", load)
    if entry := cached.read():
        return entry
    result = _measured(files)
    if result.unopened:
        return result
    with suppress(OSError):  # the next run measures it again
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(result)))
    return result


def _measured(files: list[str]) -> GrayRange:
    kinds = list(_in_workers(_kinds, files, "reading headers"))
    unopened = sum(kind is None for kind in kinds)
    deep = [f for f, kind in zip(files, kinds, strict=True) if kind]
    step = max(1, math.ceil(len(deep) / MEASURED))
    found = [e for e in _in_workers(_extremes, deep[::step], "measuring the range") if e is not None]
    counts = Counter(kind for kind in kinds if kind)
    limits = _limits(found, any("float" in kind for kind in counts)) if found else None
    return GrayRange(limits, dict(counts.most_common()), len(files) - len(deep), unopened)


def _in_workers(work: Callable[[Sequence[str]], list[Any]], files: Sequence[str], title: str) -> Iterator[Any]:
    chunks = (files[i : i + CHUNK] for i in range(0, len(files), CHUNK))
    with workers(len(files)) as pool, progress(title, len(files), "files") as advance:
        for results in in_order(pool, work, chunks):
            advance(len(results))
            yield from results


def _kinds(files: Sequence[str]) -> list[str | None]:
    """Return the kind of each gray image of more than 8 bits, else an empty string; None if it cannot be opened."""
    result: list[str | None] = []
    for path in files:
        try:
            with opened(path) as image:
                result.append(str(depth.kind(image) or ""))
        except UnreadableImage as error:  # decoding reports it
            result.append(None if str(error).startswith(TRANSIENT) else "")
    return result


def _extremes(files: Sequence[str]) -> list[Extremes]:
    """Return the smallest and largest value of each image without the most extreme ones; None if there are none."""
    result: list[Extremes] = [None] * len(files)
    for i, path in enumerate(files):
        with suppress(UnreadableImage), opened(path) as image:
            image.load()
            kind = depth.kind(image)
            assert kind is not None
            values = depth.values(image, kind)
            values = values[np.isfinite(values)]
            if n := len(values):
                k = min(max(1, int(IGNORED * n)), (n - 1) // 2)
                low, high = np.partition(values, [k, n - 1 - k])[[k, n - 1 - k]]
                result[i] = float(low), float(high)
    return result


def _limits(found: list[tuple[float, float]], floats: bool) -> list[float]:
    """Return the range of images with these smallest and largest values."""
    lows, highs = np.sort(np.array(found), axis=0).T
    k = int(IGNORED * len(found))
    low, high = float(lows[k]), float(highs[len(found) - 1 - k])
    usual = next((top for top in ((1, *USUAL) if floats else USUAL) if low >= 0 and high <= top), None)
    if usual is not None and (low == high or usual <= WIDER * (high - low)):
        return [0, usual]
    return _rounded(low, high, floats)


def _rounded(low: float, high: float, floats: bool) -> list[float]:
    """Return the range with limits rounded outward, by less than a hundredth of its width each."""
    digits = 2 - math.floor(math.log10((high - low) or abs(high) or 1))
    digits = digits if floats else min(0, digits)
    unit = 10.0**-digits
    limits = [round(math.floor(low / unit) * unit, digits), round(math.ceil(high / unit) * unit, digits)]
    limits[1] = limits[1] if limits[0] < limits[1] else limits[0] + unit
    return [int(v) if abs(v) < 2**53 and v == int(v) else v for v in limits]
