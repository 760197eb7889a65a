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

from sslrun.report import study
from sslrun.report.comparison import networks_text
from sslrun.report.gains import p_text
from sslrun.report.html import render
from sslrun.study.comparison import compared
from sslrun.study.results import Row
from tests.helpers import CHROMIUM, row, summary


def test_gains_csv_has_the_gains_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("scratch", "finetune", test_accuracy=0.5 + 0.02 * s, subset=str(s)) for s in range(3)]
    rows += [
        row("simclr", "finetune", test_accuracy=0.7 + 0.03 * s - 0.02 * p * s**2, subset=str(s), pretrain_seed=p)
        for s in range(3) for p in range(2)
    ]  # fmt: skip
    rows += [row("simclr", "probe", test_accuracy=0.6, subset=str(s), pretrain_seed=0) for s in range(3)]
    monkeypatch.setattr(study, "_page", lambda *given: "")
    sentences = study.publish(tmp_path, rows, "finetune", None, None)
    (entry,) = (e for e in compared(rows, "finetune") if e.in_family)
    (gained,) = csv.DictReader((tmp_path / "gains.csv").open())
    gain = entry.gain
    assert gain is not None
    names = ("labels", "labels_val", "label_budget", "initialization", "mode", "basis", "pretrainings", "subsets")
    assert [gained[n] for n in names] == ["30", "0", "labels=30", "simclr", "finetune", "one task", "2", "3"]
    values = {"gain": gain.gain, "low": gain.low, "high": gain.high, "p": gain.p, "holm_p": entry.p, "df": gain.df}
    assert {n: float(gained[n]) for n in values} == values
    empty = [f"{n}_{end}" for n in ("fixed_split", "alone", "assumed") for end in ("low", "high")]
    assert list(gained) == [*names[:5], "pretrainings", "subsets", *values, "basis", *empty]
    assert {gained[n] for n in empty} == {""}
    assert f"{100 * float(gained['gain']):.1f} points" in sentences[1]


def test_the_pretrainings_are_those_of_each_network() -> None:
    def of(name: str, *seeds: int | None) -> list[Row]:
        return [row(name, "finetune", pretrain_seed=s) for s in seeds]

    assert study._pretrainings([*of("simclr", 0, 1, 0), *of("rotation", 1, 0), *of("scratch", None)]) == (
        "2 (seeds 0, 1) of each network"
    )
    assert (
        study._pretrainings([*of("simclr", 0, 1), *of("rotation", 0)]) == "simclr 2 (seeds 0, 1), rotation 1 (seeds 0)"
    )
    assert study._pretrainings(of("weights", None)) == "none that is known"


def test_the_backbone_of_a_page_is_that_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "read_summary", lambda run: {"images": 359})
    pixels = row("pixels", "knn", backbone="pixels")
    assert study._subtitle([pixels, row("scratch", "finetune")]) == "digits, smallcnn; 359 test images"
    assert study._subtitle([pixels]) == "digits, pixels; 359 test images"


LARGE: dict[str, Any] = {"backbone": "tf_efficientnet_lite0", "image_size": 224}


def test_networks_that_differ_from_that_of_scratch_are_named_on_the_page() -> None:
    rows = [row("scratch", "finetune"), row("simclr", "auto"), row("pixels", "knn", backbone="pixels")]
    entries = compared(rows, "auto")
    assert networks_text(entries) == "smallcnn at 32 px"
    assert study._reading(entries, "auto")["networks"] == ""
    entries = compared([*rows, row("pretrained", "probe", **LARGE)], "auto")
    text = "scratch, simclr: smallcnn at 32 px; pretrained: tf_efficientnet_lite0 at 224 px"
    assert networks_text(entries) == study._reading(entries, "auto")["networks"] == text


@pytest.mark.parametrize("published", ["pretrained", "pretrained resnet50 at 224 px"])
def test_published_weights_are_not_called_one_pretraining(published: str) -> None:
    """pretrain_seeds would not give them another one."""

    def page(*rows: Row) -> str:
        entries = compared([row("scratch", "finetune", subset=s) for s in "abc"] + [*rows], "probe")
        given = dict.fromkeys(("title", "subtitle", "command", "config"), "")
        lists: dict[str, Any] = {k: [] for k in ("conclusions", "figures", "rows", "runs", "facts", "advice")}
        return render("study.html.jinja", reading=study._reading(entries, "probe"), **given, **lists)

    own = [row(published, "probe", subset=s, **LARGE) for s in "abc"]
    several = [row("rotation", "probe", subset=s, pretrain_seed=p) for s in "abc" for p in range(3)]
    assert "One pretraining" not in page(*own, *several)
    assert "other pretrainings of the same task (3 here)" in page(*own, *several)
    assert "One pretraining" in page(*own, *several[::3])


