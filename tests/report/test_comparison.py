"""The comparison of a study in words."""

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from sslrun.report.comparison import conclusions, intervals_text, table, verdicts
from sslrun.study.comparison import compared
from sslrun.study.results import Row
from tests.helpers import row

SCRATCH_30 = [[0.50, 0.52, 0.54]]
BETTER = [[0.70, 0.725, 0.745], [0.71, 0.725, 0.75]]  # of two pretrainings, one value per label subset
UNCLEAR = [[0.50, 0.53, 0.54], [0.51, 0.515, 0.54]]


def network(initialization: str, mode: str, accuracies: Sequence[Sequence[float]], **known: Any) -> list[Row]:
    """Return classifiers of a network, `pretrainings x subsets`; without pretraining there is one row of values."""
    pretrained = initialization not in ("scratch", "pixels", "pretrained")
    return [
        row(initialization, mode, test_accuracy=a, subset=f"{known.get('labels', 30)}-{s}", seed=s,
            pretrain_seed=p if pretrained else None, **known)
        for p, of_subsets in enumerate(accuracies) for s, a in enumerate(of_subsets)
    ]  # fmt: skip


def budget(labels: int, validation: int = 0) -> dict[str, Any]:
    return {"labels": labels + validation, "labels_train": labels, "labels_val": validation,
            "label_budget": f"labels={labels}"}  # fmt: skip


def sentences(*rows: list[Row], mode: str = "finetune") -> list[str]:
    return [text for _, text in conclusions(compared([r for of_network in rows for r in of_network], mode))]


def printed(*rows: list[Row], mode: str = "finetune") -> str:
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(
        table(compared([r for of_network in rows for r in of_network], mode))
    )
    return out.getvalue()


def line_of(text: str, network: str) -> str:
    (line,) = (line for line in text.splitlines() if network in line)
    return line


def test_the_table_has_gains_and_p_values_of_the_family_alone() -> None:
    text = printed(
        network("scratch", "finetune", SCRATCH_30),
        network("scratch", "probe", [[0.40, 0.42, 0.41]]),
        network("simclr", "finetune", BETTER),
        network("simclr", "probe", [[0.60, 0.62, 0.64], [0.61, 0.63, 0.62]]),
        network("pixels", "knn", [[0.3, 0.31, 0.32]]),
    )
    assert text.splitlines()[1].split() == (
        ["labels", "network", "test", "accuracy", "95", "%", "CI", "gain", "95", "%", "CI", "Holm", "p"]
    )
    assert line_of(text, "from scratch").split() == ["30", "from", "scratch", "52.0", "%", "[47.0,", "57.0]"]
    assert line_of(text, "random init").split()[-4:] == ["%", "[38.5,", "43.5]", "-11.0"]  # a difference, no test
    assert line_of(text, "simclr, linear").split()[-1] == "+10.0"
    assert line_of(text, "pixels").split()[-1] == "-21.0"
    line = line_of(text, "simclr, finetuned").split()
    assert line[-4] == "+20.6"
    assert (line[-3][0], line[-2][-1]) == ("[", "]")
    assert 0 < float(line[-1]) < 0.05
    assert "Accuracies: 95 % CI for other label subsets. Gains over scratch in points, on the same label" in text
    assert "Holm p: corrected for 1 comparison; the other rows are not tested." in text


def test_validation_labels_are_named_and_the_table_fits_120_columns() -> None:
    of_60, of_300 = budget(60, 301), budget(300, 301)
    long = "simclr pretext.hidden_dim=32 pretext.output_dim=16"
    rows = [
        network("scratch", "finetune", SCRATCH_30, **of_60),
        network(long, "finetune", BETTER, **of_60),
        network("scratch", "finetune", [[0.80, 0.81, 0.82]], **of_300),
        network(long, "finetune", [[0.85, 0.86, 0.88], [0.86, 0.86, 0.87]], **of_300),
    ]
    text = printed(*rows)
    assert max(map(len, text.splitlines())) <= 120
    assert "validation labels" in text
    assert "60 + 301 " in line_of(text, "52.0 %")
    assert "300 + 301 " in line_of(text, "81.0 %")
    assert "corrected for 2 comparisons" in text
    first, gained, *_ = sentences(*rows)
    assert first == "from scratch, 60 + 301 validation labels: test accuracy 52.0 % [47.0, 57.0]"
    assert gained.startswith(f"{long}, 60 + 301 validation labels: better than scratch by 20.6 points [")
    assert gained.endswith("; scratch needs about 188 + 301 validation labels for the same accuracy")


