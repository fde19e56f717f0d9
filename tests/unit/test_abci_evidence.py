"""Who signs two payloads for one opening is on record, by whomever; nobody else is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi.abi import decode as abi_decode

from quorate.abci.evidence import EQUIVOCATION_ABI, INVALID_PAYLOAD_ABI, Equivocation, InvalidPayload, Watch
from quorate.abci.machine import Block, Replica, apply_block, judge, payload_for, tick_for
from quorate.abci.payload import SignedPayload, UnsignedPayload, header_digest
from quorate.abci.pb.tendermint.abci import types_pb2 as pb
from quorate.abci.transaction import Kind, Roll, Transaction, encode_evidence, encode_single
from quorate.errors import PeerError
from quorate.fsm import Period
from quorate.offences import DOWNTIME_WINDOW
from quorate.signatures import keccak, recover
from quorate.units import Hash
from tests.chain_of_agents.keys import Key, keys
from tests.chain_of_agents.services import counting
from tests.unit.scripted_consensus import Consensus

CHAIN = "chain-1"
KEYS = keys(4)
MEMBERS = [key.address for key in KEYS]
START = Replica.start(Period.start(counting, MEMBERS))


def _signed(key: Key, unsigned: UnsignedPayload) -> SignedPayload:
    return unsigned.signed(key.address, key.sign_digest(unsigned.digest()))


def _two(period: Period = START.period, key: Key = KEYS[0], chain: str = CHAIN) -> tuple[SignedPayload, SignedPayload]:
    return _signed(key, payload_for(chain, period, b"1")), _signed(key, payload_for(chain, period, b"2"))


def _evidence(period: Period = START.period, key: Key = KEYS[0]) -> Equivocation:
    one, two = _two(period, key)
    return Equivocation.of(CHAIN, one.header, two.header)


ROLL = Roll(CHAIN, MEMBERS)


def test_two_payloads_for_one_opening_are_one_piece_of_evidence_however_they_are_shown() -> None:
    one, two = _two()
    wire = encode_evidence(_evidence())
    assert encode_evidence(Equivocation.of(CHAIN, two.header, one.header)) == wire
    tx = ROLL.transaction(wire)
    assert (tx.kind, tx.payloads) == (Kind.EVIDENCE, ())
    assert tx.evidence == _evidence()


def test_the_proof_holds_what_a_contract_needs_to_recover_both_signatures() -> None:
    proof = _evidence().proof
    (fields,) = abi_decode((EQUIVOCATION_ABI,), proof)
    member, chain, period, sequence, round_name, opening = fields[:6]
    for body_hash, signature in (fields[6:8], fields[8:10]):
        digest = header_digest(chain, period, sequence, round_name, opening, body_hash)
        assert (recover(digest, signature) or "").lower() == member
    assert fields[6] != fields[8]


def _false(name: str) -> bytes:
    one, two = _two()
    good = _evidence()
    if name == "the same payload twice":
        return encode_evidence(replace(good, second=good.first))
    if name == "another opening":  # of a block that was never decided: an honest agent may have answered both
        headers = [
            _signed(KEYS[0], replace(payload_for(CHAIN, START.period, body), opening=opening)).header
            for body, opening in ((b"1", good.first.opening), (b"2", bytes(32)))
        ]
        first, second = sorted(headers, key=lambda header: header.body_hash)
        return encode_evidence(replace(good, first=first, second=second))
    if name == "another round":
        later = _signed(KEYS[0], replace(payload_for(CHAIN, START.period, b"2"), sequence=2))
        return encode_evidence(replace(good, second=later.header))
    if name == "somebody else's signature":
        return encode_evidence(replace(good, second=replace(good.second, signature=_two(key=KEYS[1])[1].signature)))
    if name == "another chain":
        one, two = _two(chain="chain-2")
        return encode_evidence(Equivocation.of(CHAIN, one.header, two.header))
    if name == "no member":
        return encode_evidence(_evidence(key=Key("stranger")))
    if name == "turned round":
        return encode_evidence(replace(good, first=good.second, second=good.first))
    if name == "two ticks":
        ticks = [_signed(KEYS[0], tick_for(CHAIN, START.period, attempt)).header for attempt in (0, 1)]
        return encode_evidence(replace(good, first=ticks[0], second=ticks[1]))
    if name == "two asks":
        asks = [_signed(KEYS[0], payload_for(CHAIN, START.period, body)).header for body in (b"!STOP", b"!PAUSE")]
        return encode_evidence(replace(good, first=asks[0], second=asks[1]))
    if name == "cut off":
        return encode_evidence(good)[:-1]
    assert name == "too long"
    return encode_evidence(good) + b"x" * 80


FALSE = (
    "the same payload twice", "another opening", "another round", "somebody else's signature", "another chain",
    "no member", "turned round", "two ticks", "two asks", "cut off", "too long",
)  # fmt: skip


@pytest.mark.parametrize("name", FALSE)
def test_a_false_accusation_is_refused(name: str) -> None:
    ROLL.transaction(encode_evidence(_evidence()))  # the true one is taken
    with pytest.raises(PeerError):
        ROLL.transaction(_false(name))


def test_an_equivocation_is_recorded_once_and_is_news() -> None:
    tx = Transaction(Kind.EVIDENCE, (), _evidence())
    assert judge(START, [tx]) is None
    assert "is on record" in (judge(START, [tx, tx]) or "")
    applied = apply_block(START, Block(1, 1_000, (tx, tx)))
    assert applied.accepted == (True, False)
    (offence,) = applied.replica.offences.latest
    assert (offence.kind, offence.member, offence.height, offence.sequence) == ("equivocation", MEMBERS[0], 1, 1)
    assert applied.proofs == (_evidence().proof,)
    assert offence.evidence == Hash("0x" + keccak(_evidence().proof).hex())
    assert applied.replica.hot == 1
    without = apply_block(START, Block(1, 1_000, ())).replica
    assert applied.replica.app_hash != without.app_hash
    assert Replica.decode(counting, applied.replica.encode()) == applied.replica


def test_evidence_of_rounds_far_ahead_or_long_gone_does_not_count() -> None:
    period = replace(START.period, sequence=5_000)
    replica = Replica.start(period)
    for sequence, counts in ((3_999, False), (4_000, True), (5_002, True), (5_003, False)):
        tx = Transaction(Kind.EVIDENCE, (), _evidence(replace(period, sequence=sequence)))
        assert (judge(replica, [tx]) is None) == counts


def test_a_watch_hears_contradictions_and_nothing_else() -> None:
    watch, (one, two) = Watch(CHAIN, counting), _two()
    elsewhere = replace(payload_for(CHAIN, START.period, b"2"), opening=bytes(32))
    assert watch.heard(one) is None
    assert watch.heard(one) is None
    for other in (
        _signed(KEYS[0], elsewhere),  # answers a block that may never be decided
        _signed(KEYS[1], payload_for(CHAIN, START.period, b"2")),
        _signed(KEYS[0], payload_for(CHAIN, START.period, b"!STOP")),
        _signed(KEYS[0], tick_for(CHAIN, START.period, 0)),
        _signed(KEYS[0], tick_for(CHAIN, START.period, 1)),
    ):
        assert watch.heard(other) is None
    assert watch.heard(two) == _evidence()


def test_a_watch_forgets_what_is_long_gone() -> None:
    watch, (one, two) = Watch(CHAIN, counting), _two()
    watch.heard(one)
    for sequence in range(2, 1027):
        watch.heard(replace(one, sequence=sequence))
    assert watch.heard(two) is None


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Consensus]:
    made = Consensus(tmp_path, is_fast=False)
    await made.init()
    yield made
    await made.close()


async def test_who_answers_one_opening_twice_is_on_record_at_all_with_a_proof(chain: Consensus) -> None:
    """Each agent heard only one of the payloads by its own vote's way; one of them saw both."""
    for _ in range(3):
        await chain.block()
    one, two = _two(chain.apps[0].period)
    for payload in (one, two):
        await chain.apps[2].check_tx(pb.RequestCheckTx(tx=encode_single(Kind.PAYLOAD, payload)))
    await asyncio.sleep(0.02)
    assert [tx[0] for tx in chain.mempools[2]] == [Kind.EVIDENCE]
    chain.mempools[0] = list(chain.mempools[2])
    await chain.block()
    for app, agent in zip(chain.apps, chain.agents, strict=True):
        ((offence, proof),) = agent.offences
        assert (offence.kind, offence.member, offence.sequence) == ("equivocation", one.sender, 1)
        assert offence.evidence == "0x" + keccak(proof).hex()
        status = await app.query(pb.RequestQuery(path="/status"))
        assert b'"equivocation"' in status.value
    assert chain.mempools[0] == [], "what is on record does not stay in the mempools"
    assert (await chain.apps[1].check_tx(pb.RequestCheckTx(tx=encode_evidence(_evidence())))).code == 1


