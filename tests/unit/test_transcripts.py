"""Recorded networks give the same app hashes with today's code, and a difference is named where it begins."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Literal

import pytest
from click.testing import CliRunner

from quorate import Context, Outcome, Service, State, Votes, agree
from quorate.abci import Genesis, Member, Store, make_identity
from quorate.abci.machine import Block, Replica, apply_block, payload_for
from quorate.abci.transaction import Kind, Roll, encode_bundle, encode_single
from quorate.cli import replay as command
from quorate.errors import ConfigError
from quorate.fsm import Period, codec
from quorate.loader import load_service
from quorate.localnet.recorder import _milliseconds, stored_state
from quorate.localnet.transcript import Broken, Decided, Transcript, annotate, replay
from tests.chain_of_agents.keys import keys

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests/transcripts").glob("*.jsonl"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_network_gives_the_same_hashes_or_breaks_where_its_transcript_says(path: Path) -> None:
    transcript = Transcript.load(path)
    found = replay(transcript, load_service(ROOT / "services" / transcript.service))
    assert found.is_as_meant(transcript.broken), (
        f"{found.broken}; if that is meant: ./quorate replay --accept WHY {path}"
    )


@dataclasses.dataclass(frozen=True)
class Tally(State):
    total: int = 0
    laps: int = 0


def count_to(step: int, name: str = "tally", timeout_s: float = 30) -> Service:
    """A service whose rule adds `step`: two of them differ in nothing but the rule's code."""

    def settle(state: Tally, votes: Votes[int]) -> Outcome[Literal["DONE"], Tally] | None:
        value = votes.same()
        return None if value is None else Outcome("DONE", dataclasses.replace(state, total=value, laps=value * step))

    @agree(settle, timeout_s=timeout_s)
    async def count(ctx: Context, state: Tally) -> int:
        return state.total + 1

    return Service(name, state=Tally, start=count, otherwise=count, transitions={(count, "DONE"): count})


