"""Faults of real nodes for longer than CI has time for; `.ci/nightly` says how long."""

from __future__ import annotations

import os

import pytest

from tests.fault.__main__ import main
from tests.fault.namespaces import can_make_namespaces

COMMANDS = [command.strip() for command in os.environ.get("QUORATE_FAULTS", "").split(";") if command.strip()]


@pytest.mark.integration
@pytest.mark.needs("cometbft")
@pytest.mark.timeout(0)
@pytest.mark.skipif(not COMMANDS, reason="for the night: QUORATE_FAULTS says what to run, such as `soak --minutes 30`")
@pytest.mark.parametrize("command", COMMANDS or [""])
def test_a_service_outlives_the_night(command: str) -> None:
    if "--namespaces" in command and not can_make_namespaces():
        pytest.skip("network namespaces have to be made, and this process may not")
    assert main(command.split()) == 0
