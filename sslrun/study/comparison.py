"""Comparison of networks with training from scratch on the same labels: the entries of a report, and its tests.

A study tests one family of hypotheses, which is fixed beforehand: one network for each initialization and label
budget. A hypothesis that cannot be tested, since no network was trained from scratch on the same labels, counts as one
of them. All other networks are shown with their accuracy and mean difference, without a test.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslrun.evaluation.correctness import Correctness, read_correctness
from sslrun.evaluation.intervals import Interval, mean_interval
from sslrun.study.entry import Budget, Costs, Dropped, Entry, Key, Sign, budget_of
from sslrun.study.gains import (
    Gain,
    gain_on_one_subset,
    gains_over_scratch,
    holm,
    image_variance,
)
from sslrun.study.results import ORDER, PUBLISHED, WITHOUT_TASK, Row
from sslrun.training.candidates import AUTO, PROBE


class _Cell(NamedTuple):
    pretrain_seed: int | None
    subset: str


_Cells = dict[_Cell, list[Row]]


def compared(rows: Sequence[Row], mode: str) -> list[Entry]:
    """Return one entry per network and label budget, ordered by number of labels, then as in `rows`.

    Args:
        rows: evaluated classifiers.
        mode: of the networks in the family.
    """
    networks: dict[Key, list[Row]] = {}
    initializations = list(dict.fromkeys(r.initialization for r in rows))
    for row in sorted(rows, key=lambda r: (r.labels, initializations.index(r.initialization), ORDER.index(r.mode))):
        networks.setdefault(Key(budget_of(row), row.initialization, row.mode), []).append(row)
    cells = {network: _cells(members) for network, members in networks.items()}
    scratch = {n.budget: c for n, c in cells.items() if n.is_scratch}
    family = _family(networks, mode)
    entries = [_entry(n, cells[n], scratch, networks[n], n in family) for n in networks]
    gains = _gains({n: cells[n] for n in family}, scratch)
    corrected = dict(zip(family, holm([gains[n][0].p if n in gains else None for n in family]), strict=True))
    for i, network in enumerate(networks):
        if network in gains:
            gain, dropped = gains[network]
            p = corrected[network]
            entries[i] = replace(entries[i], difference=gain.gain, gain=gain, p=p, dropped=dropped)
    return entries


def labels_needed(curve: Sequence[tuple[int, float]], accuracy: float) -> tuple[float, Sign]:
    """Return the number of labels at which a curve reaches an accuracy, interpolated linearly in log(labels).

    Args:
        curve: points (labels, accuracy) of the baseline, at least one.
        accuracy: to be reached.

    Returns:
        The number of labels and `"="`; if the accuracy is outside the curve, its first number of labels and `"<"`, or
        its last one and `">"`.
    """
    points = sorted(curve)
    if accuracy <= points[0][1]:
        return points[0][0], "=" if accuracy == points[0][1] else "<"
    for (n, a), (m, b) in itertools.pairwise(points):
        if a < accuracy <= b:
            return math.exp(math.log(n) + (accuracy - a) / (b - a) * (math.log(m) - math.log(n))), "="
    return points[-1][0], ">"


def gain_table(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Return the family as rows of a table for programs; gains and ends of intervals are fractions."""
    out = []
    for e in entries:
        if e.gain is None:
            continue
        g = e.gain
        row = {"labels": e.budget.labels, "labels_val": e.budget.labels_val, "label_budget": e.budget.text,
               "initialization": e.initialization, "mode": e.mode, "pretrainings": g.pretrainings,
               "subsets": g.subsets, "gain": g.gain, "low": g.low, "high": g.high, "p": g.p, "holm_p": e.p,
               "df": g.df, "basis": g.basis}  # fmt: skip
        for name, ends in (("fixed_split", g.fixed_split), ("alone", g.alone), ("assumed", g.assumed)):
            row |= {f"{name}_low": ends and ends[0], f"{name}_high": ends and ends[1]}
        out.append(row)
    return out