async def test_a_vote_extension_that_contradicts_a_transaction_is_seen(chain: Consensus) -> None:
    for _ in range(3):
        await chain.block()
    one, two = _two(chain.apps[0].period)
    await chain.apps[1].check_tx(pb.RequestCheckTx(tx=encode_single(Kind.PAYLOAD, one)))
    await chain.verify(0, two.encode())
    await asyncio.sleep(0.02)
    assert [pool for pool in chain.mempools if pool] == [
        [encode_evidence(Equivocation.of(CHAIN, one.header, two.header))]
    ]


def _invalid(period: Period = START.period, body: bytes = b'"seven"') -> InvalidPayload:
    return InvalidPayload(CHAIN, _signed(KEYS[0], payload_for(CHAIN, period, body)))


def test_a_payload_that_the_rounds_codec_refuses_is_an_offence_by_itself() -> None:
    wire = encode_evidence(_invalid())
    tx = ROLL.transaction(wire)
    assert tx.evidence == _invalid()
    applied = apply_block(START, Block(1, 1_000, (tx, tx)))
    assert applied.accepted == (True, False)
    (offence,) = applied.replica.offences.latest
    assert (offence.kind, offence.member, offence.sequence) == ("invalid payload", MEMBERS[0], 1)
    ((member, chain, _, sequence, _, _, body, _),) = abi_decode((INVALID_PAYLOAD_ABI,), applied.proofs[0])
    assert (member, chain, sequence, body) == (MEMBERS[0].lower(), CHAIN, 1, b'"seven"')


