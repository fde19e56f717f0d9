"""The replicated machine against a model of it, in whatever order payloads, ticks, blocks and restarts come."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quorate.abci.machine import MAX_TICKS, Block, Replica, apply_block, judge, payload_for, tick_for
from quorate.abci.payload import SignedPayload
from quorate.abci.transaction import Kind, Transaction
from quorate.fsm import Period, codec
from quorate.units import Address
from tests.chain_of_agents.keys import keys
from tests.chain_of_agents.services import counting

CHAIN = "chain-1"
MEMBERS = [key.address for key in keys(4)]
QUORUM = 3
TIMEOUT_MS = next(iter(counting.rounds.values())).timeout_ms

members = st.sampled_from(MEMBERS)


class ReplicaStates(RuleBasedStateMachine):
    """A number that a quorum raises. The model: who has sent what, who has ticked, when the round's time began."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = Replica.start(Period.start(counting, MEMBERS))
        self.pending: list[Transaction] = []
        self.now_ms, self.value, self.sequence = 1_000_000, 0, 1
        self.votes: dict[Address, int] = {}
        self.ticks: dict[Address, int] = {}
        self.clock_ms = 0

    @rule(sender=members, value=st.integers(1, 2), wrong=st.sampled_from(["", "", "", "sequence", "opening", "body"]))
    def send(self, sender: Address, value: int, wrong: str) -> None:
        """A payload is put into the next block; one that is wrong, or its sender's second, must not count."""
        payload = payload_for(CHAIN, self.replica.period, codec.encode(value)).signed(sender, bytes(65))
        changes: dict[str, Any] = {"sequence": payload.sequence + 1, "opening": bytes(32), "body": b'"1"'}
        if wrong:
            payload = replace(payload, **{wrong: changes[wrong]})
        counts = not wrong and sender not in self.votes
        self._put(Transaction(Kind.PAYLOAD, (payload,)), counts)
        if counts:
            self.votes[sender] = value

    @rule(sender=members, attempt=st.integers(0, MAX_TICKS))
    def tick(self, sender: Address, attempt: int) -> None:
        tick: SignedPayload = tick_for(CHAIN, self.replica.period, attempt).signed(sender, bytes(65))
        counts = bool(self.clock_ms) and self.ticks.get(sender, 0) <= attempt < MAX_TICKS
        self._put(Transaction(Kind.TICK, (tick,)), counts)
        if counts:
            self.ticks[sender] = attempt + 1

    def _put(self, tx: Transaction, counts: bool) -> None:
        problem = judge(self.replica, [*self.pending, tx])
        assert (problem is None) == counts, f"{problem}: expected that it {'counts' if counts else 'does not'}"
        if counts:
            self.pending.append(tx)

    @rule(later_ms=st.sampled_from([1, 50, TIMEOUT_MS - 1, TIMEOUT_MS]))
    def block(self, later_ms: int) -> None:
        """What waits is decided. The round ends by a quorum for one number, or by its time; or its time begins."""
        self.now_ms += later_ms
        before = self.replica
        applied = apply_block(before, Block(before.height + 1, self.now_ms, tuple(self.pending)))
        self.replica = applied.replica
        assert applied.accepted == (True,) * len(self.pending)
        counts = [list(self.votes.values()).count(value) for value in (1, 2)]
        is_first = before.height == 0
        agreed = next((value for value, count in zip((1, 2), counts, strict=True) if count >= QUORUM), None)
        is_split = max(counts) + len(MEMBERS) - len(self.votes) < QUORUM
        is_late = bool(self.clock_ms) and self.now_ms >= self.clock_ms + TIMEOUT_MS
        if not is_first and (agreed is not None or is_split or is_late):
            event = "DONE" if agreed is not None else "NO_MAJORITY" if is_split else "ROUND_TIMEOUT"
            assert applied.settled is not None, f"the round should end with {event}"
            assert (applied.settled.event, applied.settled.sequence) == (event, self.sequence)
            self.value = self.value if agreed is None else agreed
            self.sequence, self.votes, self.ticks, self.clock_ms = self.sequence + 1, {}, {}, 0
        else:
            assert applied.settled is None, f"the round ended with {applied.settled}"
            self.clock_ms = self.clock_ms or (0 if is_first else self.now_ms)
        has_news = bool(self.pending) or is_first or applied.settled is not None or before.period.clock_ms == 0
        assert (self.replica.app_hash != before.app_hash) == has_news, "the chain would sleep with news, or never sleep"
        self.pending = []

    @precondition(lambda self: not self.pending)
    @rule()
    def restart(self) -> None:
        """As read from disk, it is the same in all that matters later."""
        again = Replica.decode(counting, self.replica.encode())
        assert again == self.replica
        assert again.app_hash == self.replica.app_hash
        self.replica = again

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        assert self.replica.period.sequence == self.sequence
        assert self.replica.period.state.value == self.value  # type: ignore[attr-defined]  # the service's own state
        assert self.replica.period.clock_ms == self.clock_ms
        if not self.pending:
            assert {who: self.replica.period.votes.get(who) for who in self.votes} == self.votes
            assert dict(self.replica.ticks) == self.ticks


is_nightly = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
TestReplicaStates = ReplicaStates.TestCase
TestReplicaStates.settings = settings(
    deadline=None, max_examples=1_000 if is_nightly else 20, stateful_step_count=50 if is_nightly else 25
)
