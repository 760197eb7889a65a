"""The page of a study and its conclusions."""

import csv
import html
import json
import re
import subprocess
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from sslrun.evaluation.intervals import paired
from sslrun.report.study import conclusions, verdict_text
from sslrun.study import results
from sslrun.study.results import Row, verdict
from tests.helpers import CHROMIUM, row, summary


@pytest.mark.parametrize(
    ("values", "kind", "text"),
    [
        ([0.06, 0.062, 0.061], "better", r"better than scratch by 6\.1 points \(95 % CI 5\.9 to 6\.3\)"),
        ([-0.06, -0.062, -0.061], "worse", r"worse than scratch by 6\.1 points \(95 % CI 5\.9 to 6\.3\)"),
        ([0.06, -0.06, 0.01], "none", r"no difference shown: \+0\.3 points \(95 % CI -14\.6 to 15\.3\)"),
        ([0.0, 0.0, 0.0], "none", "no difference shown"),
        (
            [0.06],
            "too few subsets",
            "undecided: 1 label subset, too few for a confidence interval; set seeds=3",
        ),
        ([0.06, 0.1], "too few subsets", "undecided: 2 label subsets, too few"),
    ],
)
def test_verdict_texts(values: list[float], kind: str, text: str) -> None:
    zero = {str(i): 0.0 for i in range(len(values))}
    result = verdict(paired({str(i): v for i, v in enumerate(values)}, zero))
    assert result.kind == kind
    assert re.match(text, verdict_text(result))


def test_a_gain_that_random_features_reach_is_qualified() -> None:
    def rows(initialization: str, mode: str, test: float) -> list[Row]:
        return [row(initialization, mode, test_accuracy=test + 0.001 * n, subset=str(n), seed=n) for n in range(3)]

    pretrained = [*rows("scratch", "finetune", 0.5), *rows("simclr", "finetune", 0.7)]
    (sentence,) = conclusions(results.compared([*pretrained, *rows("scratch", "probe", 0.72)]), "finetune")
    assert "better than scratch by 20.0 points" in sentence
    assert sentence.endswith("but a linear probe of the randomly initialized network reaches 72.1 %")
    (sentence,) = conclusions(results.compared([*pretrained, *rows("scratch", "probe", 0.6)]), "finetune")
    assert "randomly initialized" not in sentence


def test_the_page_is_self_contained(in_study: Path) -> None:
    text = (in_study / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"@import|url\((?!#)", text)
    for heading in ("Label efficiency", "Learning curves", "Confusion matrix", "recall by class", "confident errors",
                    "before and after", "Experimental setup"):  # fmt: skip
        assert heading in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    answer = summary(in_study)
    assert all(c in html.unescape(text) for c in answer["conclusions"])
    assert (answer["git_commit"] is None) == ("<td>commit</td>" not in text)
    rows = list(csv.DictReader((in_study / "results.csv").open()))
    assert all(f'<td class="n">{100 * float(r["test_accuracy"]):.1f} %</td>' in text for r in rows)
    assert answer["command"] in html.unescape(text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert len(ids) == len(set(ids))
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {a or b for a, b in used} <= set(ids)
        xml.etree.ElementTree.fromstring(svg)
    every = re.findall(r'<svg[^>]*>|\bid="([^"]+)"', text)
    ids = [i for i in every if i]
    assert len(ids) == len(set(ids))  # of all figures together


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [400, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_browser_renders_it_offline(in_study: Path, width: int) -> None:
    assert CHROMIUM is not None
    page = in_study.resolve() / "report.html"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
             "--virtual-time-budget=3000",
             "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--user-data-dir=profile"]  # fmt: skip
    probe = Path("probe.html")
    probe.write_text(
        page.read_text().replace(
            "</body>",
            "<script>const all = [...document.querySelectorAll('figure svg, figure img')];"
            "document.title = JSON.stringify({wide: document.documentElement.scrollWidth, "
            "seen: document.documentElement.clientWidth, "
            "figures: all.filter(f => f.getBoundingClientRect().height > 50).length})</script></body>",
        )
    )
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", probe.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert title is not None
    result: dict[str, Any] = json.loads(title[1].replace("&quot;", '"'))
    assert result["wide"] <= result["seen"]  # no horizontal overflow
    assert result["figures"] >= 6
    assert "ERR_" not in done.stderr
    assert "Uncaught" not in done.stderr