def test_no_p_values_without_a_family() -> None:
    assert "corrected" not in printed(network("scratch", "finetune", SCRATCH_30))


def test_a_comparison_that_cannot_be_made_is_counted_and_without_any_there_is_no_correction() -> None:
    rows = [network("scratch", "finetune", SCRATCH_30), network("simclr", "finetune", BETTER)]
    more = network("simclr", "finetune", BETTER, **budget(300))
    assert "corrected for 2 comparisons" in printed(*rows, more)
    assert ", 2 comparisons" in sentences(*rows, more)[1]
    assert "corrected" not in printed(more)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([network("scratch", "finetune", SCRATCH_30)], "95 % CI for other label subsets"),
        ([[row("scratch", "finetune", test_accuracy=a) for a in (0.5, 0.6, 0.7)]],
         "95 % CI for other runs where there is one subset"),
        ([network("scratch", "finetune", SCRATCH_30),
          [row("simclr", "finetune", test_accuracy=a) for a in (0.5, 0.6, 0.7)]],
         "95 % CI for other label subsets, for other runs where there is one subset"),
        ([network("scratch", "finetune", [[0.5, 0.6]])], ""),
        ([[row("scratch", "finetune", test_accuracy=a) for a in (0.5, 0.6)]], ""),
    ],
)  # fmt: skip
def test_what_intervals_of_accuracies_hold_for_is_named(rows: list[list[Row]], text: str) -> None:
    entries = compared([r for of_network in rows for r in of_network], "finetune")
    assert intervals_text(entries) == text
    assert ("Accuracies: " in printed(*rows)) == bool(text)


def test_equal_accuracies_are_not_certain() -> None:
    scratch = network("scratch", "finetune", [[1.0, 1.0, 1.0]])
    assert "[" not in printed(scratch)
    assert sentences(scratch)[0].endswith(
        "100.0 % (an interval needs 3 or more label subsets, or runs with all labels, that differ)"
    )


def test_scratch_is_named_with_its_interval() -> None:
    (text,) = sentences(network("scratch", "finetune", SCRATCH_30))
    assert text == "from scratch, 30 labels: test accuracy 52.0 % [47.0, 57.0]"
    (text,) = sentences(network("scratch", "finetune", [[0.5, 0.6]]))
    assert text.startswith("from scratch, 30 labels: test accuracy 55.0 % (an interval needs 3 or more label subsets")


def test_a_better_network_is_named_with_the_labels_that_scratch_needs() -> None:
    scratch = network("scratch", "finetune", SCRATCH_30)
    more = network("scratch", "finetune", [[0.90, 0.91, 0.92]], **budget(300))
    less = network("scratch", "finetune", [[0.80, 0.81, 0.82]], **budget(10))
    gained = network("simclr", "finetune", BETTER)
    text = sentences(scratch, gained)[1]
    assert text.startswith("simclr, 30 labels: better than scratch by 20.6 points [")
    assert "; p = 0.0" in text
    assert text.endswith("; scratch needs more than 30 labels for the same accuracy")
    *_, text, _ = sentences(scratch, more, gained)
    assert text.endswith("; scratch needs about 101 labels for the same accuracy")
    assert sentences(scratch, less, gained)[-1].endswith("; scratch needs fewer than 10 labels for the same accuracy")


def test_without_a_difference_no_number_of_labels_is_named() -> None:
    scratch = network("scratch", "finetune", SCRATCH_30)
    for pretrained, kind in ((UNCLEAR, "no difference shown: +0.3 points"), ([[0.3, 0.32, 0.34]] * 2, "undecided: ")):
        text = sentences(scratch, network("simclr", "finetune", pretrained))[1]
        assert text.startswith(f"simclr, 30 labels: {kind}")
        assert "scratch needs" not in text
    text = sentences(scratch, network("simclr", "finetune", [[0.3, 0.33, 0.34], [0.31, 0.325, 0.34]]))[1]
    assert text.startswith("simclr, 30 labels: worse than scratch by 19.6 points [")
    assert "scratch needs" not in text


