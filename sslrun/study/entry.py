"""The entries of a report: the results of one network at one label budget."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from sslrun.evaluation.intervals import Interval
from sslrun.run.encoders import SCRATCH
from sslrun.study.gains import Gain
from sslrun.study.results import Row
from sslrun.training.candidates import TUNED

Sign = Literal["=", "<", ">"]


class Budget(NamedTuple):
    """A label budget: the number of labels in all, of these in a validation split, and as requested."""

    labels: int
    labels_val: int
    text: str


def budget_of(row: Row) -> Budget:
    """Return the label budget of a classifier."""
    return Budget(row.labels, row.labels_val, row.label_budget)


class Dropped(NamedTuple):
    """Numbers of pretrainings and label subsets that an interval cannot consider, since they lack runs."""

    pretrainings: int
    subsets: int


class Key(NamedTuple):
    """What an entry is about: a label budget, and `initialization` and `mode` as in `Row`."""

    budget: Budget
    initialization: str
    mode: str

    @property
    def is_scratch(self) -> bool:
        """Whether it was trained from scratch for the usual time."""
        return (self.initialization, self.mode) == (SCRATCH, TUNED)


class Costs(NamedTuple):
    """What a network costs, as in `Row`; None if it is not known."""

    ms_per_image: float | None
    megabytes: float | None
    minutes: float | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Results of one network at one label budget.

    Attributes:
        key: label budget, initialization and mode.
        subsets: number of label subsets.
        accuracy: mean test accuracy and its 95 % CI for other label subsets, with these pretrainings and test images;
            for other runs where there is one subset.
        difference: mean difference in test accuracy from scratch on the same label subsets; None without such.
        in_family: whether it is compared with scratch by a test.
        gain: the same difference with its interval; None without scratch, and outside the family.
        p: p-value of the gain, corrected for all comparisons in the family; None without an interval.
        dropped: what the gain does not consider.
        labels_needed: by scratch for the same accuracy, as returned by `labels_needed`; None without scratch.
        chosen: counts of the choices of `mode=auto`.
        network: backbone and image size: `smallcnn at 32 px`; and the stem, if that of scratch is another.
        costs: means over its classifiers.
    """

    key: Key
    subsets: int
    accuracy: Interval
    difference: float | None
    in_family: bool
    gain: Gain | None
    p: float | None
    dropped: Dropped
    labels_needed: tuple[float, Sign] | None
    chosen: dict[str, int]
    network: str
    costs: Costs

    @property
    def budget(self) -> Budget:
        """The label budget."""
        return self.key.budget

    @property
    def initialization(self) -> str:
        """As in `Row`."""
        return self.key.initialization

    @property
    def mode(self) -> str:
        """As in `Row`."""
        return self.key.mode

    @property
    def labels_train(self) -> int:
        """The number of labels without those of a validation split."""
        return self.budget.labels - self.budget.labels_val

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval of its accuracy: of three or more values that are not all equal."""
        return self.accuracy.low < self.accuracy.high  # false for NaN

    @property
    def is_scratch(self) -> bool:
        """Whether it was trained from scratch for the usual time, the baseline of all comparisons."""
        return self.key.is_scratch
