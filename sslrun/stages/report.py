"""`sslrun report`: an HTML report that compares existing runs and sweeps."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from sslrun.base.errors import UserError
from sslrun.evaluation.correctness import read_correctness
from sslrun.report.study import publish
from sslrun.run.encoders import PIXELS, SCRATCH
from sslrun.run.find import OUTPUTS, read_summary
from sslrun.study.auto import with_auto
from sslrun.study.results import ORDER, Row, disambiguated, rows_of, with_shared_subsets
from sslrun.training.candidates import AUTO, PROBE, TUNED


def report_on(paths: Sequence[str], outputs: Path = OUTPUTS) -> Path:
    """Write a report that compares classifiers.

    Args:
        paths: directories of evaluations, of finetuned runs, of sweeps of either, or of studies.
        outputs: the report is written to a new folder in `outputs/report`.

    Returns:
        The path of the HTML page.

    Raises:
        UserError: a run is none of these or was not evaluated, or they were evaluated on different images.
    """
    rows: dict[tuple[str, str], Row] = {}
    for path in paths:
        for row in rows_of(Path(path)):
            rows.setdefault((row.evaluated, row.mode), row)
    compared = disambiguated(with_shared_subsets(list(rows.values())))
    if not compared:
        raise UserError(f"{' '.join(paths)}: no finished run")
    if (sets := _sets_of_images(compared)) > 1:
        raise UserError(
            f"these classifiers were evaluated on {sets} different sets of images; only those with the same test "
            "images can be compared"
        )
    modes = {r.mode for r in compared}
    mode = next(m for m in ORDER if m in modes)
    pretrained = [r for r in compared if r.initialization not in (SCRATCH, PIXELS)]
    if mode == TUNED and pretrained:
        modes = {r.mode for r in pretrained}
        both = {TUNED, PROBE} <= modes
        chosen = with_auto(compared, dict.fromkeys(r.initialization for r in pretrained)) if both else []
        compared += chosen
        mode = AUTO if chosen else next(m for m in ORDER if m in modes)
    directory = outputs / "report" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    directory.mkdir(parents=True)
    publish(directory, compared, mode, None, None)
    return directory / "report.html"


def _sets_of_images(rows: Sequence[Row]) -> int:
    """Return on how many sets of test images classifiers were evaluated.

    Of one image size they have the same pixels; of several sizes, the same names.
    """
    by_size: dict[int, dict[str, Row]] = {}
    for r in rows:
        by_size.setdefault(r.image_size, {})[read_summary(Path(r.evaluated))["data_fingerprint"]] = r
    most = max(map(len, by_size.values()))
    if most > 1 or len(by_size) == 1:
        return most
    known = [read_correctness(Path(r.evaluated)) for same in by_size.values() for r in same.values()]
    first = known[0]
    same = [first is not None and k is not None and k.same_images(first) for k in known]
    return 1 if all(same) else len(by_size)
