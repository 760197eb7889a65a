"""The Python API."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sslrun
from sslrun.base.errors import UserError
from tests.helpers import QUICK, Cli, runs


def test_a_script_without_a_guard_may_predict_many_files(in_world: Path, photo_files: list[str]) -> None:
    Path("script.py").write_text(
        "import sys\nimport sslrun\nimport sslrun.data.workers as w\nw.WORTH_PROCESSES = 2\n"
        "print([p.class_name for p in sslrun.load(device='cpu').predict(sys.argv[1:])])\n"
    )
    done = subprocess.run([sys.executable, "script.py", *photo_files], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([p.class_name for p in sslrun.load(device="cpu").predict(photo_files)])
    assert "predicting" not in done.stderr


def test_more_views_say_the_same_of_a_picture_whatever_stands_beside_it(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load(device="cpu")
    together = model.probabilities(photo_files[:4], views=3)
    alone = np.concatenate([model.probabilities(f, views=3) for f in photo_files[:4]])
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(together, model.probabilities(photo_files[:4]), atol=1e-5)


def test_sure_enough_is_as_sure_as_the_threshold(in_world: Path, photo_files: list[str]) -> None:
    """All of them, where all are equally sure: the threshold is one of them."""
    from sslrun.evaluation.calibration import tempered, threshold

    model = sslrun.load(device="cpu")
    p = tempered(np.tile([[0.9999, 0.0001]], (50, 1)), 2.7)
    model.confidence_threshold = threshold(p, np.zeros(50, int))
    model._calibrated = lambda pixels, views, batch_size: p[: len(pixels)]  # type: ignore[method-assign]
    assert not any(g.unsure for g in model.predict(photo_files))


def test_the_python_side_says_what_the_command_says(in_world: Path, cli: Cli, photo_files: list[str]) -> None:
    rows = json.loads(cli("predict", *photo_files, "format=json", "figures=0", *QUICK).out)
    model = sslrun.load(runs("finetune")[0], device="cpu")
    result = model.predict(photo_files)
    assert [(p.image, p.class_name, p.unsure) for p in result] == [(r["image"], r["class"], r["unsure"]) for r in rows]
    assert [p.confidence for p in result] == pytest.approx([r["confidence"] for r in rows], abs=1e-4)
    p = model.probabilities(photo_files)
    assert p.shape == (len(photo_files), 2)
    assert p.sum(1) == pytest.approx(1)
    assert [model.class_names[k] for k in p.argmax(1)] == [r["class"] for r in rows]


def test_loading_leaves_the_random_state_as_it_was(in_world: Path) -> None:
    for run in (runs("pretrain")[0], runs("finetune")[0]):
        before = torch.get_rng_state()
        sslrun.load(run, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)


def test_embeddings_of_any_stage(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load()
    assert model.embed(photo_files).shape == (len(photo_files), 16)
    assert model.embed(photo_files, stage=1).shape == (len(photo_files), 8)
    assert np.array_equal(model.embed(photo_files, stage=2), model.embed(photo_files))
    assert np.allclose(model.embed(photo_files, batch_size=3), model.embed(photo_files), atol=1e-5)
    with pytest.raises(UserError, match="stage=3: this backbone has stages 1 to 2"):
        model.embed(photo_files, stage=3)


def test_views_are_averaged_and_always_the_same(in_world: Path, photo_files: list[str]) -> None:
    model = sslrun.load()
    once, nine = model.probabilities(photo_files), model.probabilities(photo_files, views=9)
    assert not np.allclose(once, nine, atol=1e-4)
    assert np.array_equal(nine, model.probabilities(photo_files, views=9))
    assert nine.sum(1) == pytest.approx(1)
