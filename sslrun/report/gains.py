"""Gains of pretraining in words."""

from sslrun.base.text import counted
from sslrun.study.gains import ASSUMED_SD, Gain, Range

ALPHA = 0.05
IMPRECISE = 0.03  # an interval that contains a larger gain decides nothing
GIVEN = {  # what an interval holds for, where that is not another pretraining and other label subsets
    "one pretraining": "for this pretrained checkpoint",
    "one subset": "given these labels",
    "one pretraining and subset": "for this pretrained checkpoint, given these labels",
}


def gain_text(gain: Gain, p: float | None, comparisons: int) -> str:
    """Return a gain as part of a sentence: `better than scratch by 6.1 points [4.0, 8.2]; Holm p = 0.004, ...`.

    Brackets are 95 % CIs. Whether a network is better is decided by the corrected p-value, not by its interval.

    Args:
        gain: over scratch.
        p: its p-value, corrected for the comparisons as by `holm`; None without an interval.
        comparisons: their number.
    """
    if gain.low is None or gain.high is None or p is None:
        return _undecided(gain)
    ends = brackets((gain.low, gain.high))
    test = _test(p, comparisons)
    given = f" {GIVEN[gain.basis]}" if gain.basis in GIVEN else ""
    if p < ALPHA:
        size = f"{abs(100 * gain.gain):.1f}"
        ends = ends if gain.gain > 0 else brackets((-gain.high, -gain.low))
        text = f"{'better' if gain.gain > 0 else 'worse'} than scratch by {size} points {ends}{given}; {test}"
    else:
        text = f"no difference shown{given}: {signed(gain.gain)} points {ends}; {test}; {_allowed(gain.high)}"
    return text + _further(gain)


def _undecided(gain: Gain) -> str:
    difference = "same accuracy as scratch" if abs(gain.gain) < 1e-9 else f"{signed(gain.gain)} points"
    if gain.subsets == 1:
        need = "a confidence interval needs two or more runs on each side that differ"
        return f"undecided {GIVEN[gain.basis]}: {difference}; {need}"
    runs = f"{counted(gain.pretrainings, 'pretraining')} and {counted(gain.subsets, 'label subset')}"
    return f"undecided: {difference} with each of {runs}; a confidence interval needs runs that differ"


def _allowed(high: float) -> str:
    text = f"the data allow a gain of up to {100 * high:.1f} points" if high > 0 else "the interval contains no gain"
    return f"{text}; too imprecise to decide" if high > IMPRECISE else text


def _further(gain: Gain) -> str:
    text = ""
    if gain.assumed:
        sd = f"{100 * ASSUMED_SD:.1f} points"
        text += f"; for another pretraining {brackets(gain.assumed)}, with an SD of {sd} assumed, not measured"
    if gain.alone:
        reason = "since its pretrainings vary more than those of other tasks"
        text += f"; from its own runs alone {brackets(gain.alone)}, {reason}"
    return text


def _test(p: float, comparisons: int) -> str:
    value = "p " + (p_text(p) if p < 0.001 else f"= {p_text(p)}")
    return f"Holm {value}, {comparisons} comparisons" if comparisons > 1 else value


def p_text(p: float) -> str:
    """Return a p-value as in a table: `0.004`, `< 0.001`; close to 0.05 with the digit that decides, `0.0497`."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.2f}" if p >= 0.1 else f"{p:.4f}" if 0.0495 <= p < 0.0505 else f"{p:.3f}"


def signed(gain: float) -> str:
    """Return a gain in points with its sign: `+6.1`."""
    return f"{_points(gain):+.1f}"


def brackets(ends: Range) -> str:
    """Return an interval of fractions in points: `[4.0, 8.2]`."""
    return f"[{_points(ends[0]):.1f}, {_points(ends[1]):.1f}]"


def _points(gain: float) -> float:
    return round(100 * gain, 1) + 0.0  # never -0.0