def test_a_wide_interval_is_too_imprecise() -> None:
    wide = network("simclr", "finetune", [[0.60, 0.45, 0.60], [0.40, 0.62, 0.58]])
    text = sentences(network("scratch", "finetune", SCRATCH_30), wide)[1]
    assert "no difference shown: +2.2 points [" in text
    assert text.endswith("; too imprecise to decide")


def test_the_number_of_comparisons_is_that_of_the_family() -> None:
    rows = [network("scratch", "finetune", SCRATCH_30), network("simclr", "finetune", BETTER)]
    others = [network("rotation", "finetune", UNCLEAR), network("rotation", "probe", BETTER)]
    for text in sentences(*rows, *others)[1:]:
        assert ", 2 comparisons" in text


@pytest.mark.parametrize(
    ("initialization", "mode", "name"),
    [
        ("scratch", "probe", "a linear probe of the randomly initialized network"),
        ("scratch", "knn", "k-NN on the randomly initialized network"),
        ("pixels", "probe", "logistic regression on pixels"),
        ("pixels", "knn", "k-NN on pixels"),
        ("scratch", "equal_time", "training from scratch for as long as a pretraining"),
    ],
)
def test_a_gain_that_another_network_reaches_is_qualified(initialization: str, mode: str, name: str) -> None:
    rows = [network("scratch", "finetune", SCRATCH_30), network("simclr", "finetune", BETTER)]
    text = sentences(*rows, network(initialization, mode, [[0.71, 0.73, 0.75]]))[1]
    assert "better than scratch by 20.6 points" in text
    assert text.endswith(f"; mean accuracy 72.6 %, but {name} reaches 73.0 %")
    assert "but" not in sentences(*rows, network(initialization, mode, [[0.70, 0.72, 0.74]]))[1]
    elsewhere = network(initialization, mode, [[0.71, 0.73, 0.75]], **budget(300))
    assert "but" not in sentences(*rows, elsewhere)[1]


def test_several_networks_that_reach_a_gain_are_listed() -> None:
    rivals = [network("scratch", m, [[0.8, 0.8, 0.8]]) for m in ("equal_time", "probe", "knn")]
    text = sentences(network("scratch", "finetune", SCRATCH_30), network("simclr", "finetune", BETTER), *rivals)[1]
    assert text.endswith(
        "; mean accuracy 72.6 %, but training from scratch for as long as a pretraining reaches 80.0 %, a linear probe "
        "of the randomly initialized network reaches 80.0 % and k-NN on the randomly initialized network reaches 80.0 %"
    )


def test_what_an_interval_leaves_out_is_named() -> None:
    scratch = network("scratch", "finetune", SCRATCH_30)
    gained = network("simclr", "finetune", [*BETTER, [0.72, 0.73, 0.75]])
    assert "without" not in sentences(scratch, gained)[1]
    lacking = [r for r in gained if (r.pretrain_seed, r.seed) not in ((2, 1), (2, 2))]
    assert sentences(scratch, lacking)[1].endswith("; without 1 pretraining for which runs are missing")
    assert sentences(scratch[:2], gained)[1].endswith("; without 1 label subset for which runs are missing")


def test_a_network_without_scratch_is_not_compared() -> None:
    (text,) = sentences(network("simclr", "finetune", BETTER))
    assert text == "simclr, 30 labels: no network trained from scratch on the same labels to compare with"


def test_a_choice_of_scratch_everywhere_is_named() -> None:
    chosen = network("simclr", "auto", SCRATCH_30 * 2, chosen="scratch")
    text = sentences(network("scratch", "finetune", SCRATCH_30), chosen, mode="auto")[1]
    assert text.startswith("simclr, 30 labels: undecided: same accuracy as scratch with each of 2 pretrainings")
    assert text.endswith(" (auto chose scratch on every label subset)")
    mixed = [*chosen[:5], *network("simclr", "auto", BETTER, chosen="probe")[5:]]
    rows = [network("scratch", "finetune", SCRATCH_30), mixed]
    assert "auto chose" not in sentences(*rows, mode="auto")[1]
    assert "simclr, auto (scratch 5, probe 1)" in printed(*rows, mode="auto")


