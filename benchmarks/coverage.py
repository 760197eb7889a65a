"""Do the intervals of a study contain the true gain, and does Holm's correction keep its promise?

    python benchmarks/coverage.py [--studies 4000]

Simulates studies of three tasks with known gains, in accuracy points. The difference of a task from scratch is the sum
of independent effects of the pretraining, of the label subset, and of the two trainings; half of the variance of the
subset's effect, and the noise of scratch, are shared by all tasks. Prints tables in Markdown; takes 7 s.
"""

import argparse
import dataclasses

import numpy as np

from sslrun.study.gains import ASSUMED_SD, OUTLIER, Estimate, estimated, half_widths, holm, mean_squares, p_values

TASKS, BUDGETS = 3, 5  # three tasks at five label budgets are 15 comparisons
DESIGNS = ((3, 5), (2, 5), (5, 5), (3, 3))  # pretrainings, label subsets


@dataclasses.dataclass(frozen=True)
class Effects:
    """SDs of the effects in points; skewed effects are exponential, the others normal."""

    name: str
    subset: float = 1.5
    pretraining: float = 1.0
    training: float = 1.0
    scratch: float = 1.0
    skewed: bool = False


EFFECTS = (
    Effects("typical"),
    Effects("pretrainings differ more", pretraining=3.0),
    Effects("subsets differ more", subset=4.0),
    Effects("noisy trainings", subset=1.0, pretraining=0.5, training=3.0, scratch=3.0),
    Effects("only noise", subset=0.0, pretraining=0.0),
    Effects("no effect of pretraining", pretraining=0.0),
    Effects("almost only pretraining", subset=0.0, pretraining=2.0, training=0.5, scratch=0.5),
    Effects("typical, skewed", skewed=True),
)


def simulated(
    rng: np.random.Generator, effects: Effects, studies: int, pretrainings: int, subsets: int, gain: float = 0.0
) -> np.ndarray:
    """Return differences from scratch in points, `studies x tasks x pretrainings x subsets`."""

    def draw(sd: float, *shape: int) -> np.ndarray:
        return sd * (rng.standard_exponential(shape) - 1 if effects.skewed else rng.standard_normal(shape))

    of_method = effects.subset / np.sqrt(2)
    pretrained = (
        draw(of_method, studies, TASKS, 1, subsets)
        + draw(effects.pretraining, studies, TASKS, pretrainings, 1)
        + draw(effects.training, studies, TASKS, pretrainings, subsets)
    )
    scratch = draw(of_method, studies, 1, 1, subsets) + draw(effects.scratch, studies, 1, 1, subsets)
    return np.asarray(gain + pretrained - scratch)


def alone(differences: np.ndarray) -> Estimate:
    """Return the estimates of the tasks without pooling."""
    return Estimate(*(x[..., 0] for x in estimated(differences[..., None, :, :])))


def independent(differences: np.ndarray) -> Estimate:
    """Return the estimates that take all cells for independent, which they are not."""
    cells = differences.reshape(*differences.shape[:-2], -1)
    n = cells.shape[-1]
    return Estimate(cells.mean(-1), cells.var(-1, ddof=1) / n, np.full(cells.shape[:-1], n - 1.0))


def corrected(families: np.ndarray) -> np.ndarray:
    """Return p-values corrected within each row, `studies x comparisons`."""
    return np.array([holm(p) for p in families.tolist()], dtype=float)


def row(rng: np.random.Generator, effects: Effects, studies: int, design: tuple[int, int]) -> str:
    """Return coverage, mean width and family-wise error in one setting: pooled, alone, and of independent cells."""
    differences = simulated(rng, effects, studies, *design)
    cells = [effects.name]
    for estimate in (estimated(differences), alone(differences), independent(differences)):
        half = half_widths(estimate)
        wrong = np.mean(corrected(p_values(estimate)).min(1) < 0.05)
        cells += [f"{100 * np.mean(np.abs(estimate.gain) <= half):.1f}", f"{2 * half.mean():.1f}", f"{100 * wrong:.1f}"]
    return "| " + " | ".join(cells) + " |"


