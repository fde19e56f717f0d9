"""A real network that changed its code from version 1 to 2 (tests/upgrades/record.py), replayed with today's code.

Version 1 is code of the past: its agents are gone, its state is not. What they agreed on is taken over by the
migrations of the versions after it, in the shape that it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from quorate import Context, Service, agree, keep, same
from quorate.abci import Plan, Target
from quorate.abci.machine import Block, Replica, apply_block, payload_for
from quorate.abci.membership import begin
from quorate.abci.transaction import Kind, Roll, Transaction
from quorate.cli.replay import replay as command
from quorate.localnet.transcript import Transcript, annotate, first_replica, replay
from tests.upgrades.v1.ledger.service import service as v1
from tests.upgrades.v2.ledger.service import Ledger, book, from_1, write_down
from tests.upgrades.v2.ledger.service import service as v2

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/transcripts/upgrades"


@pytest.fixture(scope="module")
def whole() -> Transcript:
    return Transcript.load(FOLDER / "ledger_1_to_2.jsonl")


@pytest.fixture(scope="module")
def since() -> Transcript:
    return Transcript.load(FOLDER / "ledger_2_from_1.jsonl")


def test_each_version_replays_the_blocks_that_it_decided(whole: Transcript) -> None:
    found = replay(whole, v2, older=(v1,))
    assert (found.blocks, found.broken) == (len(whole.blocks), None), found.broken
    shapes = ["coins" in block.state for block in whole.blocks if block.state is not None]
    assert set(shapes) == {True, False}
    assert shapes == sorted(shapes, reverse=True), "first version 1, then version 2"


def test_a_state_of_an_older_version_replays_with_todays_code_alone(since: Transcript) -> None:
    found = replay(since, v2)
    assert (found.blocks, found.broken) == (len(since.blocks), None), found.broken
    assert found.periods > 1
    last = [block.state for block in since.blocks if block.state is not None][-1]
    laps = last["period"]
    assert (last["cents"], last["entries"]) == (100 * laps * (laps + 1) // 2, laps), "also what version 1 had booked"


def test_a_migration_that_gives_another_state_is_a_named_break(since: Transcript) -> None:
    def forgetful(old: Mapping[str, Any], round: str) -> tuple[Ledger, str]:
        state, name = from_1(old, round)
        return replace(state, entries=0), name

    broken = replay(since, replace(v2, migrations={v1.spec_hash: forgetful})).broken
    assert broken is not None
    assert broken.height == since.blocks[0].height

    def fails(old: Mapping[str, Any], round: str) -> tuple[Ledger, str]:
        raise LookupError(round)

    raises = replace(v2, migrations={v1.spec_hash: fails})
    broken = replay(since, raises).broken
    assert broken is not None
    assert "the migration of ledger" in broken.cause


def test_blocks_of_a_version_that_is_not_given_are_named(whole: Transcript) -> None:
    broken = replay(whole, v2).broken
    assert broken is not None
    assert broken.cause == f"the chain began with the version {v1.spec_hash[:12]}, which is not among the older ones"
    broken = replay(whole, v1).broken
    assert broken is not None
    assert broken.height > 10
    assert "agreed on version 2" in broken.cause
    other = replay(whole, replace(v2, migrations={}), older=(v1,)).broken
    assert other is not None
    assert "cannot take over" in other.cause


def test_a_recording_may_begin_with_any_of_the_versions(whole: Transcript) -> None:
    begun = replay(replace(whole, blocks=()), v2, older=(v1,))
    assert begun.broken is None
    half = _last_of_1(whole, upto=6)
    later = replace(whole, blocks=whole.blocks[6:], start=half.encode())
    assert replay(later, v2, older=(v1,)).broken is None
    assert first_replica(half.encode(), v2, (v1,)).period.service is v1
    assert annotate(later, v2, 1, older=(v1,)).spec == v2.spec()


def _last_of_1(whole: Transcript, upto: int | None = None) -> Replica:
    """What version 1 had come to after so many blocks, by its own code; all of its blocks, if none is said."""
    genesis = whole.genesis
    replica, roll = Replica.start(begin(v1, genesis)), Roll(genesis.chain_id, genesis.addresses)
    for block in whole.blocks[:upto]:
        if replica.upgrades.is_due(block.height):
            break
        txs = tuple(roll.transaction(tx) for tx in block.txs)
        replica = apply_block(replica, Block(block.height, block.time_ms, txs, block.absent, block.present)).replica
    return replica


# ---- a third version, with more fields: it takes version 1 over in the shape that version 1 had


@dataclass(frozen=True)
class Ledger3(Ledger):
    currency: str = keep("EUR")
    notes: tuple[str, ...] = keep(())


@agree(same("entry_cents"), timeout_s=5)
async def check(ctx: Context, state: Ledger3) -> int:
    return state.entry_cents


def from_1_to_3(old: Mapping[str, Any], round: str) -> tuple[Ledger3, str]:
    two, name = from_1(old, round)
    return Ledger3(**vars(two), notes=(f"from {old['coins']} coins",)), name


v3 = Service("ledger", state=Ledger3, start=write_down, otherwise=write_down, version=3, transitions={
    (write_down, "DONE"): check, (check, "DONE"): book, (book, "DONE"): write_down,
}, migrations={v1.spec_hash: from_1_to_3})  # fmt: skip


def test_what_version_1_agreed_on_lives_on_in_a_version_with_more_fields_and_rounds(whole: Transcript) -> None:
    last = _last_of_1(whole)
    members = last.period.members
    due = replace(last, upgrades=replace(last.upgrades, due=Plan(Target.of(v3), last.height + 1)))
    replica = Replica.decode(v3, due.encode())
    laps = replica.period.state.period
    values = {"WriteDownRound": _next_entry, "CheckRound": _entry, "BookRound": _entry}
    while (state := replica.period.state).period < laps + 3:
        assert isinstance(state, Ledger3)
        period = replica.period
        body = period.round.encode(values[period.round.name](state))
        paid = payload_for(whole.genesis.chain_id, period, body)
        txs = tuple(Transaction(Kind.PAYLOAD, (paid.signed(who, bytes(65)),)) for who in members[:3])
        replica = apply_block(replica, Block(replica.height + 1, 10**13 + replica.height, txs)).replica
    assert isinstance(state, Ledger3)
    assert (state.period, state.entries, state.currency) == (laps + 3, laps + 3, "EUR")
    assert state.cents == 100 * state.period * (state.period + 1) // 2
    assert state.notes == (f"from {last.period.state.coins} coins",)  # type: ignore[attr-defined]


def _next_entry(state: Ledger3) -> int:
    return 100 * (state.period + 1)


def _entry(state: Ledger3) -> int:
    return state.entry_cents


def test_the_command_replays_a_network_of_several_versions() -> None:
    folders = ["--service", str(ROOT / "tests/upgrades/v2/ledger"), "--older", str(ROOT / "tests/upgrades/v1/ledger")]
    files = [str(path) for path in sorted(FOLDER.glob("*.jsonl"))]
    done = CliRunner().invoke(command, [*folders, *files], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.count("give the same app hashes") == 2
    alone = CliRunner().invoke(command, [*folders[:2], files[0]], catch_exceptions=False)
    assert alone.exit_code == 1
    assert "not among the older ones" in alone.output