def costing(ms: float | None, megabytes: float = 0.4, minutes: float = 2.0) -> dict[str, Any]:
    return {"ms_per_image": ms, "megabytes": megabytes, "minutes": minutes}


LITE0 = {"backbone": "tf_efficientnet_lite0", "image_size": 224}


def compared_inits(**of_scratch: Any) -> list[list[Row]]:
    """Networks of which the published one is the best, and the distilled one 0.9 points below."""
    distilled = [[0.715, 0.731, 0.752], [0.720, 0.735, 0.745]]
    return [
        network("scratch", "finetune", SCRATCH_30, **costing(0.213), **of_scratch),
        network("pixels", "probe", [[0.3, 0.31, 0.32]], **costing(0.001)),
        network("pretrained", "probe", [[0.725, 0.741, 0.759]], **costing(9.26, 13.53, 0.04), **LITE0),
        network("distill", "auto", distilled, **costing(0.4)),
        network("distill", "probe", [[0.76, 0.77, 0.78], [0.76, 0.77, 0.78]], **costing(0.4)),
        network("rotation", "auto", UNCLEAR, **costing(0.2)),
    ]


def test_the_verdict_names_the_best_and_the_fastest_within_1_point() -> None:
    """Of the distilled network counts what auto chose, and not its best row, which is only known afterwards."""
    rows = [r for of_network in compared_inits() for r in of_network]
    (text,) = verdicts(compared(rows, "auto"))
    assert text == (
        "Best at 30 labels: pretrained, linear probe, mean test accuracy 74.2 %; fastest within 1 point: distill, "
        "auto, 0.4 ms an image"
    )


def test_the_best_may_be_the_fastest_and_times_may_be_unknown() -> None:
    base = network("scratch", "finetune", SCRATCH_30, **costing(0.2))
    worse = network("simclr", "finetune", [[0.4, 0.41, 0.42]], **costing(0.1))
    (text,) = verdicts(compared([*base, *worse], "finetune"))
    assert text == (
        "Best at 30 labels: from scratch, mean test accuracy 52.0 %; fastest within 1 point: the same, 0.2 ms an image"
    )
    unknown = network("simclr", "finetune", BETTER)
    (text,) = verdicts(compared([*network("scratch", "finetune", SCRATCH_30), *unknown], "finetune"))
    assert text == "Best at 30 labels: simclr, finetuned, mean test accuracy 72.6 %"
    assert verdicts(compared(base, "finetune")) == []
    two = [*base, *worse, *network("scratch", "finetune", SCRATCH_30, **budget(300)),
           *network("simclr", "finetune", BETTER, **budget(300))]  # fmt: skip
    named = [v.partition(":")[0] for v in verdicts(compared(two, "finetune"))]
    assert named == ["Best at 30 labels", "Best at 300 labels"]


def test_a_network_that_is_not_that_of_scratch_is_named() -> None:
    _, pretrained, distill, _ = sentences(*compared_inits(), mode="auto")
    assert pretrained.startswith("pretrained, 30 labels: better than scratch by 22.2 points [")
    assert "; it is tf_efficientnet_lite0 at 224 px, scratch is smallcnn at 32 px" in pretrained
    assert "assumed" not in pretrained
    assert "; it is" not in distill


def test_the_table_has_what_networks_cost_and_fits_120_columns() -> None:
    of_60 = budget(60, 301)
    rows = compared_inits()
    text = printed(*rows, mode="auto")
    assert max(map(len, text.splitlines())) <= 120
    assert line_of(text, "from scratch ").split()[-3:] == ["0.21", "0.4", "2.0"]
    assert line_of(text, "pretrained, linear probe").split()[-3:] == ["9.3", "14", "0.04"]
    assert line_of(text, "pixels, logistic").split()[-3] == "0.001"
    assert text.splitlines()[2].split()[-3:] == ["ms", "MB", "min"]
    assert "ms: of an image, in batches of 64, without reading it. MB: of the network. min: of training" in text
    long = network("simclr pretext.hidden_dim=32 pretext.output_dim=16", "finetune", BETTER, **of_60, **costing(12345))
    text = printed(network("scratch", "finetune", SCRATCH_30, **of_60, **costing(1.0)), long)
    assert max(map(len, text.splitlines())) <= 120
    assert "12,345" in text
    assert "ms" not in printed(network("scratch", "finetune", SCRATCH_30))