SERVICE = count_to(1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    """Twelve blocks of four members: three payloads a round, the first two by one bundle, and some noise."""
    signers = keys(4)
    homes = [tmp_path_factory.mktemp(f"home{number}") for number in range(4)]
    members = [Member.bind(make_identity(home), "tally-1", signer) for home, signer in zip(homes, signers, strict=True)]
    genesis = Genesis.create("tally-1", SERVICE, members)
    roll = Roll(genesis.chain_id, genesis.addresses)
    replica = Replica.start(Period.start(SERVICE, genesis.addresses), genesis.has_landmarks)
    names = [member.validator_address for member in genesis.members]
    blocks = []
    for height in range(1, 13):
        body = codec.encode(replica.period.state.total + 1)  # type: ignore[attr-defined]
        request = payload_for(genesis.chain_id, replica.period, body)
        signed = [request.signed(one.address, one.sign_digest(request.digest())) for one in signers[:3]]
        txs = (encode_bundle(signed[:2]), encode_single(Kind.PAYLOAD, signed[2]), b"noise") if height > 2 else ()
        absent, present = tuple(names[3:]), tuple(names[:3])
        block = Block(
            height,
            1000 * height,
            tuple(None if tx == b"noise" else roll.transaction(tx) for tx in txs),
            absent,
            present,
            hash=hashlib.sha256(b"%d" % height).digest(),
        )
        replica = apply_block(replica, block).replica
        app_hash = replica.app_hash.hex()
        blocks.append(Decided(height, block.time_ms, txs, absent, present, app_hash, hash=block.hash.hex()))
    return annotate(Transcript("tally", genesis, SERVICE.spec(), tuple(blocks)), SERVICE)


def test_the_same_code_gives_the_same_hashes_also_after_a_way_through_a_file(
    recorded: Transcript, tmp_path: Path
) -> None:
    recorded.save(tmp_path / "t.jsonl")
    loaded = Transcript.load(tmp_path / "t.jsonl")
    assert loaded == recorded
    found = replay(loaded, SERVICE)
    assert (found.blocks, found.rounds, found.broken) == (12, 10, None)
    assert loaded.blocks[2].counted == (True, True, False)
    assert loaded.blocks[2].settled == ("CountRound", "DONE")


def test_a_recording_may_begin_in_the_middle_with_the_state_of_then(recorded: Transcript, tmp_path: Path) -> None:
    genesis = recorded.genesis
    roll = Roll(genesis.chain_id, genesis.addresses)
    replica = Replica.start(Period.start(SERVICE, genesis.addresses), genesis.has_landmarks)
    for block in recorded.blocks[:6]:
        txs = tuple(None if tx == b"noise" else roll.transaction(tx) for tx in block.txs)
        seen = Block(block.height, block.time_ms, txs, block.absent, block.present, hash=bytes.fromhex(block.hash))
        replica = apply_block(replica, seen).replica
    later = dataclasses.replace(recorded, blocks=recorded.blocks[6:], start=replica.encode())
    later.save(tmp_path / "t.jsonl")
    found = replay(Transcript.load(tmp_path / "t.jsonl"), SERVICE)
    assert (found.blocks, found.rounds, found.broken) == (6, 6, None)
    broken = replay(later, count_to(1, timeout_s=31)).broken
    assert broken is not None
    assert (broken.height, "the stored state of tally" in broken.cause) == (7, True)


def test_the_state_of_a_running_agent_is_read_and_not_touched(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db", "tally-1")
    with pytest.raises(ConfigError, match="no state yet"):
        stored_state(tmp_path / "state.db")
    store.save(b"agreed")
    assert stored_state(tmp_path / "state.db") == b"agreed"
    store.close()


def test_a_rule_that_decides_otherwise_is_named_with_the_field_and_the_first_block(recorded: Transcript) -> None:
    broken = replay(recorded, count_to(2)).broken
    assert broken is not None
    assert (broken.height, broken.round) == (3, "CountRound")
    assert broken.cause == "the agreed state differs: laps was 1, is 2"
    assert broken.expected == recorded.blocks[2].app_hash != broken.got


def test_a_changed_time_limit_or_specification_is_named(recorded: Transcript) -> None:
    broken = replay(recorded, count_to(1, timeout_s=31)).broken
    assert broken is not None
    assert "a time limit" in broken.cause
    other = dataclasses.replace(recorded, spec={**recorded.spec, "states": ["CountRound", "GoneRound"]})
    broken = replay(other, count_to(1, timeout_s=31)).broken
    assert broken is not None
    assert broken.cause == "the specification of tally changed: states (without ['GoneRound'], with [])"


def test_a_payload_that_no_longer_counts_is_named(recorded: Transcript) -> None:
    blocks = list(recorded.blocks)
    blocks[4] = dataclasses.replace(blocks[4], txs=(blocks[4].txs[0], b"damaged", b"noise"))
    broken = replay(dataclasses.replace(recorded, blocks=tuple(blocks)), SERVICE).broken
    assert broken is not None
    assert (broken.height, broken.cause) == (5, "transaction 1 counted, and is refused today")


def test_what_cannot_be_told_nearer_is_the_encoding(recorded: Transcript) -> None:
    blocks = list(recorded.blocks)
    blocks[1] = dataclasses.replace(blocks[1], app_hash="00" * 32)
    found = replay(dataclasses.replace(recorded, blocks=tuple(blocks)), SERVICE)
    assert found.broken is not None
    assert (found.blocks, found.broken.height) == (1, 2)
    assert "encoding" in found.broken.cause


def test_a_break_is_as_meant_only_at_the_very_block(recorded: Transcript) -> None:
    found = replay(recorded, count_to(2))
    assert found.is_as_meant(Broken(3, "laps count twice"))
    assert not found.is_as_meant(Broken(4, "laps count twice"))
    assert not found.is_as_meant(None)
    assert replay(recorded, SERVICE).is_as_meant(None)
    assert not replay(recorded, SERVICE).is_as_meant(Broken(3, "it never came"))


def test_nothing_is_added_to_a_network_that_decided_otherwise(recorded: Transcript) -> None:
    with pytest.raises(ConfigError, match="another state at block 3"):
        annotate(recorded, count_to(2))


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", '{"transcript":2}\n'])
def test_a_file_that_is_no_transcript_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.jsonl"):
        Transcript.load(tmp_path / "t.jsonl")


def test_the_command_tells_a_break_accepts_it_with_a_reason_and_has_an_exit_code(
    recorded: Transcript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.jsonl"
    recorded.save(path)
    services = itertools.chain([SERVICE], itertools.repeat(count_to(2)))
    monkeypatch.setattr(command, "load_service", lambda folder: next(services))

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command.replay, [*arguments, str(path)], catch_exceptions=False)
        return done.exit_code, done.output

    code, said = run("--json")
    assert (code, json.loads(said)["ok"], json.loads(said)["blocks"]) == (0, True, 12)
    code, said = run()
    assert code == 1
    assert "block 3, in CountRound: the agreed state differs: laps was 1, is 2" in said
    assert "--accept" in said
    assert run("--accept", "laps count twice") == (0, run()[1])
    assert "meant: laps count twice" in run()[1]


@pytest.mark.parametrize(
    ("time", "ms"),
    [("1970-01-01T00:00:01Z", 1000), ("1970-01-01T00:00:01.2Z", 1200), ("1970-01-01T00:00:00.001999999Z", 1)],
)
def test_a_blocks_time_is_cut_to_milliseconds_as_the_application_does(time: str, ms: int) -> None:
    assert _milliseconds(time) == ms
