"""TIFF files with given tags, as Pillow does not write them: big-endian, unsigned 32 bits, white as 0."""

import struct
import zlib
from pathlib import Path

import numpy as np

SHORT, LONG = 3, 4  # types of a tag's values
FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


def write_tiff(path: str | Path, array: np.ndarray, photometric: int = 1, compressed: bool = False) -> str:
    """Write a TIFF with the array's own type and byte order.

    Args:
        array: `H x W`, or `H x W x C`.
        photometric: 0 (0 is white), 1 (0 is black) or 2 (RGB).
    """
    order = ">" if array.dtype.byteorder == ">" else "<"
    height, width, samples = (*array.shape, 1)[:3]
    content = zlib.compress(array.tobytes()) if compressed else array.tobytes()
    tags: dict[int, tuple[int, list[int]]] = {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8 * array.dtype.itemsize] * samples),
        259: (SHORT, [8 if compressed else 1]), 262: (SHORT, [photometric]), 273: (LONG, [0]), 277: (SHORT, [samples]),
        278: (LONG, [height]), 279: (LONG, [len(content)]), 339: (SHORT, [FORMATS[array.dtype.kind]] * samples),
    }  # fmt: skip
    packed = {t: struct.pack(f"{order}{len(v)}{'H' if kind == SHORT else 'I'}", *v) for t, (kind, v) in tags.items()}
    first = 8 + 2 + 12 * len(tags) + 4  # byte of the values that are longer than 4 bytes
    long = {t: data for t, data in packed.items() if len(data) > 4}
    at = dict(zip(long, np.cumsum([first, *map(len, long.values())]), strict=False))
    packed[273] = struct.pack(f"{order}I", first + sum(map(len, long.values())))  # of the pixels
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (kind, v) in tags.items():
        value = struct.pack(f"{order}I", at[tag]) if tag in long else packed[tag].ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(v)) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    Path(path).write_bytes(head + directory + bytes(4) + b"".join(long.values()) + content)
    return str(path)