def power(rng: np.random.Generator, effects: Effects, studies: int, design: tuple[int, int], gain: float) -> list[str]:
    """Return the share of the 15 comparisons that Holm rejects in %, pooled over the tasks of a budget and alone."""
    budgets = [simulated(rng, effects, studies, *design, gain) for _ in range(BUDGETS)]
    shares = []
    for estimate in (estimated, alone):
        families = np.concatenate([p_values(estimate(d)) for d in budgets], axis=1)
        shares.append(f"{100 * np.mean(corrected(families) < 0.05):.0f}")
    return shares


def one_pretraining(rng: np.random.Generator, sd: float, studies: int, subsets: int) -> str:
    """Return the coverage of the checkpoint's gain and of the task's, the latter without and with an assumed SD."""
    of_pretraining = sd * rng.standard_normal((studies, TASKS, 1, 1))
    differences = simulated(rng, Effects("", pretraining=0.0), studies, 1, subsets) + of_pretraining
    estimate = estimated(differences)
    own, assumed = half_widths(estimate), half_widths(estimate, (100 * ASSUMED_SD) ** 2)
    of_checkpoint = np.mean(np.abs(estimate.gain - of_pretraining[..., 0, 0]) <= own)
    shares = [of_checkpoint, *(np.mean(np.abs(estimate.gain) <= half) for half in (own, assumed))]
    widths = [2 * own.mean(), 2 * assumed.mean()]
    return f"| {sd} | {' | '.join(f'{100 * s:.1f}' for s in shares)} | {' | '.join(f'{w:.1f}' for w in widths)} |"


def one_task_differs(rng: np.random.Generator, studies: int, design: tuple[int, int]) -> str:
    """Return the coverage of the first task, whose pretrainings have three times the SD of the others."""
    sds = np.array([3.0, 1.0, 1.0])[:, None, None]
    of_pretraining = sds * rng.standard_normal((studies, TASKS, design[0], 1))
    differences = simulated(rng, Effects("", pretraining=0.0), studies, *design) + of_pretraining
    shares = [np.abs(e.gain[:, 0]) <= half_widths(e)[:, 0] for e in (estimated(differences), alone(differences))]
    a = mean_squares(differences)[0]
    printed = a[:, 0] > OUTLIER * a[:, 1:].mean(1)
    both = [*shares, printed]
    return f"| {design[0]} x {design[1]} | {' | '.join(f'{100 * s.mean():.1f}' for s in both)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="coverage of the intervals of simulated studies")
    parser.add_argument("--studies", type=int, default=4000, help="simulated in each setting")
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    for design in DESIGNS:
        print(f"\n{design[0]} pretrainings, {design[1]} label subsets\n")
        methods = ("pooled", "alone", "all cells")
        print(f"| effects | {' | '.join(f'coverage, {m} | width | error' for m in methods)} |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for effects in EFFECTS:
            print(row(rng, effects, studies, design), flush=True)
    print("\n| pretrainings x subsets | gain | power, pooled | power, alone |\n|---|---|---|---|")
    for design in DESIGNS:
        for gain in (2.0, 4.0, 6.0):
            pooled, own = power(rng, EFFECTS[0], studies, design, gain)
            print(f"| {design[0]} x {design[1]} | {gain:.0f} | {pooled} | {own} |", flush=True)
    print(
        "\n| pretrainings x subsets | coverage, pooled | coverage, alone | interval alone printed |\n|---|---|---|---|"
    )
    for design in DESIGNS:
        print(one_task_differs(rng, studies, design))
    print("\n| SD of pretraining | of the checkpoint | of the task | with assumed SD | width | with assumed SD |")
    print("|---|---|---|---|---|---|")
    for sd in (0.0, 1.0, 1.5, 3.0):
        print(one_pretraining(rng, sd, studies, 5))


if __name__ == "__main__":
    main()
