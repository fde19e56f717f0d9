"""What a user of the package may rely on: its names, its errors, and that importing it is cheap and pure."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import quorate
from quorate import errors

MODULES = [
    "quorate", "quorate.units", "quorate.errors", "quorate.loader", "quorate.members", "quorate.service_yaml",
    "quorate.cli.graph", "quorate.cli.logs", "quorate.cli.new", "quorate.cli.replay", "quorate.cli.spec",
    "quorate.cli.status", "quorate.cli.why", "quorate.host.logs", "quorate.host.metrics",
    "quorate.localnet.diagnosis", "quorate.localnet.logbook", "quorate.localnet.recorder", "quorate.localnet.rpc",
    "quorate.localnet.snapshot", "quorate.localnet.transcript",
    "quorate.fsm", "quorate.fsm.codec", "quorate.fsm.period", "quorate.fsm.round",
    "quorate.fsm.service", "quorate.fsm.state", "quorate.fsm.votes",
    "quorate.abci.membership", "quorate.rounds", "quorate.rounds.membership", "quorate.rounds.pause",
    "quorate.rounds.register",
    "quorate.rounds.rules", "quorate.rounds.sealed",
    "quorate.testing", "quorate.testing.clock",
]  # fmt: skip


def own_classes_and_functions(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith(("_", "settle_"))
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete_sorted_and_true(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert all(hasattr(module, one) for one in module.__all__)
    assert own_classes_and_functions(module) <= set(module.__all__)


def test_the_package_offers_a_small_set_of_names() -> None:
    assert len(quorate.__all__) <= 36


def test_the_core_stays_small_enough_to_be_read_whole() -> None:
    folder = Path(quorate.fsm.__file__).parent
    assert sum(len(path.read_text().splitlines()) for path in folder.glob("*.py")) < 1200


def test_every_public_thing_of_the_core_says_what_it_means() -> None:
    for name in quorate.fsm.__all__:
        thing = getattr(quorate.fsm, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__
            assert not thing.__doc__.startswith(f"{name}("), f"{name} has only the docstring that dataclass made"


def test_the_tree_at_the_top_of_errors_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"^[│ ]*[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE)
    assert sorted(["QuorateError", *drawn]) == sorted(errors.__all__)
    for name in drawn:
        assert issubclass(getattr(errors, name), errors.QuorateError)


def test_an_error_carries_what_to_do() -> None:
    error = errors.PeerError("broken", evidence=b"x", fix="Mend it.")
    assert (str(error), error.message, error.fix, error.evidence) == ("broken", "broken", "Mend it.", b"x")


def test_importing_quorate_brings_no_io_and_nothing_foreign() -> None:
    """`quorate` alone must start fast (0.3 s) and be pure: neither event loop, web3, aiohttp nor yaml come with it."""
    code = "import sys, quorate, quorate.rounds; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "socket", "web3", "aiohttp", "yaml", "click", "aea"} & set(out)
