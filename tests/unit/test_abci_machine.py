"""What a block does to the replicated state, and when the chain runs or sleeps (the app hash decides)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.abci.genesis import POWER
from quorate.abci.machine import (
    DEMOTED_POWER,
    MAX_TICKS,
    Applied,
    Block,
    Replica,
    apply_block,
    judge,
    opening_of,
    payload_for,
    tick_for,
)
from quorate.abci.payload import SignedPayload
from quorate.abci.transaction import Kind, Transaction
from quorate.errors import ConfigError
from quorate.fsm import Period, Settled
from tests.chain_of_agents.keys import keys
from tests.chain_of_agents.services import counting, deadline, on_demand

CHAIN = "chain-1"
MEMBERS = [key.address for key in keys(4)]
START = Replica.start(Period.start(counting, MEMBERS))
GENESIS_MS, NOW_MS = 1_000_000, 9_000_000


def _payload(replica: Replica, sender: int, value: int = 1) -> SignedPayload:
    return payload_for(CHAIN, replica.period, json.dumps(value).encode()).signed(MEMBERS[sender], bytes(65))


def _tick(replica: Replica, sender: int, attempt: int) -> Transaction:
    return Transaction(Kind.TICK, (tick_for(CHAIN, replica.period, attempt).signed(MEMBERS[sender], bytes(65)),))


def _bundle(*payloads: SignedPayload) -> Transaction:
    return Transaction(Kind.BUNDLE, payloads)


def _single(payload: SignedPayload) -> Transaction:
    return Transaction(Kind.PAYLOAD, (payload,))


def _next(replica: Replica, *txs: Transaction | None, time_ms: int = NOW_MS, absent: tuple[str, ...] = ()) -> Applied:
    names = ("A", "B", "C", "D")
    present = tuple(name for name in names if name not in absent)
    return apply_block(replica, Block(replica.height + 1, time_ms, txs, absent, present))


def _running(service: object = None) -> Replica:
    """A replica whose first round has its clock running."""
    start = START if service is None else Replica.start(Period.start(service, MEMBERS))  # type: ignore[arg-type]  # a Service
    return _next(_next(start, time_ms=GENESIS_MS).replica).replica


def test_the_first_block_changes_the_hash_so_that_a_second_one_brings_fresh_time() -> None:
    """It carries the genesis time; a clock started by it could be over before anybody acted."""
    first = _next(START, time_ms=GENESIS_MS).replica
    assert first.app_hash != START.app_hash
    assert first.period.clock_ms == 0
    second = _next(first).replica
    assert second.period.clock_ms == NOW_MS
    assert second.app_hash != first.app_hash


def test_payloads_in_the_first_block_count_but_end_the_round_in_the_second() -> None:
    first = _next(START, _bundle(*(_payload(START, i) for i in range(4))), time_ms=GENESIS_MS)
    assert (first.settled, len(first.replica.period.votes)) == (None, 4)
    assert _next(first.replica).settled == Settled("AddRound", "DONE", 1)


def test_a_block_without_news_leaves_the_hash_alone_and_the_chain_falls_asleep() -> None:
    replica = _running()
    quiet = _next(replica, time_ms=NOW_MS + 1).replica
    assert quiet.app_hash == replica.app_hash
    assert quiet.height == replica.height + 1


def test_each_kind_of_news_keeps_the_chain_awake_for_a_proof_block() -> None:
    replica = _running()
    assert _next(replica, _single(_payload(replica, 0))).replica.app_hash != replica.app_hash
    assert _next(replica, _tick(replica, 0, 0)).replica.app_hash != replica.app_hash
    assert _next(replica, None).replica.app_hash == replica.app_hash  # garbage is no news


def test_a_quorum_in_one_block_settles_the_round() -> None:
    replica = _running()
    done = _next(replica, _bundle(*(_payload(replica, i) for i in range(3))))
    assert done.settled == Settled("AddRound", "DONE", 1)
    assert done.replica.period.state.value == 1  # type: ignore[attr-defined]  # the service's own state
    assert done.replica.opening == opening_of(done.replica.period) != replica.opening


@given(st.permutations(range(4)), st.integers(0, 4))
def test_the_order_and_the_way_in_which_payloads_come_never_change_the_state(order: list[int], bundled: int) -> None:
    replica = _running()
    members = sorted(order[:bundled])
    txs = [_single(_payload(replica, i)) for i in order[bundled:]]
    if members:
        txs.insert(0, _bundle(*(_payload(replica, i) for i in members)))
    expected = _next(replica, _bundle(*(_payload(replica, i) for i in range(4))))
    assert _next(replica, *txs).replica.app_hash == expected.replica.app_hash


def test_a_payload_of_a_past_round_another_opening_or_sent_twice_is_refused_with_the_whole_proposal() -> None:
    replica = _running()
    payload = _payload(replica, 0)
    assert judge(replica, [_single(payload)]) is None
    after = _next(replica, _single(payload)).replica
    assert "already sent" in str(judge(after, [_single(payload)]))
    assert "already sent" in str(judge(replica, [_single(payload), _single(payload)]))
    settled = _next(replica, _bundle(*(_payload(replica, i) for i in range(3)))).replica
    assert "round 2 is going on" in str(judge(settled, [_single(_payload(replica, 3))]))
    other = replace(payload, opening=bytes(32))
    assert "another opening" in str(judge(replica, [_single(other)]))
    assert "undefined" not in str(judge(replica, [_single(replace(payload, body=b"{"))]))
    assert judge(replica, [_single(replace(payload, body=b'"text"'))]) is not None
    assert judge(replica, [_single(replace(payload, round="OtherRound"))]) is not None
    assert judge(replica, [_single(replace(payload, period=3))]) is not None
    assert "bundle" in str(judge(replica, [_single(payload), _bundle(_payload(replica, 1))]))


def test_a_decided_block_has_the_same_effect_whatever_it_holds() -> None:
    """More than a third of liars could decide nonsense: it must not stop or part the honest ones."""
    replica = _running()
    payload = _payload(replica, 0)
    applied = _next(replica, None, _bundle(payload), _single(payload), _bundle(_payload(replica, 1), payload))
    assert applied.accepted == (False, True, False, False)
    assert applied.replica.period.votes.senders() == (MEMBERS[0],)


def test_a_payload_for_a_state_that_was_never_decided_does_not_count_in_the_decided_one() -> None:
    """An act started for a block that lost must not vote on another state."""
    replica = _running()
    lost = _next(replica, _bundle(*(_payload(replica, i, 5) for i in range(3)))).replica
    decided = _next(replica, _bundle(*(_payload(replica, i, 6) for i in range(3)))).replica
    assert lost.period.sequence == decided.period.sequence
    assert judge(decided, [_single(_payload(decided, 0))]) is None
    assert judge(decided, [_single(_payload(lost, 0))]) is not None


def test_a_deadline_is_noticed_by_block_time_alone_and_a_tick_makes_the_block() -> None:
    replica = _running(deadline)
    early = _next(replica, _tick(replica, 0, 0), time_ms=NOW_MS + 999)
    assert early.settled is None
    assert _next(early.replica, time_ms=NOW_MS + 1000).settled == Settled("KeepSilentRound", "ROUND_TIMEOUT", 1)


def test_ticks_are_bounded_so_that_nobody_keeps_a_chain_awake() -> None:
    replica = _running(deadline)
    for attempt in range(MAX_TICKS):
        assert judge(replica, [_tick(replica, 1, attempt)]) is None
        replica = _next(replica, _tick(replica, 1, attempt)).replica
        assert judge(replica, [_tick(replica, 1, attempt)]) is not None
    assert judge(replica, [_tick(replica, 1, MAX_TICKS)]) is not None
    assert judge(replica, [_tick(replica, 2, 0)]) is None
    settled = _next(replica, time_ms=NOW_MS + 1000).replica
    assert (settled.period.sequence, settled.ticks) == (2, ()), "the next round has its own"
    unstarted = _next(Replica.start(Period.start(deadline, MEMBERS))).replica
    assert judge(unstarted, [_tick(unstarted, 2, 0)]) is not None, "no clock runs yet"


def test_stored_state_comes_back_equal_and_damage_is_found() -> None:
    replica = _running()
    replica = _next(replica, _single(_payload(replica, 2)), _tick(replica, 0, 3), absent=("B",)).replica
    data = replica.encode()
    again = Replica.decode(counting, data)
    assert (again, again.app_hash) == (replica, replica.app_hash)
    with pytest.raises(ConfigError, match="damaged"):
        Replica.decode(counting, data[:-9])
    height = f"[{replica.height},".encode()
    for damaged in (data.replace(b'"B",1', b'"B",2'), data.replace(height, b"[7,", 1)):
        assert damaged != data
        with pytest.raises(ConfigError, match="checksum"):
            Replica.decode(counting, damaged)
    with pytest.raises(ConfigError):
        Replica.decode(on_demand, data)


def test_a_block_out_of_turn_stops_the_application() -> None:
    with pytest.raises(ConfigError, match="block 3 to an application at height 0"):
        apply_block(START, Block(3, NOW_MS, ()))


def _round(replica: Replica, absent: tuple[str, ...]) -> Applied:
    """A block with news."""
    return _next(replica, _bundle(*(_payload(replica, i) for i in range(3))), absent=absent)


def test_one_long_absent_validator_is_demoted_and_raised_again_at_its_first_vote() -> None:
    replica, demoted_at = _running(), []
    for block in range(40):
        applied = _round(replica, ("B", "C") if block < 39 else ())
        replica = applied.replica
        demoted_at += [(block, powers) for powers in applied.powers]
    assert demoted_at == [(15, ("C", DEMOTED_POWER)), (39, ("C", POWER))], "one at a time, and back at once"
    assert (replica.absences, replica.demoted) == ((), "")


def test_an_absent_validator_does_not_keep_a_sleeping_chain_awake() -> None:
    replica = _running()
    assert _next(replica, absent=("D",)).replica.app_hash == replica.app_hash


@pytest.mark.parametrize("power", [POWER, DEMOTED_POWER])
def test_every_power_is_even(power: int) -> None:
    """consensus.md, trap 1: with odd powers CometBFT's weighted median lets f old clocks set the block time."""
    assert power % 2 == 0
