"""The comparison of a study in words: its table for a terminal, and its conclusions."""

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from sslrun.base.output import new_table
from sslrun.base.text import counted, percent, three_digits
from sslrun.evaluation.intervals import MIN_VALUES
from sslrun.report.gains import ALPHA, brackets, gain_text, p_text, signed
from sslrun.report.plots import FROM_SCRATCH, name_of
from sslrun.run.encoders import PIXELS, SCRATCH
from sslrun.study.entry import Budget, Entry
from sslrun.study.results import EQUAL_TIME
from sslrun.training.candidates import KNN, PROBE

NO_INTERVAL = f"an interval needs {MIN_VALUES} or more label subsets, or runs with all labels, that differ"
STYLES = {"better": "green", "worse": "red"}  # in a terminal; a page has CSS classes of these names
RIVALS = {  # networks that a gain has to be compared with, too
    (SCRATCH, EQUAL_TIME): "training from scratch for as long as a pretraining",
    (SCRATCH, PROBE): "a linear probe of the randomly initialized network",
    (SCRATCH, KNN): "k-NN on the randomly initialized network",
    (PIXELS, PROBE): "logistic regression on pixels",
    (PIXELS, KNN): "k-NN on pixels",
}

COSTS: dict[str, Callable[[Entry], float | None]] = {  # columns
    "ms": lambda e: e.costs.ms_per_image,
    "MB": lambda e: e.costs.megabytes,
    "min": lambda e: e.costs.minutes,
}
COSTS_TEXT = (
    "ms: of an image, in batches of 64, without reading it. MB: of the network. min: of training, with the pretraining."
)
WITHIN = 0.01  # of the best accuracy is as good


def table(entries: Sequence[Entry]) -> Table:
    """Return the comparison as a table for a terminal."""
    labels = labels_heading(e.budget for e in entries).replace(" + ", " +\n")
    costs = list(COSTS) if has_costs(entries) else []
    accuracy = "test\naccuracy" if costs else "test accuracy"  # which leaves more width to the names
    columns = (labels, "network", accuracy, "95 % CI", "gain", "95 % CI", "Holm p", *costs)
    numbers = {labels, accuracy, "gain", "Holm p", *costs}
    out = new_table(columns, numbers, fold=True, caption=_caption(entries), caption_justify="left")
    last = None
    for e in entries:
        if last is not None and e.budget != last:
            out.add_section()
        style = STYLES.get(kind_of(e), "")
        out.add_row(
            "" if e.budget == last else number_of_labels(e.budget),
            Text(network_text(e)),
            percent(e.accuracy.mean),
            Text(accuracy_interval(e)),
            Text(difference_text(e), style=style),
            Text(gain_interval(e), style=style),
            Text("" if e.p is None else p_text(e.p), style=style),
            *(cost_text(e, name) for name in costs),
        )
        last = e.budget
    return out


def _caption(entries: Sequence[Entry]) -> str:
    of_accuracies = f"Accuracies: {text}. " if (text := intervals_text(entries)) else ""
    text = f"{of_accuracies}Gains over scratch in points, on the same label subsets."
    if any(e.p is not None for e in entries):
        n = counted(comparisons(entries), "comparison")
        text += f"\nHolm p: corrected for {n}; the other rows are not tested."
    if has_costs(entries):
        text += f"\n{COSTS_TEXT}"
    return text


def has_costs(entries: Iterable[Entry]) -> bool:
    """Return whether the time of a prediction was measured, as in a study."""
    return any(e.costs.ms_per_image is not None for e in entries)


def cost_text(entry: Entry, name: str) -> str:
    """Return a cost of a network by its name in `COSTS`; empty if it is not known."""
    value = COSTS[name](entry)
    return "" if value is None else three_digits(value)


def intervals_text(entries: Sequence[Entry]) -> str:
    """Return what the intervals of accuracies hold for, as part of a sentence; empty if there are none."""
    several, one = ([e for e in entries if e.has_interval and (e.subsets > 1) == many] for many in (True, False))
    names = [*["other label subsets"] * bool(several), *["other runs where there is one subset"] * bool(one)]
    return f"95 % CI for {', for '.join(names)}" if names else ""


def comparisons(entries: Sequence[Entry]) -> int:
    """Return the number of comparisons in the family, with those that lack a network from scratch."""
    return sum(e.in_family for e in entries)


def kind_of(entry: Entry) -> str:
    """Return `better` or `worse` for a network in the family, by its corrected p-value, or an empty string."""
    if entry.gain is None or entry.p is None or entry.p >= ALPHA:
        return ""
    return "better" if entry.gain.gain > 0 else "worse"


def number_of_labels(budget: Budget) -> str:
    """Return the number of labels as in a table: `60`, or `60 + 301` with a validation split that comes on top."""
    train = f"{budget.labels - budget.labels_val:,}"
    return f"{train} + {budget.labels_val:,}" if budget.labels_val else train


def labels_heading(budgets: Iterable[Budget]) -> str:
    """Return the heading of a column of `number_of_labels`."""
    return "labels + validation labels" if any(b.labels_val for b in budgets) else "labels"


def labels_text(budget: Budget) -> str:
    """Return the number of labels with its noun: `60 labels`, `60 + 301 validation labels`."""
    if budget.labels_val:
        return f"{number_of_labels(budget)} validation labels"
    return counted(budget.labels, "label")


