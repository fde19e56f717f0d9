"""docs/watching.md names every finding of `why` and every metric, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from quorate.host import metrics
from quorate.localnet import diagnosis

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/watching.md").read_text()


def test_every_metric_is_explained() -> None:
    assert set(re.findall(r"`((?:quorate|process)_\w+)", TEXT)) == set(metrics._HELP)


def test_every_kind_of_finding_is_explained() -> None:
    code = Path(diagnosis.__file__).read_text()
    kinds = set(re.findall(r'Finding\(\s*"([\w-]+)"', code))
    kinds |= {f"{what}-{life}" for what in ("agent", "node") for life in diagnosis._STATE}
    table = TEXT.partition("## What `why` finds")[2].partition("## Logs")[0]
    named = {kind for row in table.splitlines() if row.startswith("| `") for kind in re.findall(r"`([\w-]+)`", row)}
    assert named == kinds
