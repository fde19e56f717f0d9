"""A pytest plugin for `./quorate test`: writes which tools the collected tests need to QUORATE_NEEDS_FILE.

An integration test needs everything, unless `@pytest.mark.needs("cometbft", "evm")` names what it does need.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quorate.localnet.tools import PROGRAMS

__all__ = ["pytest_collection_finish"]


def pytest_collection_finish(session: pytest.Session) -> None:
    needs = {name for item in session.items for name in _needs(item)}
    Path(os.environ["QUORATE_NEEDS_FILE"]).write_text("\n".join(sorted(needs)))


def _needs(item: pytest.Item) -> tuple[str, ...]:
    named = tuple(str(name) for mark in item.iter_markers("needs") for name in mark.args)
    if named:
        return named
    return PROGRAMS if item.get_closest_marker("integration") else ()