def test_an_accusation_of_an_invalid_payload_is_refused_where_it_is_valid_or_may_be() -> None:
    other = replace(_invalid(), payload=_two(key=KEYS[1])[0])
    ask = InvalidPayload(CHAIN, _signed(KEYS[0], payload_for(CHAIN, START.period, b"!STOP")))
    for evidence, why in ((other, "valid payload"), (ask, "no round")):
        assert why in (judge(START, [ROLL.transaction(encode_evidence(evidence))]) or "")
    stolen = replace(_invalid(), payload=replace(_invalid().payload, sender=MEMBERS[1]))
    for wire in (encode_evidence(stolen), b"\x05\x03", b"\x05"):
        with pytest.raises(PeerError):
            ROLL.transaction(wire)


def test_what_another_version_may_have_thought_valid_is_no_offence() -> None:
    """After an upgrade only the opening that this code has opened is sure to be answered by this code's payloads."""
    upgraded = replace(START, upgrades=replace(START.upgrades, began=7))
    before = replace(_invalid().payload, opening=bytes(32))
    old = InvalidPayload(CHAIN, before)
    assert "another version" in (judge(upgraded, [Transaction(Kind.EVIDENCE, (), old)]) or "")
    assert judge(upgraded, [Transaction(Kind.EVIDENCE, (), _invalid())]) is None
    assert judge(START, [Transaction(Kind.EVIDENCE, (), old)]) is None


def test_a_watch_hears_an_invalid_payload() -> None:
    assert Watch(CHAIN, counting).heard(_invalid().payload) == _invalid()


OWNERS = {"A": MEMBERS[0], "B": MEMBERS[1]}


def test_whom_cometbft_convicts_is_on_record_with_the_block_as_evidence() -> None:
    block = Block(1, 1_000, (), misbehaved=("A", "stranger"), hash=b"\x12" * 32, owners=OWNERS)
    applied = apply_block(START, block)
    (offence,) = applied.replica.offences.latest
    assert (offence.kind, offence.member, offence.height) == ("double signing", MEMBERS[0], 1)
    assert offence.evidence == "0x" + "12" * 32
    assert applied.replica.hot == 1


@pytest.mark.parametrize("missed", [1, 126, 127, 128, 255, 256])
def test_who_is_away_for_a_whole_window_is_on_record_once_a_window(missed: int) -> None:
    replica = replace(START, absences=(("A", 127), ("B", missed)))
    block = Block(1, 1_000, (), ("B",), ("A",), hash=b"\x12" * 32, owners=OWNERS)
    found = [(one.kind, one.member) for one in apply_block(replica, block).replica.offences.latest]
    assert found == ([("downtime", MEMBERS[1])] if (missed + 1) % DOWNTIME_WINDOW == 0 else [])
