"""Comparison of networks with scratch: synthetic rows, with differences, counts and corrected p-values by hand."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sslrun.evaluation.intervals import Interval, mean_interval
from sslrun.study.comparison import compared, gain_table, labels_needed
from sslrun.study.entry import Budget, Dropped, Entry
from sslrun.study.gains import Gain, gain_on_one_subset, gains_over_scratch, image_variance
from sslrun.study.results import Row
from tests.helpers import row

Cells = Mapping[Any, float | Sequence[float]]  # by seed of the pretraining, and subset
SUBSETS = ("a", "b", "c")


def rows_of(initialization: str, cells: Cells, mode: str = "auto", **known: Any) -> list[Row]:
    """Return the runs of a network, with their accuracies by seed of the pretraining and label subset."""
    return [
        row(initialization, mode, pretrain_seed=p, subset=s, seed=seed, test_accuracy=float(accuracy), **known)
        for (p, s), accuracies in cells.items()
        for seed, accuracy in enumerate(np.atleast_1d(accuracies))
    ]


def scratch(cells: Mapping[str, float | Sequence[float]], **known: Any) -> list[Row]:
    return rows_of("scratch", {(None, s): a for s, a in cells.items()}, "finetune", **known)


def task(name: str, accuracies: Sequence[Sequence[float]], **known: Any) -> list[Row]:
    """Return one run of each pretraining on each subset, `P x L`."""
    cells = {(p, s): a for p, r in enumerate(accuracies) for s, a in zip(SUBSETS, r, strict=False)}
    return rows_of(name, cells, **known)


def entry_of(rows: Sequence[Row], initialization: str, mode: str = "auto", budget: str = "labels=30") -> Entry:
    """Return the entry of a network in a comparison whose family has the automatic choice."""
    (result,) = [
        e for e in compared(rows, "auto") if (e.initialization, e.mode, e.budget.text) == (initialization, mode, budget)
    ]
    return result


def assert_same(result: Gain | None, expected: Gain) -> None:
    assert result is not None
    for name, value in dataclasses.asdict(expected).items():
        same = value if value is None or isinstance(value, str) else pytest.approx(value)
        assert getattr(result, name) == same, name


# Differences and gains

SCRATCH = scratch({"a": (0.50, 0.54), "b": (0.60, 0.61, 0.62), "c": 0.55})  # means 0.52, 0.61, 0.55
SIMCLR = [[0.60, 0.64, 0.57], [0.58, 0.70, 0.63]]
SIMCLR_GAINS = np.array([[0.08, 0.03, 0.02], [0.06, 0.09, 0.08]])
ROTATION = [[0.55, 0.60, 0.50], [0.53, 0.66, 0.56]]
ROTATION_GAINS = np.array([[0.03, -0.01, -0.05], [0.01, 0.05, 0.01]])


def test_gains_are_those_of_the_differences_from_the_mean_of_scratch_on_each_subset() -> None:
    rows = [*SCRATCH, *task("simclr", SIMCLR), *task("rotation", ROTATION)]
    expected = gains_over_scratch({"simclr": SIMCLR_GAINS, "rotation": ROTATION_GAINS})
    assert expected["simclr"].basis == "pooled"
    for order in (rows, rows[::-1]):
        for name, gain in expected.items():
            entry = entry_of(order, name)
            assert_same(entry.gain, gain)
            assert (entry.in_family, entry.difference, entry.dropped) == (True, pytest.approx(gain.gain), Dropped(0, 0))
    assert entry_of(rows, "simclr").difference == pytest.approx(0.06)


def test_scratch_has_no_difference_from_itself() -> None:
    entry = entry_of([*SCRATCH, *task("simclr", SIMCLR)], "scratch", "finetune")
    assert entry.is_scratch
    assert (entry.difference, entry.gain, entry.p, entry.labels_needed, entry.in_family) == (None,) * 4 + (False,)


def test_runs_of_one_pretraining_on_one_subset_are_averaged() -> None:
    cells: Cells = {(p, s): a for p, r in enumerate(SIMCLR) for s, a in zip(SUBSETS, r, strict=True)}
    several = rows_of("simclr", {**cells, (1, "c"): (0.60, 0.62, 0.67)})  # mean 0.63
    assert_same(entry_of([*SCRATCH, *several], "simclr").gain, gains_over_scratch({"simclr": SIMCLR_GAINS})["simclr"])


def test_budgets_are_not_pooled() -> None:
    more: dict[str, Any] = {"labels": 300, "label_budget": "labels=300"}
    here = [*SCRATCH, *task("simclr", SIMCLR)]
    there = [*scratch({"a": 0.7, "b": 0.8, "c": 0.75}, **more), *task("simclr", ROTATION, **more)]
    assert_same(entry_of([*here, *there], "simclr").gain, gains_over_scratch({"simclr": SIMCLR_GAINS})["simclr"])


def test_networks_from_the_same_pretrainings_are_not_pooled() -> None:
    """Two settings of finetuning are no two tasks: that would double the number of pretrainings."""
    same = [dataclasses.replace(r, source=f"simclr {r.pretrain_seed}") for r in task("simclr train.steps=9", ROTATION)]
    rows = [*SCRATCH, *task("simclr", SIMCLR), *same]
    d = {"simclr": SIMCLR_GAINS, "simclr train.steps=9": ROTATION_GAINS}
    for name, matrix in d.items():
        assert_same(entry_of(rows, name).gain, gains_over_scratch({name: matrix})[name])
    rows += task("jigsaw", [[0.5, 0.7, 0.6], [0.6, 0.6, 0.6]])
    d["jigsaw"] = np.array([[-0.02, 0.09, 0.05], [0.08, -0.01, 0.05]])
    for name in ("simclr", "simclr train.steps=9"):
        assert_same(entry_of(rows, name).gain, gains_over_scratch({n: d[n] for n in (name, "jigsaw")})[name])
    first = {n: d[n] for n in ("simclr", "jigsaw")}
    assert_same(entry_of(rows, "jigsaw").gain, gains_over_scratch(first)["jigsaw"])


def test_one_pretraining_has_a_gain_over_subsets() -> None:
    rows = [*SCRATCH, *task("simclr", SIMCLR[:1])]
    expected = stats.ttest_1samp(SIMCLR_GAINS[0], 0)
    entry = entry_of(rows, "simclr")
    assert entry.gain is not None
    assert (entry.gain.basis, entry.gain.pretrainings, entry.gain.subsets) == ("one pretraining", 1, 3)
    assert entry.p == pytest.approx(expected.pvalue)
    assert_same(entry.gain, gains_over_scratch({"simclr": SIMCLR_GAINS[:1]})["simclr"])


def test_on_one_subset_runs_are_compared() -> None:
    rows = scratch({"a": (0.50, 0.54, 0.52)})
    pretrainings = rows_of("simclr", {(0, "a"): (0.60, 0.62), (1, "a"): 0.58, (2, "a"): 0.57})
    own = np.array([[0.61], [0.58], [0.57]])
    expected = gain_on_one_subset(own, np.array([0.50, 0.54, 0.52]))
    assert expected.p == pytest.approx(stats.ttest_ind(own[:, 0], [0.50, 0.54, 0.52], equal_var=False).pvalue)
    assert_same(entry_of([*rows, *pretrainings], "simclr").gain, expected)
    checkpoint = rows_of("simclr", {(7, "a"): (0.60, 0.62, 0.64)})
    expected = gain_on_one_subset(np.array([[0.60, 0.62, 0.64]]), np.array([0.50, 0.54, 0.52]))
    assert expected.basis == "one pretraining and subset"
    assert_same(entry_of([*rows, *checkpoint], "simclr").gain, expected)


def test_differences_are_of_the_same_subsets() -> None:
    rows = [*scratch({"a": 0.4, "b": 0.6, "z": 0.9}), *rows_of("simclr", {(0, "b"): 0.7, (0, "a"): 0.5, (0, "d"): 0.1})]
    entry = entry_of(rows, "simclr")
    assert entry.difference == pytest.approx(0.1)
    assert entry.dropped == Dropped(0, 2)
    apart = entry_of([*scratch({"a": 0.4}), *rows_of("simclr", {(0, "b"): 0.7})], "simclr")
    assert (apart.difference, apart.gain, apart.p) == (None, None, None)


def test_pairing_gives_power() -> None:
    """A good subset is good for both networks; that is no uncertainty of the gain."""
    rng = np.random.default_rng(1)
    result = unpaired = 0
    names = [str(i) for i in range(5)]
    for _ in range(100):
        subset = rng.normal(0, 0.05, 5)
        a, b = 0.75 + subset + rng.normal(0, 0.01, 5), 0.7 + subset + rng.normal(0, 0.01, 5)
        rows = scratch(dict(zip(names, b, strict=True)))
        p = entry_of([*rows, *rows_of("simclr", {(0, s): x for s, x in zip(names, a, strict=True)})], "simclr").p
        result += p is not None and p < 0.05
        unpaired += stats.ttest_ind(a, b).pvalue < 0.05
    assert result > 97
    assert unpaired < 60


# Incomplete studies


@pytest.mark.parametrize(
    ("missing", "dropped", "kept"),
    [
        ([(2, "c")], Dropped(0, 1), np.s_[:, :2]),  # a third of a subset and of a pretraining: more cells stay
        ([(2, "b"), (2, "c")], Dropped(1, 0), np.s_[:2, :]),
        ([(0, "b"), (1, "b")], Dropped(0, 1), np.s_[:, [0, 2]]),
        ([(0, "a"), (0, "b"), (0, "c")], Dropped(0, 0), np.s_[1:, :]),  # never pretrained
        ([(0, "a"), (1, "a"), (2, "a")], Dropped(0, 1), np.s_[:, 1:]),  # scratch has the subset
    ],
)
def test_what_lacks_runs_is_dropped_and_counted(missing: list[tuple[int, str]], dropped: Dropped, kept: Any) -> None:
    d = np.array([[0.08, 0.03, 0.02], [0.06, 0.09, 0.08], [0.01, 0.04, 0.12]])
    base = {"a": 0.52, "b": 0.61, "c": 0.55}
    cells = {(p, s): base[s] + d[p, i] for p in range(3) for i, s in enumerate(SUBSETS) if (p, s) not in missing}
    entry = entry_of([*scratch(base), *rows_of("simclr", cells)], "simclr")
    assert entry.dropped == dropped
    assert_same(entry.gain, gains_over_scratch({"simclr": d[kept]})["simclr"])
    assert entry.difference == pytest.approx(d[kept].mean())


def test_a_subset_without_scratch_is_dropped() -> None:
    rows = [r for r in SCRATCH if r.subset != "c"]
    entry = entry_of([*rows, *task("simclr", SIMCLR)], "simclr")
    assert entry.dropped == Dropped(0, 1)
    assert_same(entry.gain, gains_over_scratch({"simclr": SIMCLR_GAINS[:, :2]})["simclr"])


def test_a_study_that_is_left_with_one_subset_compares_runs_on_it() -> None:
    rows = [*scratch({"a": (0.50, 0.54), "b": 0.6}), *rows_of("simclr", {(0, "a"): 0.6, (1, "a"): 0.58, (1, "b"): 0.7})]
    entry = entry_of(rows, "simclr")
    assert entry.dropped == Dropped(0, 1)
    assert_same(entry.gain, gain_on_one_subset(np.array([[0.6], [0.58]]), np.array([0.50, 0.54])))


# The family and its correction


def with_p(name: str, p: float, labels: int) -> list[Row]:
    """Return a pretraining on two subsets, better than an accuracy of 0.5 with this p-value.

    For differences m - h and m + h, Student's t is m / h with one degree of freedom, so p = 2 / pi * atan(h / m).
    """
    half = 0.1 * math.tan(math.pi / 2 * p)
    return task(name, [[0.6 - half, 0.6 + half]], labels=labels, label_budget=f"labels={labels}")


def at(labels: int) -> list[Row]:
    return scratch({"a": 0.5, "b": 0.5}, labels=labels, label_budget=f"labels={labels}")


FAMILY = [*at(30), *with_p("simclr", 0.01, 30), *with_p("rotation", 0.04, 30),
          *at(300), *with_p("simclr", 0.03, 300), *with_p("rotation", 0.005, 300)]  # fmt: skip


def corrected(rows: Sequence[Row]) -> dict[tuple[str, int], float | None]:
    return {(e.initialization, e.budget.labels): e.p for e in compared(rows, "auto") if e.in_family}


def test_p_values_are_corrected_over_all_tasks_and_budgets() -> None:
    """4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04, which is not below the one before."""
    gains = {(e.initialization, e.budget.labels): e.gain for e in compared(FAMILY, "auto") if e.gain}
    raw = {("simclr", 30): 0.01, ("rotation", 30): 0.04, ("simclr", 300): 0.03, ("rotation", 300): 0.005}
    assert {k: g.p for k, g in gains.items()} == pytest.approx(raw)
    expected = {("simclr", 30): 0.03, ("rotation", 30): 0.06, ("simclr", 300): 0.06, ("rotation", 300): 0.02}
    assert corrected(FAMILY) == pytest.approx(expected)
    assert corrected(FAMILY[::-1]) == pytest.approx(expected)


def test_a_gain_without_interval_counts_as_a_comparison() -> None:
    known: dict[str, Any] = {"labels": 3, "label_budget": "labels=3"}
    alone = [*scratch({"a": 0.5}, **known), *rows_of("simclr", {(0, "a"): 0.6}, **known)]
    entry = entry_of([*at(30), *with_p("simclr", 0.01, 30), *alone], "simclr", budget="labels=3")
    assert entry.gain is not None
    assert (entry.difference, entry.gain.low, entry.p) == (pytest.approx(0.1), None, None)
    assert corrected([*at(30), *with_p("simclr", 0.01, 30), *alone]) == {
        ("simclr", 30): pytest.approx(0.02), ("simclr", 3): None,
    }  # fmt: skip


def test_a_network_without_scratch_on_the_same_labels_counts_as_a_comparison() -> None:
    lacking = rows_of("jigsaw", {(0, "y"): 0.6, (0, "z"): 0.7}, labels=30)
    rows = [*at(30), *with_p("simclr", 0.01, 30), *lacking]
    assert corrected(rows) == {("simclr", 30): pytest.approx(0.02), ("jigsaw", 30): None}
    assert entry_of(rows, "jigsaw").gain is None
    assert [r["initialization"] for r in gain_table(compared(rows, "auto"))] == ["simclr"]


OTHERS: list[tuple[str, str]] = [
    ("simclr", "finetune"), ("simclr", "probe"), ("rotation", "knn"), ("scratch", "probe"), ("scratch", "equal_time"),
    ("pixels", "auto"), ("pixels", "knn"), ("scratch train.steps=9", "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("initialization", "mode"), OTHERS)
def test_other_networks_have_a_difference_and_no_test(initialization: str, mode: str) -> None:
    other = rows_of(initialization, {(None, "a"): (0.6, 0.8), (None, "b"): 0.6}, mode)  # differences 0.2 and 0.1
    entry = entry_of([*FAMILY, *other], initialization, mode)
    assert entry.difference == pytest.approx(0.15)
    assert (entry.in_family, entry.gain, entry.p, entry.dropped) == (False, None, None, Dropped(0, 0))
    assert corrected([*FAMILY, *other]) == corrected(FAMILY)


def test_the_family_has_the_given_mode() -> None:
    rows = [*FAMILY, *rows_of("simclr", {(0, "a"): 0.6, (0, "b"): 0.7}, "probe")]
    family = [(e.initialization, e.mode) for e in compared(rows, "probe") if e.in_family]
    assert family == [("simclr", "probe")]
    assert [e.gain is None for e in compared(rows, "probe") if e.mode != "probe"] == [True] * 6


@pytest.mark.parametrize("name", ["pretrained", "imagenet", "pretrained dataset.root=more"])
def test_published_weights_are_in_the_family_by_their_probe_and_alone(name: str) -> None:
    """Another pretraining of theirs there is not, so none is assumed."""
    rows = [*FAMILY, *rows_of(name, {(None, "a"): 0.6, (None, "b"): 0.7}, "probe")]
    entry = entry_of(rows, name, "probe")
    assert entry.in_family
    expected = gains_over_scratch({name: np.array([[0.1, 0.2]])})[name]
    assert expected.assumed is not None
    assert_same(entry.gain, dataclasses.replace(expected, assumed=None))
    assert sum(e.in_family for e in compared(rows, "auto")) == 1 + sum(e.in_family for e in compared(FAMILY, "auto"))
    both = [*rows, *rows_of(name, {(None, "a"): 0.6, (None, "b"): 0.7}, "finetune")]
    family = [(e.initialization, e.mode) for e in compared(both, "finetune") if e.in_family]
    assert family == [(name, "finetune")]


def test_published_weights_without_that_mode_and_a_probe_are_in_the_family_by_another_mode() -> None:
    own = {mode: rows_of("pretrained", {(None, "a"): 0.6, (None, "b"): 0.7}, mode) for mode in ("finetune", "knn")}
    family = [e.mode for e in compared([*FAMILY, *own["finetune"], *own["knn"]], "auto") if e.in_family]
    assert family.count("finetune") == 1
    assert "knn" not in family
    assert "knn" in [e.mode for e in compared([*FAMILY, *own["knn"]], "auto") if e.in_family]


def test_without_a_pretraining_there_is_no_family() -> None:
    assert not any(e.in_family for e in compared(at(30), "auto"))
    assert compared([], "auto") == []


def test_the_costs_of_a_network_are_means_over_its_classifiers() -> None:
    rows = [
        *rows_of("simclr", {(0, "a"): 0.6}, ms_per_image=1.0, megabytes=2.0, minutes=3.0),
        *rows_of("simclr", {(0, "b"): 0.6}, ms_per_image=2.0, megabytes=2.0, minutes=5.0),
        *rows_of("simclr", {(0, "c"): 0.6}),
        *rows_of("rotation", {(0, "c"): 0.6}, backbone="resnet18", image_size=64),
    ]
    simclr, rotation = compared(rows, "auto")
    assert simclr.costs == (1.5, 2.0, 4.0)
    assert rotation.costs == (None, None, None)
    assert (simclr.network, rotation.network) == ("smallcnn at 32 px", "resnet18 at 64 px")


def test_the_network_of_an_entry_has_its_stem_if_that_of_scratch_is_another() -> None:
    own = {"backbone": "resnet18", "stem": "small"}
    rows = [
        *rows_of("scratch", {(None, "a"): 0.6}, "finetune", **own),
        *rows_of("rotation", {(0, "a"): 0.6}, **own),
        *rows_of("rotation init=pretrained", {(0, "a"): 0.7}, **own | {"stem": "imagenet_small"}),
        *rows_of("pretrained", {(None, "a"): 0.7}, backbone="lite0", image_size=224),
    ]
    assert {e.initialization: e.network for e in compared(rows, "auto")} == {
        "scratch": "resnet18 at 32 px", "rotation": "resnet18 at 32 px",
        "rotation init=pretrained": "resnet18 at 32 px with stem=imagenet_small", "pretrained": "lite0 at 224 px",
    }  # fmt: skip


# Budgets


def test_an_extra_and_an_inside_budget_of_as_many_labels_are_not_compared() -> None:
    """60 labels: all of them for training, or 30 with a validation split of 30."""
    inside: dict[str, Any] = {"labels": 60, "labels_train": 60, "label_budget": "labels=60"}
    extra: dict[str, Any] = {"labels": 60, "labels_train": 30, "labels_val": 30, "label_budget": "labels=30"}
    rows = [
        *scratch({"a": 0.60, "b": 0.62}, **inside), *rows_of("simclr", {(0, "a"): 0.65, (0, "b"): 0.69}, **inside),
        *scratch({"a": 0.50, "b": 0.54}, **extra), *rows_of("simclr", {(0, "a"): 0.51, (0, "b"): 0.57}, **extra),
    ]  # fmt: skip
    entries = [e for e in compared(rows, "auto") if e.in_family]
    assert [e.budget for e in entries] == [Budget(60, 0, "labels=60"), Budget(60, 30, "labels=30")]
    assert [e.labels_train for e in entries] == [60, 30]
    assert [e.difference for e in entries] == pytest.approx([0.06, 0.02])
    gains = [gains_over_scratch({"simclr": np.array([d])})["simclr"] for d in ([0.05, 0.07], [0.01, 0.03])]
    for entry, gain in zip(entries, gains, strict=True):
        assert_same(entry.gain, gain)
    assert [e.labels_needed for e in entries] == [(60, ">"), (30, ">")]


def test_labels_needed_are_those_of_the_curve_without_validation() -> None:
    rows = []
    for labels, accuracy in ((30, 0.5), (300, 0.7)):
        extra: dict[str, Any] = {"labels": labels + 50, "labels_val": 50, "label_budget": f"labels={labels}"}
        rows += scratch({"a": accuracy, "b": accuracy}, **extra)
        rows += rows_of("simclr", {(0, "a"): 0.58, (0, "b"): 0.62}, **extra) if labels == 30 else []
    rows += scratch({"a": 0.6, "b": 0.6}, labels=40, label_budget="labels=40")  # the curve of another validation
    assert entry_of(rows, "simclr").labels_needed == (pytest.approx(math.sqrt(30 * 300)), "=")


def test_labels_needed_interpolates_the_curve() -> None:
    curve = [(1000, 0.9), (10, 0.5), (100, 0.7)]
    for n, accuracy in curve:
        assert labels_needed(curve, accuracy) == (pytest.approx(n), "=")
    assert labels_needed(curve, 0.6) == (pytest.approx(math.sqrt(10 * 100)), "=")
    assert labels_needed(curve, 0.95) == (1000, ">")
    assert labels_needed(curve, 0.4) == (10, "<")
    assert labels_needed([(10, 0.5), (100, 0.45), (1000, 0.9)], 0.5)[0] == pytest.approx(10)  # not after the dip


# Entries


def test_entries_are_sorted_by_labels_then_network_then_mode_and_compared_at_the_same_budget() -> None:
    def rows(initialization: str, mode: str, labels: int, *accuracies: float, budget: str = "") -> list[Row]:
        known: dict[str, Any] = {"labels": labels, "label_budget": budget or f"{labels}"}
        return [row(initialization, mode, subset=f"s{i}", test_accuracy=a, **known) for i, a in enumerate(accuracies)]

    auto = rows("simclr", "auto", 30, 0.9, 0.8, 0.8)
    auto = [dataclasses.replace(r, chosen=c) for r, c in zip(auto, ("probe", "scratch", "probe"), strict=True)]
    given = [
        *rows("simclr", "probe", 300, 0.7, 0.7), *auto, *rows("simclr", "finetune", 30, 0.65, 0.75, 0.7),
        *rows("scratch", "probe", 30, 0.1), *rows("scratch", "finetune", 300, 0.8, 0.8),
        *rows("scratch", "finetune", 30, 0.55, 0.65, 0.6), *rows("scratch", "finetune", 30, 0.2, budget="0.1"),
    ]  # fmt: skip
    given = [dataclasses.replace(r, chosen="probe") if r.mode == "finetune" else r for r in given]
    entries = compared(given, "auto")
    assert [(e.budget.labels, e.initialization, e.mode, e.budget.text) for e in entries] == [
        (30, "simclr", "auto", "30"), (30, "simclr", "finetune", "30"), (30, "scratch", "finetune", "30"),
        (30, "scratch", "finetune", "0.1"), (30, "scratch", "probe", "30"), (300, "simclr", "probe", "300"),
        (300, "scratch", "finetune", "300"),
    ]  # fmt: skip
    auto_entry, tuned, base, _, frozen, probe, _ = entries
    assert auto_entry.chosen == {"probe": 2, "scratch": 1}
    assert tuned.chosen == {}
    assert tuned.accuracy == mean_interval([0.65, 0.75, 0.7])
    assert (base.difference, base.labels_needed) == (None, None)
    assert [e.difference for e in (tuned, frozen, probe)] == pytest.approx([0.1, -0.45, -0.1])
    assert tuned.labels_needed == (pytest.approx(30 * 10**0.5), "=")
    (alone,) = compared(rows("simclr", "probe", 30, 0.7), "auto")
    assert (alone.difference, alone.labels_needed) == (None, None)


def test_the_interval_of_an_accuracy_is_over_subsets_of_which_pretrainings_are_averaged() -> None:
    accuracies = [[0.5, 0.6, 0.7], [0.7, 0.9, 0.6]]
    result, expected = entry_of(task("simclr", accuracies), "simclr").accuracy, mean_interval([0.6, 0.75, 0.65])
    assert dataclasses.astuple(result) == pytest.approx(dataclasses.astuple(expected))


def test_on_one_subset_the_interval_of_an_accuracy_is_over_pretrainings_or_runs() -> None:
    several = rows_of("simclr", {(0, "a"): (0.5, 0.6), (1, "a"): 0.6, (2, "a"): 0.7})
    assert entry_of(several, "simclr").accuracy == mean_interval([0.55, 0.6, 0.7])
    assert (entry_of(several, "simclr").subsets, entry_of(SCRATCH, "scratch", "finetune").subsets) == (1, 3)
    alone = rows_of("simclr", {(0, "a"): (0.5, 0.6, 0.7)})
    assert entry_of(alone, "simclr").accuracy == mean_interval([0.5, 0.6, 0.7])


def test_equal_accuracies_have_no_interval() -> None:
    """They do not show that other label subsets give the same."""
    assert not entry_of(task("simclr", [[1.0, 1.0, 1.0]]), "simclr").has_interval
    assert not entry_of(task("simclr", [[0.3, 0.1 + 0.2, 0.3]]), "simclr").has_interval  # which rounding separates
    assert not entry_of(task("simclr", [[0.5, 0.6]]), "simclr").has_interval
    assert entry_of(task("simclr", [[0.5, 0.6, 0.5]]), "simclr").has_interval


def test_the_interval_of_an_accuracy_ends_at_0_and_1() -> None:
    unbounded = mean_interval([0.9, 1.0, 0.8])
    assert unbounded.high > 1
    assert entry_of(task("simclr", [[0.9, 1.0, 0.8]]), "simclr").accuracy == Interval(
        unbounded.mean, unbounded.low, 1.0, 3
    )
    assert entry_of(task("simclr", [[0.1, 0.0, 0.2]]), "simclr").accuracy.low == 0
    two = entry_of(task("simclr", [[0.1, 0.2]]), "simclr").accuracy
    assert math.isnan(two.low)
    assert math.isnan(two.high)


def test_the_table_has_the_family_alone() -> None:
    """For programs: an end that does not exist is empty."""
    rows = [*FAMILY, *rows_of("jigsaw", {(None, "a"): 0.6, (None, "b"): 0.7}, "probe")]
    table = gain_table(compared(rows, "auto"))
    networks = [(r["initialization"], r["labels"]) for r in table]
    assert networks == [("simclr", 30), ("rotation", 30), ("simclr", 300), ("rotation", 300)]
    first = table[0]
    gain = entry_of(rows, "simclr").gain
    assert gain is not None
    assert (first["gain"], first["low"], first["high"]) == (pytest.approx(0.1), gain.low, gain.high)
    assert (first["p"], first["holm_p"]) == (pytest.approx(0.01), pytest.approx(0.03))
    assert (first["pretrainings"], first["subsets"], first["basis"]) == (1, 2, "one pretraining")
    assert (first["assumed_low"], first["assumed_high"]) == gain.assumed
    assert (first["fixed_split_low"], first["alone_high"]) == (None, None)
    assert (first["labels_val"], first["label_budget"], first["mode"]) == (0, "labels=30", "auto")


# Test images as a sample

IMAGES = 40


def predicted(rows: Sequence[Row], seed: int, names: Sequence[str] | None = None, **more: Any) -> list[Row]:
    """Return the rows with evaluations; the same images are difficult for all of them, so they are a sample."""
    difficulty, out = np.random.default_rng(seed).permutation(IMAGES), []
    for i, r in enumerate(rows):
        folder = Path(f"{r.initialization}-{seed}-{i}")
        folder.mkdir()
        correct = difficulty < IMAGES * r.test_accuracy
        labels = np.arange(IMAGES) % 2
        probabilities = np.eye(2)[np.where(correct, labels, 1 - labels)]
        named = np.array(names or [f"{n}.png" for n in range(IMAGES)])
        np.savez(folder / "predictions.npz", probabilities=probabilities, labels=labels, names=named, **more)
        out.append(dataclasses.replace(r, evaluated=str(folder), test_accuracy=float(correct.mean())))
    return out


def correct_of(rows: Sequence[Row], subset: str) -> np.ndarray:
    """Return the mean correctness of each image on one subset."""
    files = [np.load(Path(r.evaluated) / "predictions.npz") for r in rows if r.subset == subset]
    return np.mean([f["probabilities"].argmax(1) == f["labels"] for f in files], axis=0)


@pytest.mark.parametrize("groups", [None, np.arange(IMAGES) // 4])
def test_an_interval_considers_the_test_images(groups: np.ndarray | None) -> None:
    more: dict[str, Any] = {} if groups is None else {"groups": np.array([f"object {g}" for g in groups])}
    base, own = predicted(SCRATCH, 0, **more), predicted(task("simclr", SIMCLR), 1, **more)
    images = image_variance(np.array([correct_of(own, s) - correct_of(base, s) for s in SUBSETS]), groups)
    assert images
    by_subset = {s: np.mean([r.test_accuracy for r in base if r.subset == s]) for s in SUBSETS}
    d = np.array([r.test_accuracy - by_subset[r.subset] for r in own]).reshape(2, 3)
    result = entry_of([*base, *own], "simclr").gain
    assert_same(result, gains_over_scratch({"simclr": d}, {"simclr": images})["simclr"])
    assert result is not None
    assert result.fixed_split is not None


def test_groups_that_one_evaluation_knows_are_those_of_all() -> None:
    """Evaluations of older versions have none."""
    groups = np.arange(IMAGES) // 4
    base = predicted(SCRATCH, 0, groups=np.array([f"object {g}" for g in groups]))
    own = predicted(task("simclr", SIMCLR), 1)
    images = image_variance(np.array([correct_of(own, s) - correct_of(base, s) for s in SUBSETS]), groups)
    gain = entry_of([*base, *own], "simclr").gain
    assert images
    assert gain is not None
    half = np.ptp(gain.fixed_split or ()) / 2
    assert ((gain.high or 0) - (gain.low or 0)) / 2 == pytest.approx(math.hypot(half, 1.959964 * math.sqrt(images)))


def test_without_predictions_on_the_same_images_an_interval_holds_for_these() -> None:
    base, own = predicted(SCRATCH, 0), predicted(task("simclr", SIMCLR), 1)
    others = predicted(task("simclr", SIMCLR), 2, names=[f"other {n}.png" for n in range(IMAGES)])
    (Path(base[0].evaluated) / "predictions.npz").unlink()
    for rows in ([*base, *own], [*predicted(SCRATCH, 3), *others]):
        gain = entry_of(rows, "simclr").gain
        assert gain is not None
        assert gain.fixed_split is None
        assert gain.p is not None


def test_one_subset_considers_the_test_images() -> None:
    base = predicted(scratch({"a": (0.5, 0.6)}), 0)
    own = predicted(rows_of("simclr", {(0, "a"): 0.7, (1, "a"): 0.8}), 1)
    images = image_variance((correct_of(own, "a") - correct_of(base, "a"))[None])
    accuracies = [np.array([r.test_accuracy for r in rows]) for rows in (own, base)]
    expected = gain_on_one_subset(accuracies[0][:, None], accuracies[1], images)
    assert images
    assert_same(entry_of([*base, *own], "simclr").gain, expected)
