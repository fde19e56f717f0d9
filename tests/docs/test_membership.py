"""docs/membership.md: the service that it shows changes its members, and its commands are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from quorate.abci.machine import Block, Replica, apply_block, payload_for
from quorate.abci.membership import begin
from quorate.abci.transaction import Kind, Transaction
from quorate.cli.members import members
from quorate.fsm import codec
from quorate.members import Change
from quorate.rounds.membership import CHANGE_MEMBERS
from tests.unit.member_records import CHAIN, genesis_of, member

TEXT = (Path(__file__).parents[2] / "docs/membership.md").read_text()


def test_its_commands_are_those_that_there_are() -> None:
    assert set(re.findall(r"\./quorate members (\w+)", TEXT)) == set(members.commands)


def test_the_service_that_it_shows_takes_a_member_in() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module: Any = ModuleType("shown_members")
    sys.modules["shown_members"] = module  # where annotations are looked up
    try:
        exec(compile(code, "docs/membership.md", "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # our own text
        replica = Replica.start(begin(module.service, genesis_of(3, module.service)))
        bodies = (None, None, replica.period.ask(CHANGE_MEMBERS), codec.encode(Change(join=member(3))))
        for height, body in enumerate(bodies, 1):
            sent = [] if body is None else [payload_for(CHAIN, replica.period, body)]
            everybody = replica.period.members
            txs = [Transaction(Kind.PAYLOAD, (one.signed(who, bytes(65)),)) for one in sent for who in everybody]
            replica = apply_block(replica, Block(height, height * 1000, tuple(txs))).replica
        assert replica.members == (*(member(index) for index in range(4)),)
        assert replica.period.round is module.count
    finally:
        del sys.modules["shown_members"]
