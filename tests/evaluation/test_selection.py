"""Choosing among candidates, and the accuracy of the chosen one, against naive re-implementations and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from sslrun.evaluation import selection
from sslrun.evaluation.calibration import fit_temperature
from sslrun.evaluation.selection import Predictions, choose, corrected_accuracy, score
from tests.helpers import bounded, slow


def guesses(predicted: list[list[int]] | np.ndarray, classes: int, confidence: float = 0.9) -> np.ndarray:
    """Return probabilities, `A x N x classes`, with which these classes are predicted; all NaN for -1."""
    wanted = np.asarray(predicted)
    p = np.full((*wanted.shape, classes), (1 - confidence) / (classes - 1), dtype=np.float32)
    np.put_along_axis(p, wanted.clip(0)[..., None], confidence, 2)
    p[wanted < 0] = np.nan
    return p


def of_correct(names: list[str], correct: list[list[int]], macro: bool = False) -> Predictions:
    """Return predictions of 20 or fewer images of class 0; 1 is correct, 0 wrong, -1 not evaluated."""
    predicted = np.where(np.array(correct) < 0, -1, 1 - np.array(correct))
    return Predictions(names, guesses(predicted, 2), np.zeros(len(correct[0]), dtype=np.int64), macro)


def test_the_most_accurate_candidate_is_chosen() -> None:
    correct = [[1] * 5 + [0] * 15, [1] * 18 + [0] * 2, [0] * 10 + [1] * 10]
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        predictions = of_correct([f"candidate {i}" for i in order], [correct[i] for i in order])
        assert order[choose(predictions)] == 1


def two_candidates(correct: list[int], sure: list[float], others: list[int], confidence: float = 0.9) -> Predictions:
    """Return predictions of `a`, with a confidence for each image, and of `b`, with one for all."""
    p = np.concatenate([guesses(1 - np.array([correct]), 2), guesses(1 - np.array([others]), 2, confidence)])
    for i, (hit, c) in enumerate(zip(correct, sure, strict=True)):
        p[0, i] = [c, 1 - c] if hit else [1 - c, c]
    return Predictions([*"ab"], p, np.zeros(len(correct), dtype=np.int64))


@pytest.mark.parametrize(("more", "chosen"), [(2, "a"), (3, "a"), (4, "b"), (9, "b")])
def test_where_accuracies_differ_by_less_than_two_standard_errors_the_likelier_is_chosen(
    more: int, chosen: str
) -> None:
    """b is correct on `more` of 20 images on which a is not; but a is sure where it is correct and unsure elsewhere."""
    error = np.std([1] * more + [0] * (20 - more), ddof=1) / math.sqrt(20)
    assert (more / 20 <= 2 * error) == (chosen == "a")
    a, b = [1] * 10 + [0] * 10, [1] * (10 + more) + [0] * (10 - more)
    predictions = two_candidates(a, [0.99] * 10 + [0.51] * 10, b)
    assert "ab"[choose(predictions)] == chosen
    unsure = two_candidates(a, [0.51] * 10 + [0.99] * 10, b)
    assert "ab"[choose(unsure)] == "b"


def test_the_standard_error_is_of_the_paired_difference() -> None:
    """A gain of 4 images of 20 in which 4 images differ has a small standard error, one in which 20 differ has not."""
    a = [1] * 8 + [0] * 12
    for b, chosen in (([1] * 12 + [0] * 8, 1), ([0] * 8 + [1] * 12, 0)):
        assert choose(two_candidates(a, [0.99] * 8 + [0.51] * 12, b)) == chosen


def test_likelihoods_are_compared_after_temperature_scaling() -> None:
    """b is more accurate, but so overconfident that its raw likelihood is far lower."""
    a, b = [1] * 12 + [0] * 8, [1] * 16 + [0] * 4
    predictions = two_candidates(a, [0.6] * 20, b, 0.999)
    assert predictions.log_likelihood[0].sum() > predictions.log_likelihood[1].sum() + 10
    assert choose(predictions) == 1
    for p, values in zip(predictions.probabilities, predictions.calibrated, strict=True):
        t = fit_temperature(p, predictions.labels)
        power = p.astype(np.float64) ** (1 / t)
        np.testing.assert_allclose(values, np.log(power[:, 0] / power.sum(1)), rtol=1e-6)


def test_of_equal_candidates_the_simplest_is_chosen() -> None:
    bad, good, better, best = ([1] * n + [0] * (20 - n) for n in (4, 15, 16, 16))
    assert choose(of_correct([*"abcd"], [bad, good, better, best])) == 2
    assert choose(of_correct([*"abcd"], [better, best, good, bad])) == 0


def test_of_equally_accurate_variants_the_likelier_is_chosen() -> None:
    p = np.concatenate([guesses([[0] * 9 + [1]], 2, confidence) for confidence in (0.6, 0.95, 0.99999)])
    labels = np.zeros(10, dtype=np.int64)
    likelihoods = [np.log(q[np.arange(10), labels]).sum() for q in p]
    assert max(likelihoods) == likelihoods[1]
    assert choose(Predictions(["probe"] * 3, p, labels)) == 1
    worse = guesses([[0] * 8 + [1] * 2], 2, 0.9)
    assert choose(Predictions(["probe"] * 2, np.concatenate([worse, p[2:]]), labels)) == 1  # even if less likely


def test_the_most_accurate_variant_of_each_candidate_is_compared() -> None:
    """Among the variants of a candidate there is no tolerance."""
    names = ["a", "a", "b", "b"]
    correct = [[1] * n + [0] * (20 - n) for n in (13, 15, 14, 14)]
    assert choose(of_correct(names, correct)) == 1
    correct = [[1] * n + [0] * (20 - n) for n in (10, 11, 13, 16)]
    assert choose(of_correct(names, correct)) == 3


def test_candidates_are_compared_on_the_images_that_all_of_them_have() -> None:
    """On the last ten images alone, the second is better, although its accuracy is lower."""
    simple, complex_ = [1] * 12 + [0] * 8, [-1] * 10 + [1] * 8 + [0] * 2
    predictions = of_correct(["simple", "complex"], [simple, complex_])
    assert choose(predictions) == 1
    assert (score(predictions, 0), score(predictions, 1)) == (0.6, 0.8)
    assert predictions.evaluated(np.array([0, 1])).tolist() == list(range(10, 20))
    assert predictions.evaluated(np.array([0])).tolist() == list(range(20))


def test_the_best_variant_is_that_on_all_images_of_the_variants() -> None:
    """On the last ten images the first variant is better, on all twenty the second."""
    first, second = [0] * 10 + [1] * 10, [1] * 17 + [0] * 3
    partial = [-1] * 10 + [0] * 10
    assert choose(of_correct(["simple", "simple", "complex"], [first, second, partial])) == 1


def test_macro_f1_prefers_the_candidate_that_finds_the_rare_class() -> None:
    labels = np.array([0] * 36 + [1] * 4)
    common = [0] * 40
    rare = [0] * 32 + [1] * 8
    predictions = {
        macro: Predictions(["common", "rare"], guesses([common, rare], 2), labels, macro) for macro in (False, True)
    }
    assert accuracy_score(labels, common) == accuracy_score(labels, rare) == 0.9
    assert choose(predictions[False]) == 0
    assert choose(predictions[True]) == 1
    assert score(predictions[True], 1) == pytest.approx(f1_score(labels, rare, average="macro"))


@given(st.integers(0, 10_000))
@bounded(25)
def test_scores_are_accuracy_and_macro_f1_over_the_classes_that_occur(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 30)), int(rng.integers(2, 7))
    labels, predicted = rng.integers(0, classes, n), rng.integers(0, classes, (2, n))
    p = guesses(predicted, classes)
    for i in range(2):
        assert score(Predictions([*"ab"], p, labels), i) == pytest.approx(accuracy_score(labels, predicted[i]))
        expected = f1_score(labels, predicted[i], average="macro", zero_division=0)
        assert score(Predictions([*"ab"], p, labels, macro=True), i) == pytest.approx(expected)


def naive_choice(predictions: Predictions, drawn: list[int]) -> int:
    """Return the choice on these images, of which some may be repeated."""
    names, labels = list(predictions.names), predictions.labels
    p = predictions.probabilities.astype(np.float64)

    def has(candidates: list[int]) -> list[int]:
        return [i for i in drawn if not any(np.isnan(p[a, i]).any() for a in candidates)]

    def has_all(candidates: list[int]) -> list[int]:
        return [i for i in range(len(labels)) if not any(np.isnan(p[a, i]).any() for a in candidates)]

    def right(a: int, images: list[int]) -> list[float]:
        return [float(p[a, i].argmax() == labels[i]) for i in images]

    def rate(a: int, images: list[int]) -> float:
        if predictions.macro:
            pairs = [(int(labels[i]), int(p[a, i].argmax())) for i in images]
            each = [
                (sum(x == y == c for x, y in pairs), sum((x == c) + (y == c) for x, y in pairs))
                for c in range(p.shape[2])
            ]
            return sum(2 * k / n for k, n in each if n) / sum(n > 0 for _, n in each)
        return sum(right(a, images)) / len(images)

    def likelihood(a: int, images: list[int]) -> float:
        return sum(math.log(max(float(p[a, i, labels[i]]), 1e-12)) for i in images)

    best = []
    for name in dict.fromkeys(names):
        variants = [a for a, other in enumerate(names) if other == name]
        images = has(variants)
        best.append(max(variants, key=lambda a: (round(rate(a, images), 9), round(likelihood(a, images), 9))))
    common = has(list(range(len(names))))
    if len(best) == 1:
        return best[0]
    scores = [rate(a, common) for a in best]
    top = best[int(np.argmax(np.round(scores, 12)))]
    everywhere = [i for i in range(len(labels)) if not np.isnan(p[:, i]).any()]
    frequency = {c: int((labels[everywhere] == c).sum()) for c in range(p.shape[2])}
    present = sum(n > 0 for n in frequency.values())
    weight = [len(everywhere) / present / frequency[labels[i]] if predictions.macro else 1.0 for i in common]
    likelihoods = {}
    for a, value in zip(best, scores, strict=True):
        d = np.array(weight) * (np.array(right(top, common)) - np.array(right(a, common)))
        error = standard_error(d, common, predictions.units)
        if max(scores) - value <= 2 * error + 1e-9:
            own = has_all([a])
            z = p[a] ** (1 / fit_temperature(p[a, own], labels[own]))
            each = [w * math.log(z[i, labels[i]] / z[i].sum()) for w, i in zip(weight, common, strict=True)]
            likelihoods[a] = round(sum(each) / len(each), 7)
    return max(likelihoods, key=lambda a: likelihoods[a])


def standard_error(d: np.ndarray, images: list[int], units: np.ndarray) -> float:
    """Return the standard error of the mean over images of units; a unit that is drawn twice counts as two."""
    sums: dict[tuple[int, int], float] = {}
    for k, i in enumerate(images):
        copy = (int(units[i]), images[:k].count(i))
        sums[copy] = sums.get(copy, 0.0) + float(d[k] - d.mean())
    g = len(sums)
    return math.sqrt(g / (g - 1) * sum(s**2 for s in sums.values())) / len(d) if g > 1 else 0.0


def random_predictions(seed: int, grouped: bool = False) -> Predictions:
    """Return up to six variants of three candidates, of which some were not evaluated on all images."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(4, 40)), int(rng.integers(2, 5))
    names = sorted(rng.choice([*"abc"], int(rng.integers(2, 7))).tolist())
    p = rng.dirichlet(np.ones(classes), (len(names), n)).astype(np.float32)
    labels = rng.integers(0, classes, n)
    p[:, np.arange(n), labels] += rng.random((len(names), 1)).astype(np.float32)  # some are better than others
    p /= p.sum(2, keepdims=True)
    if rng.random() < 0.5:
        p[np.ix_([a for a, name in enumerate(names) if name == names[-1]], range(n // 2))] = np.nan
    groups = rng.integers(0, n // 3 + 1, n) if grouped else None
    return Predictions(names, p, labels, macro=bool(rng.random() < 0.5), groups=groups)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", [*range(15), *slow(range(15, 60))])
def test_the_choice_is_that_of_a_naive_loop(seed: int, grouped: bool) -> None:
    predictions = random_predictions(seed, grouped)
    assert choose(predictions) == naive_choice(predictions, list(range(len(predictions.labels))))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", [*range(3), *slow(range(3, 12))])
def test_the_corrected_accuracy_is_that_of_a_naive_loop(
    seed: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "BAGS", 100)
    predictions = random_predictions(seed, grouped)
    some = np.flatnonzero([not np.isnan(predictions.probabilities[:, i]).all() for i in range(len(predictions.labels))])
    units = np.unique(predictions.units[some])
    n = len(units)
    common = predictions.evaluated(np.arange(len(predictions.names))).tolist()
    accuracies = []
    for draw in np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 100):
        drawn = [i for u, times in zip(units, draw, strict=True) for i in some[predictions.units[some] == u]
                 for _ in range(times)]  # fmt: skip
        out = [i for i in common if i not in drawn]
        if 0 < len(out) < len(common):
            chosen = naive_choice(predictions, drawn)
            accuracies.append(float(predictions.correct[chosen, out].mean()))
    assert corrected_accuracy(predictions) == pytest.approx(np.mean(accuracies))


def arms(rng: np.random.Generator, n: int, number: int, accuracy: float = 0.6) -> np.ndarray:
    """Return probabilities of equally good variants, `number x n x 2`, of images of class 0."""
    p = rng.uniform(0.5, 1, (number, n))
    p = np.where(rng.random((number, n)) < accuracy, p, 1 - p)
    return np.stack([p, 1 - p], 2).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "number", "optimism"), [(50, 20, (0.06, 0.15)), (200, 20, (0.03, 0.08)), (50, 3, (0.02, 0.1))]
)
def test_the_best_of_equal_variants_owes_its_accuracy_to_chance_and_the_corrected_one_does_not(
    n: int, number: int, optimism: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have an accuracy of 60 %, whichever is chosen; means over 100 studies."""
    monkeypatch.setattr(selection, "BAGS", 200)
    rng, labels = np.random.default_rng(0), np.zeros(n, dtype=np.int64)
    plain, corrected = [], []
    for _ in range(100):
        predictions = Predictions(["probe"] * number, arms(rng, n, number), labels)
        plain.append(score(predictions, choose(predictions)))
        corrected.append(corrected_accuracy(predictions))
    assert optimism[0] < np.mean(plain) - 0.6 < optimism[1]
    assert abs(np.mean(corrected) - 0.6) < 0.02


def test_the_corrected_accuracy_of_a_real_difference_is_hardly_lower() -> None:
    rng, labels = np.random.default_rng(0), np.zeros(300, dtype=np.int64)
    p = np.concatenate([arms(rng, 300, 3, 0.5), arms(rng, 300, 1, 0.9)])
    predictions = Predictions([*"abcd"], p, labels)
    assert choose(predictions) == 3
    assert corrected_accuracy(predictions) == pytest.approx(score(predictions, 3), abs=0.01)


def test_one_candidate_has_its_own_accuracy() -> None:
    predictions = of_correct(["probe"], [[1] * 7 + [0] * 3 + [-1] * 5])
    assert (choose(predictions), corrected_accuracy(predictions)) == (0, pytest.approx(0.7))


def test_identical_candidates_have_their_own_accuracy() -> None:
    predictions = of_correct(["probe", "finetune"], [[1] * 70 + [0] * 30] * 2)
    assert choose(predictions) == 0
    assert corrected_accuracy(predictions) == pytest.approx(0.7, abs=0.01)


def test_the_corrected_accuracy_is_the_same_every_time() -> None:
    predictions = random_predictions(3)
    assert corrected_accuracy(predictions) == corrected_accuracy(random_predictions(3))


@pytest.mark.parametrize("macro", [False, True])
@pytest.mark.parametrize("correct", [[[1, 0], [1, 1]], [[0, 0], [0, 0]], [[1, -1], [1, 1]], [[1], [0]]])
def test_of_one_or_two_images_there_is_still_a_choice_and_an_accuracy(macro: bool, correct: list[list[int]]) -> None:
    predictions = of_correct(["simple", "complex"], correct, macro)
    assert choose(predictions) in (0, 1)
    assert 0 <= corrected_accuracy(predictions) <= 1
    assert 0 <= score(predictions, 0) <= 1


def test_a_probability_of_0_has_a_finite_likelihood() -> None:
    p = np.array([[[0.0, 1.0]] * 3, [[0.1, 0.9]] * 3], dtype=np.float32)
    assert choose(Predictions(["probe"] * 2, p, np.zeros(3, dtype=np.int64))) == 1


def test_the_bootstrap_of_many_images_has_fewer_bags(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit; the result hardly changes."""
    predictions = Predictions([*"abc"], arms(np.random.default_rng(0), 2000, 3), np.zeros(2000, dtype=np.int64))
    full = corrected_accuracy(predictions)
    monkeypatch.setattr(selection, "DRAWS", 2000)
    assert corrected_accuracy(predictions) == pytest.approx(full, abs=0.01)