def network_text(entry: Entry) -> str:
    """Return the name of a network, with the choices of `mode=auto`, most frequent first: `(probe 3, scratch 2)`."""
    chosen = ", ".join(f"{c} {n}" for c, n in sorted(entry.chosen.items(), key=lambda x: -x[1]))
    return name_of(entry.initialization, entry.mode) + (f" ({chosen})" if chosen else "")


def networks_text(entries: Sequence[Entry]) -> str:
    """Return backbone and image size of each initialization, in short if all have the same."""
    networks: dict[str, dict[str, None]] = {}
    for e in entries:
        if e.initialization != PIXELS:
            networks.setdefault(e.network, {})[e.initialization] = None
    if len(networks) == 1:
        return next(iter(networks))
    return "; ".join(f"{', '.join(names)}: {network}" for network, names in networks.items())


def accuracy_interval(entry: Entry) -> str:
    """Return the 95 % CI of an accuracy: `[65.5, 75.1]`; empty if there is none."""
    return brackets((entry.accuracy.low, entry.accuracy.high)) if entry.has_interval else ""


def difference_text(entry: Entry) -> str:
    """Return the mean difference from scratch in points: `+6.1`; empty if there is none."""
    return "" if entry.difference is None else signed(entry.difference)


def gain_interval(entry: Entry) -> str:
    """Return the 95 % CI of a gain: `[4.0, 8.2]`; empty if there is none."""
    gain = entry.gain
    return "" if gain is None or gain.low is None or gain.high is None else brackets((gain.low, gain.high))


def conclusions(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """Return a sentence for each label budget from scratch, and for each network in the family.

    Args:
        entries: as returned by `compared`.
    """
    return [(e, _sentence(e, entries)) for e in entries if e.is_scratch or e.in_family]


def _sentence(e: Entry, entries: Sequence[Entry]) -> str:
    if e.is_scratch:
        interval = accuracy_interval(e) or f"({NO_INTERVAL})"
        return f"{FROM_SCRATCH}, {labels_text(e.budget)}: test accuracy {percent(e.accuracy.mean)} {interval}"
    name = f"{e.initialization}, {labels_text(e.budget)}"
    if e.gain is None:
        return f"{name}: no network trained from scratch on the same labels to compare with"
    sentence = f"{name}: {gain_text(e.gain, e.p, comparisons(entries))}"
    if set(e.chosen) == {SCRATCH}:
        sentence += " (auto chose scratch on every label subset)"
    elif kind_of(e) == "better" and e.labels_needed:
        number, sign = e.labels_needed
        more = {"=": "about ", ">": "more than ", "<": "fewer than "}[sign]
        val = f" + {e.budget.labels_val:,} validation" if e.budget.labels_val else ""
        sentence += f"; scratch needs {more}{number:,.0f}{val} labels for the same accuracy"
    return sentence + _other_network(e, entries) + _rivals(e, entries) + _dropped(e)


def _other_network(e: Entry, entries: Sequence[Entry]) -> str:
    """Return backbone and image size of a network and of scratch, if they differ."""
    scratch = next(s for s in entries if s.is_scratch and s.budget == e.budget)
    return f"; it is {e.network}, scratch is {scratch.network}" if e.network != scratch.network else ""


def verdicts(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each label budget: the network with the best mean accuracy, and the fastest close to it.

    Of each initialization the row counts that is compared with scratch.

    Args:
        entries: as returned by `compared`.
    """
    out = []
    for budget in dict.fromkeys(e.budget for e in entries if e.in_family):
        here = [e for e in entries if e.budget == budget and (e.in_family or e.initialization in (SCRATCH, PIXELS))]
        best = max(here, key=lambda e: e.accuracy.mean)
        text = f"Best at {labels_text(budget)}: {_named(best)}, mean test accuracy {percent(best.accuracy.mean)}"
        close = [e for e in here if e.accuracy.mean >= best.accuracy.mean - WITHIN and e.costs.ms_per_image is not None]
        if close:
            fastest = min(close, key=lambda e: (e.costs.ms_per_image, -e.accuracy.mean))
            name = "the same" if fastest is best else _named(fastest)
            text += f"; fastest within 1 point: {name}, {cost_text(fastest, 'ms')} ms an image"
        out.append(text)
    return out


def _named(e: Entry) -> str:
    return name_of(e.initialization, e.mode)


def _rivals(e: Entry, entries: Sequence[Entry]) -> str:
    """Return the networks that cost less, or as much as the pretraining, and are as accurate on the average."""
    reach = [
        f"{RIVALS[r.initialization, r.mode]} reaches {percent(r.accuracy.mean)}"
        for r in entries
        if r.budget == e.budget and (r.initialization, r.mode) in RIVALS and r.accuracy.mean >= e.accuracy.mean
    ]
    if not reach:
        return ""
    own = f"mean accuracy {percent(e.accuracy.mean)}"
    return f"; {own}, but " + " and ".join(filter(None, [", ".join(reach[:-1]), reach[-1]]))


def _dropped(e: Entry) -> str:
    counts = ((e.dropped.pretrainings, "pretraining"), (e.dropped.subsets, "label subset"))
    without = " and ".join(counted(n, noun) for n, noun in counts if n)
    return f"; without {without} for which runs are missing" if without else ""
