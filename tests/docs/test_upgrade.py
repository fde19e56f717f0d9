"""docs/upgrade.md: the versions that it shows are a migration that works, and what it says agents say, they say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from quorate.abci import Plan, Target, UpgradeDue
from quorate.abci.machine import Replica, rehearse
from quorate.errors import ConfigError
from quorate.fsm import Period
from tests.chain_of_agents.keys import keys

TEXT = (Path(__file__).parents[2] / "docs/upgrade.md").read_text()
MEMBERS = [key.address for key in keys(4)]


@pytest.fixture
def shown() -> Iterator[Any]:
    module: Any = ModuleType("shown_upgrade")
    sys.modules["shown_upgrade"] = module  # where annotations are looked up
    try:
        for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
            exec(compile(code, "docs/upgrade.md", "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # our text
        yield module
    finally:
        del sys.modules["shown_upgrade"]


def test_the_state_of_the_first_version_goes_on_in_the_second(shown: Any) -> None:
    start = Replica.start(Period.start(shown.first, MEMBERS, shown.Tally(period=3, coins=7)))
    assert rehearse(shown.second, start.encode()).state == shown.TallyInCents(period=3, cents=700)


def test_what_agents_say_stands_there(shown: Any) -> None:
    told = [re.sub(r"\\?\.\.\.", "", line) for line in re.findall(r"^\| `([^`]*)`", TEXT, re.MULTILINE)]
    start = Replica.start(Period.start(shown.first, MEMBERS))

    def due(height: int, service: Any) -> bytes:
        plan = Plan(Target.of(service), height)
        return replace(start, height=640, upgrades=replace(start.upgrades, due=plan)).encode()

    said = [_said(lambda: Replica.decode(shown.first, due(641, shown.second)).refuse_next(641))]
    said += [_said(lambda: Replica.decode(shown.second, due(812, shown.second)))]
    said += [_said(lambda: Replica.decode(shown.second, start.encode()))]
    alone = replace(shown.second, migrations={})
    said += [_said(lambda: Replica.decode(alone, due(641, alone)))]
    for line, message in zip(told, said, strict=False):
        for words in re.split(r"\(\)|\d+", line):
            assert words.strip(" ;,`") in message, (words, message)
    assert len(told) == 6


def _said(call: Any) -> str:
    with pytest.raises((ConfigError, UpgradeDue)) as caught:
        call()
    return caught.value.message
