"""Fault injection: killed processes, full disks, damaged checkpoints.

Cases that random damage has found are kept as an `@example`.
"""

import contextlib
import os
import random
import resource
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslrun.base.errors import UserError
from sslrun.run import checkpoint
from sslrun.run.find import BEST, LAST, PREVIOUS, has_checkpoint
from tests.helpers import (
    CHANGES,
    CUT,
    FINETUNE,
    OFTEN,
    PRETRAIN,
    QUICK,
    SSLRUN,
    STEPS,
    Changes,
    Cli,
    MeanTask,
    bounded,
    changed,
    ended,
    in_a_mount,
    logged,
    only_run,
    run_forked,
    same,
    spawn,
    start,
    whole,
)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "missing", "pickle", "number"])
def test_cases_14_and_19_damaged_and_malicious_checkpoints_are_refused(kind: str) -> None:
    path = Path("x.pt")
    checkpoint.save(path, {"model": {"a": torch.zeros(1000)}})
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    elif kind == "missing":
        path.unlink()
    elif kind == "number":
        torch.save(3, path)
    else:
        torch.save({"model": MeanTask()}, path)  # a whole object: loading it could run anything
    with pytest.raises(UserError, match=r"x\.pt") as refused:
        checkpoint.load(path)
    assert "weights_only" not in str(refused.value)  # torch advises to switch the protection off


@pytest.mark.slow
def test_case_13_a_failed_write_keeps_the_old_checkpoint_and_leaves_no_temporary_file() -> None:
    assert ended(spawn(save_too_much, folder="run")) == 0
    assert Path("output").read_text().startswith("cannot write x.pt")
    assert checkpoint.load(Path("run/x.pt"))["model"]["a"].tolist() == [1.0] * 10
    assert [p.name for p in Path("run").iterdir()] == ["x.pt"]


def save_too_much() -> None:
    """Run in a process that cannot write files above 50 kB."""
    checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(10)}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(1_000_000)}})
    except UserError as error:
        print(error)


def test_case_12_a_failed_rename_keeps_the_old_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(Path("x.pt"), {"model": {"a": torch.ones(1)}})

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        checkpoint.save(Path("x.pt"), {"model": {"a": torch.zeros(1)}})
    assert float(checkpoint.load(Path("x.pt"))["model"]["a"]) == 1
    assert [p.name for p in Path.cwd().iterdir()] == ["x.pt"]


def killed_until_done(kills: int, stage: tuple[str, ...], seed: int) -> None:
    """Kill runs at random moments, resume them until they finish, and compare them with an uninterrupted run."""
    began = time.monotonic()
    run_forked(*stage, *OFTEN, folder="straight")
    longest = time.monotonic() - began
    reference = only_run("straight", stage[0])
    rng, done, n = random.Random(seed), 0, 0
    while done < kills:
        folder = f"broken{n}"
        n += 1
        arguments = (*stage, *OFTEN)
        while True:
            process = start(*arguments, folder=folder)
            process.join(rng.uniform(0.0, longest) if done < kills else 120)
            if process.exitcode is not None:
                assert process.exitcode == 0, Path("output").read_text()
                break
            process.kill()
            process.join()
            done += 1
            result = list(Path(folder, "outputs", stage[0]).glob("*/summary.json"))
            resumable = [p.parent for p in result if has_checkpoint(p.parent)]
            if resumable:
                checkpoint.newest_intact(resumable[0])  # the last good one loads
                arguments = (stage[0], "resume=latest")
            else:
                shutil.rmtree(Path(folder, "outputs"), ignore_errors=True)  # nothing to resume: start again
        place = only_run(folder, stage[0])
        assert same(whole(place), whole(reference))
        assert logged(place) == logged(reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [PRETRAIN, FINETUNE], ids=["pretrain", "finetune"])
def test_case_11_a_run_killed_twenty_times_at_random_ends_like_an_uninterrupted_one(stage: tuple[str, ...]) -> None:
    killed_until_done(int(os.environ.get("SSLRUN_KILLS", "20")), stage, 1)


@pytest.mark.slow
def test_case_13_a_full_disk_leaves_a_checkpoint_to_resume_from() -> None:
    more = " ".join([*PRETRAIN, *OFTEN, "train.steps=2000", "train.keep_every=1", "backbone.widths=[8,16,64]"])
    done = in_a_mount("size=6m", f"cd disk; {SSLRUN} {more}; echo rc $?; cp -r outputs ../kept; find . -name '.*.part'")
    assert done.stdout.splitlines() == ["rc 1"], done.stdout + done.stderr
    assert "cannot write outputs/pretrain/" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.move("kept", "outputs")
    content = checkpoint.newest_intact(only_run())[1]
    assert content["step"] > 0
    assert "Resuming after step" in run_forked("pretrain", "resume=latest", f"train.steps={content['step'] + 3}")


