"""The words of the field: what a PyTorch user would have to translate is refused in code, configs, docs and tests.

Ordinary English uses of found, start, mode, part are fine. The names that 0.1.0 gave to keys, columns and folders stand
in the tables of renames, which are not read here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = ("sslrun/**/*.py", "sslrun/**/*.jinja", "conf/**/*.yaml", "docs/**/*.md", "README.md",
         "Makefile", "pyproject.toml", "benchmarks/**/*.py", "benchmarks/**/*.md", "benchmarks/**/*.sh",
         "tests/**/*.py")  # fmt: skip
OLD_NAMES = {  # files that hold names of 0.1.0, as data
    "sslrun/config/renames.py", "benchmarks/same_bits.py", "tests/config/test_renames.py", "tests/test_words.py",
}  # fmt: skip
PATTERNS = {
    r"pictures?": "image",
    r"\bpiles?\b": "unlabeled folder",
    r"\b(told|asked|said)\b": "message, reason, requested, given",
    r"\bbesides?\b": "next to, with, and",
    r"readouts?(?!err)": "pooling",
    r"(?<![a-z])a_class(?![a-z])": "per_class",
    r"\bright in\b|% (were |was |are |is )?right\b": "accuracy",
    r"taken for what": "confusion matrix",
    r"can be believed": "calibration",
    r"\bin turns?\b": "alternately; k-fold cross-validation",
    r"\bha(ve|s) an up\b": "canonical orientation",
    r"\bheld[ -]out (in|parts?|third)": "k-fold cross-validation",
    r"frozen random": "a linear probe of a randomly initialized network",
    r"\b(does|do) not pay\b|\bpays?\b( off)?": "better than scratch by ..., no difference shown",
    r"\b(un)?labell": "label with one l",
    r"\bgr[e]y": "gray",
    r"colour": "color",
    r"neighbour": "neighbor",
    r"\b(be |is |was |are )?gone on with\b|\bgoes on with\b": "resume",
    r"\b(quarter|half) turns?\b": "rotation by 90 or 180 degrees",
    r"plus-minus": "SD, or 95 % CI",
}  # fmt: skip


def faults(path: str, text: str) -> Iterator[str]:
    """Yield a sentence for every line with a word that the field does not use."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in PATTERNS.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                yield f"{path}:{number}: {match[0]!r}: say {instead}"


@pytest.mark.parametrize("glob", FILES)
def test_the_words_are_those_of_the_field(glob: str) -> None:
    paths = [p for p in REPOSITORY.glob(glob) if str(p.relative_to(REPOSITORY)) not in OLD_NAMES]
    assert paths, f"no file matches {glob}"
    found = [f for p in paths for f in faults(str(p.relative_to(REPOSITORY)), p.read_text())]
    assert not found, f"{len(found)} places:\n" + "\n".join(found[:60])


@pytest.mark.parametrize(
    "line", ["the pictures of a class", "what is taken for what", "90.3 % right", "readout: grid", "labels_a_class"]
)
def test_an_old_word_is_seen(line: str) -> None:
    assert list(faults("x.py", line))


@pytest.mark.parametrize(
    "line", ["found 3 images, start at part 2", "precision and mode", "data_class", "the right input", "unlabeled"]
)
def test_ordinary_english_is_not(line: str) -> None:
    assert not list(faults("x.py", line))
