import json
from pathlib import Path

from tests.helpers import QUICK, Cli, runs, summary


def test_latest_skips_runs_that_did_not_finish(in_world: Path, cli: Cli) -> None:
    newest = runs("pretrain")[-1]
    answer = summary(newest)
    (newest / "summary.json").write_text(json.dumps({**answer, "status": "running"}))
    assert cli("finetune", "mode=probe", *QUICK).code == 0
    assert summary(runs("finetune")[-1])["init"] == "rotation"
    assert "did not finish (running)" in cli("finetune", f"init={newest}", "mode=probe", *QUICK).err