def test_case_14_a_truncated_checkpoint_falls_back_to_the_previous_with_a_warning(finished_run: Path, cli: Cli) -> None:
    place = only_run()
    before, reference = logged(place), whole(place)
    last = place / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    answer = cli("pretrain", "resume=latest")
    assert answer.code == 0
    assert "last.pt is damaged" in answer.err
    assert "Using the previous checkpoint, of step 16" in answer.err
    assert same(whole(place), reference)
    assert logged(place) == before
    assert (place / "damaged.pt").exists()


def test_case_14_finetune_falls_back_too_and_two_damaged_ones_are_an_error(finished_run: Path, cli: Cli) -> None:
    for name, code in ((LAST, 0), (PREVIOUS, 1)):
        (only_run() / name).write_bytes(b"PK")
        answer = cli("finetune", "mode=finetune", "label_fraction=0.5", "train.steps=2", *QUICK)
        assert answer.code == code
        assert "is damaged" in answer.err
        assert "Traceback" not in answer.err


def test_case_15_a_flipped_bit_is_caught_or_changes_nothing() -> None:
    path = Path("x.pt")
    content = {"step": 3, "model": {"a": torch.randn(3000), "b": torch.arange(5)}, "metrics": {"x": 0.5}}
    checkpoint.save(path, content)
    good, loaded = path.read_bytes(), checkpoint.load(path)
    rng, caught = random.Random(0), 0
    for _ in range(400):
        where = rng.randrange(len(good))
        flipped = bytearray(good)
        flipped[where] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(checkpoint.load(path), loaded), f"byte {where} is not what was saved"
        except UserError:
            caught += 1
    assert caught > 300  # the rest are paddings


def test_case_16_retention_keeps_last_best_and_every_nth(cli: Cli) -> None:
    assert cli(*PRETRAIN, "train.keep_every=10").code == 0
    place = only_run()
    assert sorted(p.name for p in place.glob("*.pt")) == [
        "best.pt", "last.pt", "previous.pt", "step_000010.pt", "step_000020.pt"]  # fmt: skip
    assert [checkpoint.load(place / f"step_0000{s}0.pt")["step"] for s in (1, 2)] == [10, 20]
    assert checkpoint.load(place / LAST)["step"] == STEPS
    best, last = checkpoint.load(place / BEST), checkpoint.load(place / LAST)
    assert best["step"] == STEPS
    assert same(best["model"], last["model"])  # the kNN accuracy decides nothing


def test_case_22_a_checkpoint_from_a_gpu_loads_on_a_cpu() -> None:
    """torch saves the device of each tensor; the file is changed to what a GPU would have written."""

    checkpoint.save(Path("cpu.pt"), {"model": {"a": torch.arange(4.0)}})
    with zipfile.ZipFile("cpu.pt") as old, zipfile.ZipFile("gpu.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in data
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, data)
    with contextlib.suppress(RuntimeError):
        torch.load("gpu.pt", weights_only=True)
        assert torch.cuda.is_available()
    assert checkpoint.load(Path("gpu.pt"))["model"]["a"].tolist() == [0, 1, 2, 3]


def checkpoint_bytes() -> bytes:
    path = Path("whole.pt")
    model = {"encoder.weight": torch.arange(60.0), "encoder.count": torch.tensor(3)}
    config = {"backbone": {"_target_": "sslrun.models.backbones.smallcnn.smallcnn", "widths": [8]}}
    checkpoint.save(path, {"model": model, "config": config, "step": 3})
    return path.read_bytes()


@bounded(300)
@given(CHANGES, CUT)
def test_any_file_is_a_checkpoint_or_refused_with_a_message(changes: Changes, part: float | None) -> None:
    data = checkpoint_bytes()
    Path("x.pt").write_bytes(changed(data, changes, part))
    try:
        result = checkpoint.load(Path("x.pt"))
    except UserError as error:
        assert str(error).startswith("x.pt")
        return
    assert result["model"]["encoder.weight"].tolist() == list(range(60))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5) | st.just("_target_"), inner, max_size=3)
    ),
    max_leaves=5,
)


@bounded(200)
@given(st.dictionaries(st.sampled_from(["model", "config", "class_names", "step", "state_dict"]), VALUES))
def test_any_content_is_a_checkpoint_or_refused_with_a_message(content: dict[str, object]) -> None:
    torch.save({checkpoint.OURS: "0.1.0", **content}, "x.pt")
    try:
        result = checkpoint.load(Path("x.pt"))
    except UserError as error:
        assert str(error).startswith("x.pt")
        return
    assert all(isinstance(v, torch.Tensor) for v in result.get("model", {}).values())


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synchronized elsewhere")
def test_a_checkpoint_and_its_rename_are_flushed_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        calls.append(("fsync", os.fstat(handle).st_ino))
        fsync(handle)

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = Path("last.pt")
    checkpoint.save(path, {"model": {"a": torch.ones(1000)}})
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert calls == [("fsync", file), ("rename", file), ("fsync", folder)]
