"""The code of a simulated service changes in the middle of faults: nobody diverges, nothing is lost, rounds go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from quorate.abci.machine import Replica
from quorate.loader import load_settings
from quorate.testing import upgrade
from quorate.testing.faults import Plan
from quorate.testing.simulation import Report, Subject, simulate
from services.hello_world.service import service

ROOT = Path(__file__).parents[2]
SUBJECT = Subject(service, load_settings(service, ROOT / "services/hello_world").config)


def run(seed: int, *more: str) -> Report:
    plan = Plan.draw(seed, agents=4)
    return simulate(SUBJECT, dataclasses.replace(plan, faults=("rolling upgrade", *more), liars=(), storm_s=6.0))


@pytest.mark.parametrize("seed", range(3))
def test_the_code_changes_while_agents_crash_and_links_break_and_the_service_goes_on(seed: int) -> None:
    report = run(seed, "crash in a handler", "loss", "truncated log")
    assert not report.violations
    assert report.checks["version taken over"] > 0
    assert report.periods >= 1
    assert report.trace == run(seed, "crash in a handler", "loss", "truncated log").trace


def violations(seeds: int = 6) -> set[str]:
    found: set[str] = set()
    for seed in range(seeds):
        found |= {one.invariant for one in run(seed).violations}
        if found:
            break
    return found


def test_an_old_version_that_goes_on_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "refuse_next", lambda self, height: None)
    assert violations() & {"equal app hashes", "block alone decides", "proposal judged alike", "proposal accepted"}


def test_a_migration_that_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = upgrade.successor_of

    def forgetful(old: Any) -> Any:
        new = sound(old)
        forget = {key: lambda plain, name: (old.state(period=plain["period"]), name) for key in new.migrations}
        return dataclasses.replace(new, migrations=forget)

    monkeypatch.setattr(upgrade, "successor_of", forgetful)
    assert "version taken over" in violations()


def test_a_new_version_that_begins_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would execute the old version's blocks by its own hashes."""
    from quorate.abci.upgrade import Upgrades

    sound = Upgrades.is_due
    monkeypatch.setattr(Upgrades, "is_due", lambda self, height: sound(self, height + 3))
    assert violations()