def _family(networks: Iterable[Key], mode: str) -> list[Key]:
    """Return the networks whose gains are tested: of a task in this mode.

    Of published weights, too, or else in the first mode that they have: the probe, then in the order of `ORDER`.
    """
    networks = list(networks)
    out = []
    for n in networks:
        kind = n.initialization.split()[0]  # a report adds other settings to the name
        own = mode
        if kind in PUBLISHED:
            own = next(m for m in (mode, PROBE, *ORDER) if n._replace(mode=m) in networks)
        if (kind not in WITHOUT_TASK or kind in PUBLISHED) and n.mode == own:
            out.append(n)
    return out


def _cells(rows: Iterable[Row]) -> _Cells:
    cells: _Cells = {}
    for r in rows:
        cells.setdefault(_Cell(r.pretrain_seed, r.subset), []).append(r)
    return cells


def _entry(
    network: Key, cells: _Cells, scratch: Mapping[Budget, _Cells], rows: Sequence[Row], in_family: bool
) -> Entry:
    accuracy = _accuracy(cells)
    chosen = [r.chosen for r in rows if network.mode == AUTO and r.chosen]
    curve = [
        (b.labels - b.labels_val, _accuracy(c).mean)
        for b, c in scratch.items()
        if b.labels_val == network.budget.labels_val
    ]
    return Entry(
        key=network,
        subsets=len(_by_subset(cells)),
        accuracy=accuracy,
        difference=None if network.is_scratch else _difference(cells, scratch.get(network.budget, {})),
        in_family=in_family,
        gain=None,
        p=None,
        dropped=Dropped(0, 0),
        labels_needed=labels_needed(curve, accuracy.mean) if curve and not network.is_scratch else None,
        chosen={c: chosen.count(c) for c in dict.fromkeys(chosen)},
        network=_network(rows[0], scratch.get(network.budget, {})),
        costs=Costs(
            _known_mean(r.ms_per_image for r in rows),
            _known_mean(r.megabytes for r in rows),
            _known_mean(r.minutes for r in rows),
        ),
    )


def _network(row: Row, scratch: _Cells) -> str:
    base = next((r for runs in scratch.values() for r in runs), row)
    other = f" with stem={row.stem}" if row.backbone == base.backbone and row.stem != base.stem else ""
    return f"{row.backbone} at {row.image_size} px{other}"


def _known_mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _difference(cells: _Cells, scratch: _Cells) -> float | None:
    own, base = _by_subset(cells), _by_subset(scratch)
    both = [np.mean(own[s]) - np.mean(base[s]) for s in own if s in base]
    return float(np.mean(both)) if both else None


def _by_subset(cells: _Cells) -> dict[str, list[float]]:
    """Return the mean accuracies of pretrainings on each subset."""
    out: dict[str, list[float]] = {}
    for cell, runs in cells.items():
        out.setdefault(cell.subset, []).append(_mean(runs))
    return out


def _mean(runs: Sequence[Row]) -> float:
    return float(np.mean([r.test_accuracy for r in runs]))


def _complete(cells: Iterable[_Cell]) -> tuple[list[int | None], list[str]]:
    """Return pretrainings and subsets of which every combination exists; what lacks the largest share is dropped."""
    cells = set(cells)
    pretrainings = sorted({c.pretrain_seed for c in cells}, key=lambda seed: -1 if seed is None else seed)
    subsets = sorted({c.subset for c in cells})
    while True:
        lacking = np.array([[_Cell(p, s) not in cells for s in subsets] for p in pretrainings])
        if not lacking.any():
            return pretrainings, subsets
        of_pretraining, of_subset = lacking.mean(1), lacking.mean(0)
        if of_pretraining.max() > of_subset.max():
            del pretrainings[int(of_pretraining.argmax())]
        else:
            del subsets[int(of_subset.argmax())]


def _accuracy(cells: _Cells) -> Interval:
    """Return the mean accuracy and its 95 % CI for other label subsets, or for other runs where there is one subset."""
    by_subset = _by_subset(cells)
    if len(by_subset) > 1:
        means = [round(float(np.mean(values)), 12) for values in by_subset.values()]  # equal ones stay equal
        return _clipped(mean_interval(means))
    (subset,) = by_subset
    return _clipped(mean_interval(_run_means(cells, [c.pretrain_seed for c in cells], subset)))


def _run_means(cells: _Cells, pretrainings: Sequence[int | None], subset: str) -> list[float]:
    """Return the accuracies of pretrainings, or of the runs of the only one."""
    if len(pretrainings) > 1:
        return [_mean(cells[_Cell(p, subset)]) for p in pretrainings]
    return [r.test_accuracy for r in cells[_Cell(pretrainings[0], subset)]]


