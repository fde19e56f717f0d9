"""docs/payments.md: its example runs, and it names only what there is."""

from __future__ import annotations

import re
from pathlib import Path

from quorate.chain import InferencePayments

TEXT = (Path(__file__).resolve().parents[2] / "docs/payments.md").read_text()


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(example, "docs/payments.md", "exec"), {})  # noqa: S102


def test_the_calls_in_the_table_are_the_wrappers() -> None:
    named = set(re.findall(r"`([a-z_]+)`", TEXT))
    assert {"deposit", "deposit_with_permit", "redeem", "redeem_many", "start_close", "close", "closings"} <= named
    assert named - {"closable_at"} <= set(dir(InferencePayments))
