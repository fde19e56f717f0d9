"""The EVM tools' lock works behind any mirror."""

from __future__ import annotations

import json
from pathlib import Path

LOCK = Path(__file__).resolve().parents[2] / "third_party/evm/package-lock.json"


def test_the_lock_names_no_host_and_pins_every_package_by_hash() -> None:
    lock = json.loads(LOCK.read_text())
    for name, package in lock["packages"].items():
        package.pop("funding", None)  # where to thank an author; npm never asks it for anything
        assert not name or package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name
    assert "://" not in json.dumps(lock)