def _clipped(interval: Interval) -> Interval:
    """Return the interval of an accuracy, cut at 0 and 1; bounds that are NaN stay so."""
    return replace(interval, low=float(np.maximum(interval.low, 0.0)), high=float(np.minimum(interval.high, 1.0)))


def _gains(family: Mapping[Key, _Cells], scratch: Mapping[Budget, _Cells]) -> dict[Key, tuple[Gain, Dropped]]:
    """Return the gains of all networks of the family that were trained on the same labels as one from scratch."""
    images = _Images()
    out: dict[Key, tuple[Gain, Dropped]] = {}
    for budget in dict.fromkeys(n.budget for n in family):
        base = _by_subset(scratch.get(budget, {}))
        matrices, variances, dropped = {}, {}, {}
        for network, cells in family.items():
            common = [c for c in cells if c.subset in base]
            if network.budget != budget or not common:
                continue
            p, s = _complete(common)
            every = {c.subset for c in cells} | set(base)
            dropped[network] = Dropped(len({c.pretrain_seed for c in cells}) - len(p), len(every) - len(s))
            variance = images.variance(cells, scratch[budget], p, s)
            if len(s) == 1:
                runs = [r.test_accuracy for r in scratch[budget][_Cell(None, s[0])]]
                own = np.array(_run_means(cells, p, s[0]))
                gain = gain_on_one_subset(own[:, None] if len(p) > 1 else own[None], np.array(runs), variance)
                out[network] = gain, dropped[network]
                continue
            matrices[network] = np.array([[_mean(cells[_Cell(a, b)]) - np.mean(base[b]) for b in s] for a in p])
            if variance is not None:
                variances[network] = variance
        for network in matrices:
            pool = {n.initialization: matrices[n] for n in _pool(network, matrices, family)}
            gains = gains_over_scratch(pool, {n.initialization: v for n, v in variances.items()})
            out[network] = gains[network.initialization], dropped[network]
    return {n: (_of_weights(n, out[n][0]), out[n][1]) for n in family if n in out}


def _of_weights(network: Key, gain: Gain) -> Gain:
    """Return a gain, for published weights without the interval for another pretraining, which there is not."""
    return replace(gain, assumed=None) if network.initialization.split()[0] in PUBLISHED else gain


def _pool(network: Key, others: Iterable[Key], cells: Mapping[Key, _Cells]) -> list[Key]:
    """Return a network and the others of which no two have the same pretraining, as with other settings they may."""
    pool: list[Key] = []
    known: set[str] = set()
    for n in dict.fromkeys([network, *others]):
        sources = {r.source for runs in cells[n].values() for r in runs}
        if not sources & known:
            pool.append(n)
            known |= sources
    return pool


class _Images:
    """The test images as a sample: which of them each classifier predicts correctly. Files are read once."""

    def __init__(self) -> None:
        self.read: dict[str, Correctness | None] = {}

    def variance(
        self, cells: _Cells, scratch: _Cells, pretrainings: Sequence[int | None], subsets: Sequence[str]
    ) -> float | None:
        """Return the variance of a gain over test images; None if a classifier lacks predictions on the same ones."""
        own = [[r for p in pretrainings for r in cells[_Cell(p, s)]] for s in subsets]
        base = [scratch[_Cell(None, s)] for s in subsets]
        known = [self._correctness(r) for runs in (*own, *base) for r in runs]
        first = known[0]
        if first is None or not all(t is not None and t.same_images(first) for t in known):
            return None
        differences = np.stack([self._share(a) - self._share(b) for a, b in zip(own, base, strict=True)])
        groups = next((t.groups for t in known if t is not None and t.groups is not None), None)  # older ones lack them
        return image_variance(differences, groups)

    def _share(self, runs: Sequence[Row]) -> np.ndarray:
        return np.mean([t.correct for r in runs if (t := self._correctness(r))], axis=0)

    def _correctness(self, row: Row) -> Correctness | None:
        if row.evaluated not in self.read:
            self.read[row.evaluated] = read_correctness(Path(row.evaluated))
        return self.read[row.evaluated]
