"""Every preset composes."""

import pytest

from tests.helpers import REPOSITORY, Cli


@pytest.mark.parametrize("name", sorted(p.stem for p in (REPOSITORY / "conf/experiment").glob("*.yaml")))
def test_every_preset_composes_and_passes_the_check(cli: Cli, name: str) -> None:
    assert cli("pretrain", "--cfg", "job", f"experiment={name}").code == 0
