"""Who signs another app hash than a decided block led to is on record; nobody else is, and nothing else comes of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi.abi import decode as abi_decode

from quorate.abci.evidence import WRONG_APP_HASH_ABI, WrongAppHash
from quorate.abci.genesis import Genesis
from quorate.abci.machine import Block, Replica, apply_block, judge, payload_for
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.statement import (
    MAX_LANDMARKS,
    MAX_PREFIX_BYTES,
    Landmark,
    SignedStatement,
    UnsignedStatement,
    join,
    split,
)
from quorate.abci.transaction import Kind, Roll, Transaction, encode_evidence, encode_single
from quorate.errors import PeerError
from quorate.fsm import Period
from quorate.signatures import recover
from tests.chain_of_agents.keys import keys
from tests.chain_of_agents.services import counting
from tests.unit.member_records import genesis_of
from tests.unit.scripted_consensus import ACCEPT, Consensus

CHAIN = "chain-1"
KEYS = keys(4)
MEMBERS = [key.address for key in KEYS]
START = Replica.start(Period.start(counting, MEMBERS), True)
ROLL = Roll(CHAIN, MEMBERS)
WRONG = b"\7" * 32


def _hash(height: int) -> bytes:
    return hashlib.sha256(b"block%d" % height).digest()


def _next(replica: Replica, txs: tuple[Transaction, ...] = (), time_ms: int = 0) -> Replica:
    height = replica.height + 1
    return apply_block(replica, Block(height, time_ms or 1_000 * height, txs, hash=_hash(height))).replica


def _vote(replica: Replica, index: int = 0) -> Transaction:
    unsigned = payload_for(CHAIN, replica.period, b"1")
    signed = unsigned.signed(KEYS[index].address, KEYS[index].sign_digest(unsigned.digest()))
    return Transaction(Kind.PAYLOAD, (signed,))


def _said(height: int, app_hash: bytes = WRONG, *, index: int = 0, block: bytes = b"") -> WrongAppHash:
    unsigned = UnsignedStatement(CHAIN, height, block or _hash(height), app_hash)
    signature = KEYS[index].sign_digest(unsigned.digest())
    return WrongAppHash(CHAIN, SignedStatement(MEMBERS[index], height, unsigned.block, app_hash, signature))


def _evidence(said: WrongAppHash) -> Transaction:
    return ROLL.transaction(encode_evidence(said))


def _running(blocks: int = 3) -> Replica:
    """After a first block, one that starts the clock, and some with a payload."""
    replica = _next(_next(START))
    for index in range(blocks - 2):
        replica = _next(replica, (_vote(replica, index),))
    return replica


def test_a_block_that_changes_the_app_hash_becomes_a_landmark_with_what_it_led_to_and_no_other_does() -> None:
    first = _next(START)
    ticking = _next(first)  # its clock starts
    asleep = _next(ticking)
    assert (asleep.app_hash, asleep.landmarks) == (ticking.app_hash, ticking.landmarks)
    voted = _next(asleep, (_vote(asleep),))
    expected = [(0, START), (1, first), (2, ticking), (4, voted)]
    assert [(one.height, one.app_hash) for one in voted.landmarks] == [(h, r.app_hash.hex()) for h, r in expected]
    assert [one.block for one in voted.landmarks[1:]] == [_hash(height).hex() for height, _ in expected[1:]]


def test_only_the_last_landmarks_are_kept() -> None:
    replica = START
    for _ in range(3 * MAX_LANDMARKS):
        replica = _next(replica, (_vote(replica, len(replica.period.votes)),))
    assert [one.height for one in replica.landmarks] == list(range(2 * MAX_LANDMARKS + 1, 3 * MAX_LANDMARKS + 1))


@pytest.mark.parametrize("replica", [START, _running(), _next(_running())])
def test_the_hash_covers_every_landmark_and_the_newest_ones_app_hash_is_never_believed(replica: Replica) -> None:
    for index, one in enumerate(replica.landmarks):
        for forged in (one._replace(block="00" * 32), one._replace(sequence=9), one._replace(app_hash="00" * 32)):
            landmarks = (*replica.landmarks[:index], forged, *replica.landmarks[index + 1 :])
            read = Replica.decode(counting, replace(replica, landmarks=landmarks).encode())
            is_own = one is replica.landmarks[-1] and forged.app_hash == "00" * 32
            assert (read.app_hash == replica.app_hash, read == replica) == (is_own, is_own)


def test_a_chain_from_before_there_were_landmarks_keeps_its_hashes_and_has_none() -> None:
    old = Replica.start(Period.start(counting, MEMBERS))
    stored = old.encode()
    for _ in range(3):
        old = _next(old, (_vote(old),) if old.height == 2 else ())
    assert old.landmarks == ()
    without = Replica.decode(counting, stored)
    for height in range(1, 4):
        without = apply_block(without, Block(height, 1_000 * height, (_vote(without),) if height == 3 else ())).replica
    assert old.app_hash == without.app_hash
    assert "is not known here" in (judge(old, [_evidence(_said(3))]) or "")


def test_a_genesis_says_whether_there_are_landmarks_and_an_old_one_reads_as_it_was() -> None:
    new = replace(genesis_of(4), has_landmarks=True)
    assert (new.has_landmarks, new.app_state()["landmarks"]) == (True, True)
    assert Genesis.parse(new.document()) == new
    old = replace(new, has_landmarks=False)
    assert "landmarks" not in old.app_state()
    assert Genesis.parse(old.document()) == old


def test_a_wrong_statement_of_a_decided_block_is_on_record_once_a_round() -> None:
    replica = _running()
    assert replica.landmarks[-1].height == 3
    for said in (_said(3), _said(2), _said(1)):  # the last is refused while the state of then is the newest, or later
        tx = _evidence(said)
        assert judge(replica, [tx]) is None
        assert judge(replica, [_vote(replica, 3), tx]) is None, "what else a block holds changes no judgement"
        after = _next(replica, (tx,))
        (offence,) = after.offences.latest
        assert (offence.kind, offence.member, offence.height) == ("wrong app hash", MEMBERS[0], 4)
        assert (offence.sequence, offence.period) == (1, 0)
        assert "is on record" in (judge(after, [tx]) or "")
        assert "is on record" in (judge(after, [_evidence(_said(2, bytes(32)))]) or "")
        assert Replica.decode(counting, after.encode()) == after


def test_what_an_honest_agent_may_have_said_is_refused() -> None:
    replica = _running()
    for said, why in (
        (_said(3, replica.app_hash), "the agreed one"),
        (_said(2, bytes.fromhex(replica.landmarks[-2].app_hash)), "the agreed one"),
        (_said(3, block=b"\1" * 32), "never decided"),
        (_said(4), "not known here"),
        (_said(2**64 - 1), "not known here"),
        (_said(0), "never decided"),
    ):
        assert why in (judge(replica, [_evidence(said)]) or "")
    long_gone = replica
    for _ in range(MAX_LANDMARKS):
        long_gone = _next(long_gone, (_vote(long_gone, len(long_gone.period.votes)),))
    assert "long gone" in (judge(long_gone, [_evidence(_said(3))]) or "")


def test_a_false_or_broken_accusation_is_refused() -> None:
    good = encode_evidence(_said(3))
    assert ROLL.transaction(good).evidence == _said(3)
    stolen = replace(_said(3), statement=replace(_said(3).statement, member=MEMBERS[1]))
    elsewhere = UnsignedStatement("chain-2", 3, _hash(3), WRONG)
    foreign = replace(_said(3).statement, signature=KEYS[0].sign_digest(elsewhere.digest()))
    for wire in (
        encode_evidence(stolen),
        encode_evidence(WrongAppHash(CHAIN, foreign)),
        good[:-1],
        good + b"x",
        good[:2],
        b"\5\4" + good[2:],
        good[:-1] + b"\1",
    ):
        with pytest.raises(PeerError):
            ROLL.transaction(wire)
    with pytest.raises(PeerError):
        Roll(CHAIN, MEMBERS[1:]).transaction(good)


def test_the_proof_holds_what_a_contract_needs_to_recover_the_signature() -> None:
    ((member, chain, height, block, app_hash, signature),) = abi_decode((WRONG_APP_HASH_ABI,), _said(3).proof)
    assert (member, chain, height, block, app_hash) == (MEMBERS[0].lower(), CHAIN, 3, _hash(3), WRONG)
    assert recover(UnsignedStatement(chain, height, block, app_hash).digest(), signature) == MEMBERS[0]


def test_an_extension_is_split_into_what_it_was_joined_of() -> None:
    prefix = join(WRONG, b"s" * 65)
    assert len(prefix) == MAX_PREFIX_BYTES
    assert split(prefix + b"payload") == ((WRONG, b"s" * 65), b"payload")
    assert split(prefix) == ((WRONG, b"s" * 65), b"")
    assert split(b"payload") == (None, b"payload")
    assert split(b"") == (None, b"")
    with pytest.raises(PeerError):
        split(prefix[:-1])


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Consensus]:
    made = Consensus(tmp_path, is_fast=False)
    await made.init()
    yield made
    await made.close()


def _mempools(chain: Consensus) -> list[int]:
    return [index for index, pool in enumerate(chain.mempools) if any(tx[0] == Kind.EVIDENCE for tx in pool)]


async def _asked(chain: Consensus) -> bytes:
    """The next block, with a payload in it, proposed to all; its hash."""
    payload = chain.agents[3].payload(chain.apps[0].period)
    chain.ask([encode_single(Kind.PAYLOAD, payload)])
    for index in range(4):
        assert await chain.process(index) == ACCEPT
    return bytes(chain.last_request.hash)


def _lie(chain: Consensus, block: bytes, index: int = 0, app_hash: bytes = WRONG) -> bytes:
    wrong = UnsignedStatement(CHAIN, chain.height, block, app_hash)
    return join(app_hash, KEYS[index].sign_digest(wrong.digest()))


async def _decide(chain: Consensus) -> None:
    for app in chain.apps:
        await chain.decide(app)
    await asyncio.sleep(0.01)


async def test_every_vote_for_a_block_with_news_states_the_app_hash_that_is_then_agreed(chain: Consensus) -> None:
    for _ in range(2):
        await chain.block()
    await _asked(chain)
    extensions = [await chain.extend(index) for index in range(4)]
    await _decide(chain)
    for index, extension in enumerate(extensions):
        said, _ = split(extension)
        assert said is not None
        statement = SignedStatement(MEMBERS[index], chain.height, chain.last_request.hash, *said)
        assert said[0] == chain.apps[0].app_hash
        assert statement.is_signed_by_member(CHAIN)
    await chain.block([])
    await chain.block([])
    assert set(chain.extensions.values()) == {b""}, "a block without news has no statement"
    assert [(app._stating, app._stated, app._suspected) for app in chain.apps] == [({}, {}, {})] * 4
    assert _mempools(chain) == []


async def test_who_states_a_wrong_app_hash_is_on_record_at_all_with_a_proof(chain: Consensus) -> None:
    for _ in range(2):
        await chain.block()
    lie = _lie(chain, await _asked(chain))
    assert await chain.verify(0, lie) == ACCEPT
    assert _mempools(chain) == [], "nobody is accused before the block is decided"
    await _decide(chain)
    assert _mempools(chain) == [0, 1, 2, 3]
    await chain.block()
    for agent in chain.agents:
        ((offence, proof),) = agent.offences
        assert (offence.kind, offence.member) == ("wrong app hash", MEMBERS[0])
        ((_, _, _, _, app_hash, _),) = abi_decode((WRONG_APP_HASH_ABI,), proof)
        assert app_hash == WRONG
    assert _mempools(chain) == []


async def test_a_wrong_statement_in_a_vote_that_came_late_is_seen_by_the_next_proposer(chain: Consensus) -> None:
    for _ in range(2):
        await chain.block()
    chain.extensions[0] = _lie(chain, await _asked(chain))
    await _decide(chain)
    assert _mempools(chain) == []
    await chain.propose(2)
    await asyncio.sleep(0.01)
    assert _mempools(chain) == [2]


async def test_what_proves_nothing_is_accepted_and_forgotten(chain: Consensus) -> None:
    """An extension that is refused loses the whole vote; a statement is no reason for that."""
    for _ in range(2):
        await chain.block()
    block = await _asked(chain)
    for extension in (
        join(WRONG, bytes(65)),
        _lie(chain, block, index=1),  # somebody else's
        _lie(chain, b"\1" * 32),  # of another block
        await chain.extend(0),
    ):
        assert await chain.verify(0, extension) == ACCEPT
    for extension in (_lie(chain, block)[:-1], _lie(chain, block) + b"junk"):
        assert await chain.verify(0, extension) != ACCEPT
    await _decide(chain)
    chain.extensions[0] = join(WRONG, bytes(65))
    await chain.propose(2)
    await asyncio.sleep(0.01)
    assert _mempools(chain) == []


async def test_a_wrong_statement_of_a_block_that_was_not_decided_is_held_against_nobody(chain: Consensus) -> None:
    for _ in range(2):
        await chain.block()
    lie = _lie(chain, await _asked(chain))
    assert await chain.verify(0, lie) == ACCEPT
    chain.last_request.hash = b"\2" * 32
    await _decide(chain)
    assert _mempools(chain) == []


async def test_a_signature_that_does_not_come_keeps_no_vote_waiting(chain: Consensus) -> None:
    async def never(statement: UnsignedStatement) -> bytes:
        await asyncio.sleep(3600)
        return b""

    for _ in range(2):
        await chain.block()
    chain.agents[0].sign_statement = never  # type: ignore[method-assign]  # a decision maker that is stuck
    await _asked(chain)
    assert await asyncio.wait_for(chain.extend(0), 1) == b""
    assert await chain.extend(1)


def test_the_beginning_is_no_block() -> None:
    assert START.landmarks == (Landmark(0, 0, 0, "", START.app_hash.hex()),)


async def test_an_agent_that_diverges_says_so_before_it_stops(chain: Consensus) -> None:
    """A fault in one agent's machine, not a lie: its vote is honest, and the others learn what it computed."""
    for _ in range(2):
        await chain.block()
    payload = chain.agents[3].payload(chain.apps[0].period)
    chain.ask([encode_single(Kind.PAYLOAD, payload)])
    faulty = chain.apps[1]
    known = faulty._replica
    faulty._replica = replace(known, absences=(("nobody", 1),))  # a bit that turned over in memory
    for index in range(4):
        assert await chain.process(index) == ACCEPT
    extension = await chain.extend(1)
    assert await chain.verify(1, extension) == ACCEPT
    for index in (0, 2, 3):
        await chain.decide(chain.apps[index])
    await asyncio.sleep(0.01)
    assert _mempools(chain) == [0, 2, 3]
    request = pb.RequestCheckTx(tx=chain.mempools[0][-1])
    assert (await chain.apps[2].check_tx(request)).code == 0
    (evidence,) = [ROLL.transaction(tx).evidence for tx in chain.mempools[0] if tx[0] == Kind.EVIDENCE]
    assert evidence is not None
    assert evidence.member == MEMBERS[1]