def test_the_figures_have_the_rows_that_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of published weights, which have another mode than a task."""
    rows = [row("scratch", "finetune"), row("simclr", "auto"), row("simclr", "probe")]
    rows.append(row("pretrained", "probe", **LARGE))
    entries = compared(rows, "auto")
    seen: dict[str, Any] = {}

    def label_efficiency(shown: Any, folder: Path) -> str:
        seen["curves"] = [(e.initialization, e.mode) for e in shown]
        return ""

    def by_class(folder: Path, base: Any, own: Any, *more: Any) -> Any:
        seen["classes"] = {name: len(members) for name, members in own.items()}
        return iter(())

    monkeypatch.setattr(study.plots, "label_efficiency", label_efficiency)
    monkeypatch.setattr(study, "_by_class", by_class)
    assert len(list(study._figures(Path(), rows, entries, [e for e in entries if e.in_family], ["a", "b"]))) == 1
    assert seen["curves"] == [("scratch", "finetune"), ("simclr", "auto"), ("pretrained", "probe")]
    assert seen["classes"] == {"simclr, auto": 1, "pretrained, linear probe": 1}


def test_the_number_of_comparisons_is_that_of_the_family() -> None:
    rows = [row(name, "finetune", subset=s) for name in ("scratch", "simclr", "rotation") for s in "abc"]
    alone = [r for r in rows if r.initialization != "rotation"]
    two, one, none = (study._number_of_comparisons(compared(r, "finetune")) for r in (rows, alone, alone[:3]))
    assert two == "2 (2 networks, 1 label budget), corrected by Holm's method"
    assert (one, none) == ("1 (1 network, 1 label budget)", "0 (0 networks, 0 label budgets)")


def test_without_scratch_there_is_no_gains_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_page", lambda *given: "")
    study.publish(tmp_path, [row("simclr", "probe", subset=s) for s in "abc"], "probe", None, None)
    assert not (tmp_path / "gains.csv").exists()


def test_the_page_shows_the_gains_of_the_study(in_study: Path) -> None:
    text = html.unescape((in_study / "report.html").read_text())
    gains = list(csv.DictReader((in_study / "gains.csv").open()))
    assert [(g["initialization"], g["mode"], g["labels"]) for g in gains] == [
        ("rotation", "auto", "30"), ("simclr", "auto", "30"),
    ]  # fmt: skip
    table = text[text.index('<th class="n">Holm p</th><th class="n">ms</th>') : text.index("How to read this")]
    found = [re.findall("<td[^>]*>(.*?)</td>", r) for r in table.split("<tr")]
    lines = {cells[1]: cells for cells in found if cells}
    for g in gains:
        (cells,) = (cells for network, cells in lines.items() if network.startswith(f"{g['initialization']}, auto ("))
        value = {name: 100 * float(g[name]) for name in ("gain", "low", "high", "fixed_split_low", "fixed_split_high")}
        assert cells[4:8] == [
            f"{value['gain']:+.1f}",
            f"[{value['low']:.1f}, {value['high']:.1f}]",
            f"[{value['fixed_split_low']:.1f}, {value['fixed_split_high']:.1f}]",
            p_text(float(g["holm_p"])),
        ]
    assert [cells[0] for cells in found if cells and cells[0]] == ["30"]  # the heading is "labels"
    base, untested = lines["from scratch"], lines["random initialization, linear probe"]
    assert base[4:8] == [""] * 4
    assert untested[4] != ""
    assert untested[5:8] == [""] * 3


def test_the_page_is_self_contained(in_study: Path) -> None:
    text = (in_study / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"@import|url\((?!#)", text)
    for heading in ("Label efficiency", "Confusion matrix", "recall by class", "confident errors",
                    "before and after", "How to read this", "Experimental setup"):  # fmt: skip
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
