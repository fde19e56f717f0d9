"""The machine while its members change: who may send, who votes when, and what CometBFT is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.abci.genesis import POWER
from quorate.abci.machine import DEMOTED_POWER, Applied, Block, Replica, apply_block, judge, payload_for, tick_for
from quorate.abci.membership import Turnover, begin, seat
from quorate.abci.transaction import Kind, Transaction
from quorate.errors import ConfigError, ServiceError
from quorate.fsm import Context, Outcome, Period, Service, Votes, agree, codec
from quorate.members import MAX_MEMBERS, Change, with_change
from quorate.rounds.membership import CHANGE_MEMBERS
from quorate.units import Address
from tests.chain_of_agents.services import Moved, counting, moving
from tests.unit.member_records import CHAIN, KEYS, genesis_of, member, records

ADDRESSES = [key.address for key in KEYS]


class Chain:
    """Decides blocks as CometBFT does: an update of a block holds two blocks later, and a wrong one is fatal."""

    def __init__(self, n: int) -> None:
        self.replica = Replica.start(begin(moving, genesis_of(n)))
        first = {one.validator_address: POWER for one in self.replica.members}
        self.sets = [first, first, first]  # by height; those of 0 and 1 are the genesis'
        self.down: frozenset[str] = frozenset()
        self.applied: Applied
        self.block()
        self.block()

    def block(self, *bodies: tuple[Address, bytes]) -> Applied:
        """One block with these payloads for the round that goes on."""
        height = self.replica.height + 1
        payloads = tuple(
            payload_for(CHAIN, self.replica.period, body).signed(sender, bytes(65)) for sender, body in sorted(bodies)
        )
        voted = sorted(self.sets[height - 1]) if height > 1 else []
        absent, present = (tuple(one for one in voted if (one in self.down) is away) for away in (True, False))
        txs = tuple(Transaction(Kind.PAYLOAD, (payload,)) for payload in payloads)
        self.applied = apply_block(self.replica, Block(height, height * 1000, txs, absent, present))
        known = self.sets[height + 1]
        after = dict(known)
        assert len({who for who, _ in self.applied.powers}) == len(self.applied.powers), "one update a validator"
        for who, power in self.applied.powers:
            assert power or who in known, "CometBFT panics when a validator is removed that it does not have"
            after[who] = power
        self.sets.append({who: power for who, power in after.items() if power})
        assert self.sets[-1], "CometBFT panics without validators"
        self.replica = self.applied.replica
        return self.applied

    def change(self, change: Change, approving: Iterable[Address]) -> Applied:
        """The interrupt and its round."""
        approving = tuple(approving)
        self.block(*((who, self.replica.period.ask(CHANGE_MEMBERS)) for who in approving))
        return self.block(*((who, codec.encode(change)) for who in approving))

    @property
    def members(self) -> tuple[Address, ...]:
        return self.replica.period.members


def test_whoever_joined_counts_from_the_next_round_and_votes_two_blocks_later() -> None:
    chain = Chain(4)
    applied = chain.change(Change(join=member(4)), ADDRESSES[:3])
    assert applied.powers == ((member(4).validator_address, POWER),)
    assert chain.members == tuple(ADDRESSES[:5])
    period = chain.replica.period
    assert (period.n, period.quorum, period.votes.quorum, period.round.name) == (5, 4, 4, "RaiseValueRound")
    assert chain.block(*((who, b"1") for who in ADDRESSES[:3])).settled is None, "three were a quorum of four"
    assert chain.block((ADDRESSES[4], b"1")).settled is not None
    height = chain.replica.turnover.height
    assert member(4).validator_address not in chain.sets[height + 1]
    assert chain.sets[height + 2][member(4).validator_address] == POWER


def test_whoever_left_counts_no_more_and_is_no_validator_two_blocks_later() -> None:
    chain = Chain(4)
    gone = member(1)
    applied = chain.change(Change(leave=gone.address), ADDRESSES[:3])
    assert applied.powers == ((gone.validator_address, 0),)
    assert (chain.replica.period.n, chain.replica.period.quorum) == (3, 3)
    assert "is no member" in (chain.replica.period.refusal(gone.address, chain.replica.period.sequence, b"1") or "")
    assert not any(chain.block((gone.address, b"1")).accepted)
    assert chain.block(*((who, b"1") for who in chain.members)).settled is not None


def test_a_payload_or_tick_of_one_who_left_spoils_a_proposal() -> None:
    chain = Chain(4)
    chain.change(Change(leave=ADDRESSES[1]), ADDRESSES[:3])
    chain.block()  # the clock runs
    payload = payload_for(CHAIN, chain.replica.period, b"1").signed(ADDRESSES[1], bytes(65))
    tick = tick_for(CHAIN, chain.replica.period, 0).signed(ADDRESSES[1], bytes(65))
    assert "is no member" in (judge(chain.replica, [Transaction(Kind.PAYLOAD, (payload,))]) or "")
    assert "is no member any more" in (judge(chain.replica, [Transaction(Kind.TICK, (tick,))]) or "")
    allowed = tick_for(CHAIN, chain.replica.period, 0).signed(ADDRESSES[0], bytes(65))
    assert judge(chain.replica, [Transaction(Kind.TICK, (allowed,))]) is None


def test_a_replacement_takes_its_place_in_one_block() -> None:
    chain = Chain(4)
    applied = chain.change(Change(join=member(6), leave=ADDRESSES[2]), ADDRESSES[1:4])
    assert dict(applied.powers) == {member(6).validator_address: POWER, member(2).validator_address: 0}
    assert chain.members == (*ADDRESSES[:2], ADDRESSES[3], ADDRESSES[6])


def test_new_keys_of_a_member_change_the_validator_alone() -> None:
    chain = Chain(4)
    applied = chain.change(Change(join=member(2, generation=1), leave=ADDRESSES[2]), ADDRESSES[:3])
    assert chain.members == tuple(ADDRESSES[:4])
    assert dict(applied.powers) == {member(2, generation=1).validator_address: POWER, member(2).validator_address: 0}


def test_members_change_while_another_one_is_down() -> None:
    chain = Chain(4)
    chain.down = frozenset({member(3).validator_address})
    chain.change(Change(join=member(4)), ADDRESSES[:3])
    chain.block(*((who, b"1") for who in chain.members if who != ADDRESSES[3]))
    assert chain.applied.settled is not None, "four of five are a quorum"


def test_a_round_that_had_votes_begins_anew_after_the_change() -> None:
    """What was sent into the interrupted round was meant for other members."""
    chain = Chain(4)
    chain.block((ADDRESSES[0], b"1"))
    chain.change(Change(join=member(4)), ADDRESSES[:3])
    assert len(chain.replica.period.votes) == 0


def test_a_request_of_one_who_left_stands_no_more() -> None:
    period = Chain(5).replica.period
    asks = tuple((CHANGE_MEMBERS, who) for who in ADDRESSES[3:5])
    changed = with_change(cast(Moved, period.state), Change(leave=ADDRESSES[4]))
    assert seat(replace(period, asks=asks, state=changed)).asks == asks[:1]


def test_one_agent_takes_a_second_one_in_and_goes_on_alone_again() -> None:
    chain = Chain(1)
    chain.change(Change(join=member(1)), ADDRESSES[:1])
    assert chain.replica.period.quorum == 2
    assert chain.block((ADDRESSES[0], b"1")).settled is None
    assert chain.block((ADDRESSES[1], b"1")).settled is not None
    chain.change(Change(leave=ADDRESSES[0]), ADDRESSES[:2])
    assert chain.members == (ADDRESSES[1],)
    assert chain.block((ADDRESSES[1], b"2")).settled is not None


def test_the_last_vote_of_one_who_left_does_not_bring_a_demoted_validator_back() -> None:
    """It was long absent, then thrown out: its late vote must not answer an update for a removed validator."""
    chain = Chain(4)
    lost = member(3).validator_address
    chain.down = frozenset({lost})
    for value in range(1, 30):
        chain.block(*((who, b"%d" % value) for who in ADDRESSES[:3]))
    assert chain.replica.demoted == lost
    assert chain.sets[-1][lost] == DEMOTED_POWER
    chain.change(Change(leave=ADDRESSES[3]), ADDRESSES[:3])
    assert (chain.replica.demoted, dict(chain.replica.absences).get(lost)) == ("", None)
    chain.down = frozenset()
    for value in range(30, 35):
        assert lost not in dict(chain.block(*((who, b"%d" % value) for who in ADDRESSES[:3])).powers)


def test_who_has_left_is_not_counted_absent() -> None:
    chain = Chain(4)
    chain.change(Change(leave=ADDRESSES[3]), ADDRESSES[:3])
    chain.down = frozenset({member(3).validator_address})
    for value in range(1, 5):
        chain.block(*((who, b"%d" % value) for who in ADDRESSES[:3]))
    assert chain.replica.absences == ()


def test_a_turnover_is_covered_by_the_app_hash_and_survives_the_disk() -> None:
    """VerifyVoteExtension goes by it, so two nodes must not differ in it unnoticed."""
    chain = Chain(4)
    chain.change(Change(leave=ADDRESSES[3]), ADDRESSES[:3])
    assert Replica.decode(moving, chain.replica.encode()) == chain.replica
    assert replace(chain.replica, turnover=Turnover()).app_hash != chain.replica.app_hash
    assert replace(chain.replica, turnover=Turnover(1, records(3))).app_hash != chain.replica.app_hash


@pytest.mark.parametrize("plain", [None, [], [1], [1, [["0x1"]]], [1, [[1, 2, 3, 4, 5]]]])
def test_a_turnover_that_is_none_is_found(plain: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Turnover.read(plain)


def test_a_state_from_before_members_could_change_is_still_read() -> None:
    """So agents that are brought up to date go on where they were, and old transcripts replay."""
    replica = Replica.start(Period.start(counting, ADDRESSES[:4]))
    fields = json.loads(replica.encode())[:-1][:6]
    checksum = hashlib.sha256(json.dumps(fields, separators=(",", ":")).encode()).hexdigest()
    assert Replica.decode(counting, json.dumps([*fields, checksum]).encode()) == replica


def test_those_who_left_in_neighbouring_blocks_are_all_remembered() -> None:
    one, two = records(0), records(1)
    both = Turnover(10, one).after(12, two, records(2))
    assert both == Turnover(12, (*one, *two))
    assert Turnover(10, one).after(13, two, records(2)) == Turnover(13, two)
    assert Turnover(10, one).after(11, two, records(0, 2)) == Turnover(11, two), "who came back has not left"


def settle_wrongly(state: Moved, votes: Votes[int]) -> Outcome[Literal["DONE"], Moved] | None:
    if len(votes) < votes.quorum:
        return None
    return Outcome("DONE", Moved(value=1) if votes.same() == 1 else replace(state, roster=state.roster[::-1]))


@agree(settle_wrongly)
async def forget(ctx: Context, state: Moved) -> int:
    return 1


@pytest.mark.parametrize("value", [b"1", b"2"])
def test_a_rule_that_loses_or_shuffles_the_roster_is_a_fault_of_the_service(value: bytes) -> None:
    service = Service("careless", state=Moved, start=forget, transitions={(forget, "DONE"): forget}, otherwise=forget)
    replica = Replica.start(begin(service, replace(genesis_of(4), service="careless")))
    for height in (1, 2):
        replica = apply_block(replica, Block(height, height * 1000, ())).replica
    sent = [payload_for(CHAIN, replica.period, value).signed(who, bytes(65)) for who in ADDRESSES[:4]]
    with pytest.raises(ServiceError, match="left the roster"):
        apply_block(replica, Block(3, 3000, (Transaction(Kind.BUNDLE, tuple(sent)),)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cometbft_has_the_validators_of_the_members_whatever_they_agree_on(data: Any) -> None:
    """Through any changes, also in neighbouring blocks, with members away: two blocks later the sets are equal."""
    n = data.draw(st.integers(1, MAX_MEMBERS))
    chain, generation = Chain(n), dict.fromkeys(range(len(KEYS)), 0)
    for _ in range(data.draw(st.integers(1, 8))):
        index = data.draw(st.integers(0, 12))
        leave = data.draw(st.none() | st.sampled_from(chain.members))
        kind = data.draw(st.sampled_from(["join", "leave", "both", "rest"]))
        generation[index] += data.draw(st.integers(0, 1))
        chain.down = frozenset(data.draw(st.sets(st.sampled_from(sorted(chain.sets[-1])), max_size=1)))
        if kind == "rest":
            for value in range(1, data.draw(st.integers(2, 4))):
                chain.block(*((who, b"%d" % value) for who in chain.members))
            continue
        join = None if kind == "leave" else member(index, generation[index])
        change = Change(join, None if kind == "join" else leave)
        is_possible = change.problem(CHAIN, chain.replica.members) is None
        before = chain.members
        chain.change(change, chain.members)
        assert (chain.members != before or bool(chain.applied.powers)) == is_possible
        wanted = {one.validator_address for one in chain.replica.members}
        assert set(chain.sets[-1]) == wanted
        assert chain.members == tuple(one.address for one in chain.replica.members)


def test_a_service_without_membership_keeps_its_members() -> None:
    assert Replica.start(Period.start(counting, ADDRESSES[:4])).members == ()
    with pytest.raises(ConfigError):
        Period.start(moving, [])
