"""The README's Python is run, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from quorate import ROUND_TIMEOUT, Address, Context, State, agree, only_keeper, same
from quorate.cli.main import COMMANDS
from quorate.testing import Network
from services.hello_world.service import Hello, service

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_rounds_shown_are_those_of_hello_world() -> None:
    shown = next(block for block in BLOCKS if "async def elect" in block)
    source = (ROOT / "services/hello_world/service.py").read_text()
    assert shown.strip() in source


async def test_the_test_that_is_shown_passes() -> None:
    shown = next(block for block in BLOCKS if "async def test_" in block)
    names = {
        "Network": Network, "service": service, "ROUND_TIMEOUT": ROUND_TIMEOUT, "Address": Address, "Context": Context,
        "State": State, "agree": agree, "only_keeper": only_keeper, "same": same, "Hello": Hello,
    }  # fmt: skip
    exec(shown, names)  # noqa: S102  (our own README)
    await names["test_a_dead_keeper_does_not_stop_the_service"]()  # type: ignore[operator]


def test_every_command_that_is_named_exists() -> None:
    named = set(re.findall(r"\./quorate ([a-z]+)", README))
    assert named
    assert named <= set(COMMANDS)


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
