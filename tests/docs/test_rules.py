"""docs/rules.md names every rule, and what it shows runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from quorate.offences import Offence, Offences
from quorate.rounds import rules
from quorate.testing import Network
from quorate.units import Address, Hash, Height, PeriodNumber, RoundNumber

TEXT = (Path(__file__).parents[2] / "docs/rules.md").read_text()


def test_every_rule_has_a_row() -> None:
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)\(", row)}
    assert named == {*rules.__all__, "sealed"}


async def test_the_service_that_it_shows_is_halted_and_comes_back() -> None:
    code, _ = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module: Any = ModuleType("shown")
    sys.modules["shown"] = module  # where annotations are looked up
    try:
        exec(compile(code, "docs/rules.md", "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # our own text
        async with Network(module.service) as net:
            for agent in range(3):
                net.lie(agent, lambda period: [b"!HALT"] if period.round is module.look else [b'"looked after"'])
            await net.run_until(settled=(module.look, "HALT"))
            await net.run_until(settled=(module.halted, "DONE"))
            assert net.state.note == "looked after"
            assert net.period.round is module.look
    finally:
        del sys.modules["shown"]


def test_the_state_that_it_shows_sees_who_equivocated() -> None:
    _, code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module: Any = ModuleType("guarded")
    sys.modules["guarded"] = module
    try:
        exec(compile(code, "docs/rules.md", "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # our own text
        offence = Offence("equivocation", Address("0xA"), Height(9), RoundNumber(7), PeriodNumber(0), Hash("0x"))
        assert not module.has_equivocated(module.Guarded())
        assert module.has_equivocated(module.Guarded(offences=Offences().plus(offence)))
    finally:
        del sys.modules["guarded"]
