"""The settlement's state against a chain, in whatever order agreements, blocks, reorgs and ended periods come.

Real are the acts, the rules and their tables. The chain is a list: what used each nonce of the Safe, of which the first
few are final. Nodes may lag, signatures come too late, strangers use nonces, reorgs reach below what was final.
tests/simulation/test_settlement.py has the real settler, and blocks; here hypothesis looks for the shortest story.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quorate.errors import ChainError
from quorate.fsm import Votes
from quorate.rounds import settle
from quorate.rounds.settle import MAX_AHEAD, MAX_UNSETTLED, REMEMBERED, Intent, SafeSignature, Settlement, Settling
from quorate.signatures import keccak
from quorate.units import Address, Call, Hash, Wei
from tests.chain_of_agents.keys import keys

KEYS = keys(4)
AGENTS = tuple(key.address for key in KEYS)
STRANGERS = Intent((Call(Address("0x" + "9" * 40), Wei(1), "0x"),), -1)
"""What somebody else has the Safe do, at whatever nonce."""
PLAN = object()


def pay(number: int) -> Call:
    return Call(AGENTS[0], Wei(number), "0x")


@lru_cache(maxsize=1000)
def signed(me: Address, intent: Intent) -> SafeSignature:
    digest = keccak(text=f"{intent.nonce} {[call.value for call in intent.calls]}")
    key = next(key for key in KEYS if key.address == me)
    return SafeSignature(Hash("0x" + digest.hex()), "0x" + key.sign_digest(digest).hex())


class Waits(Exception):
    """The act would sleep: the round's time runs."""


class SettlingStates(RuleBasedStateMachine):
    """Payments, each to be made once; a period ends with its outcome, or at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Settling(participants=AGENTS)
        self.round: Any = PLAN
        self.me = AGENTS[0]
        self.table: Mapping[Any, Any] = {}
        self.chain: list[Intent] = []
        """By nonce."""
        self.deep = 0
        """So many nonces are used in final blocks."""
        self.floor = 0
        """Nonces from here on are mended, whatever befalls them: the last four before the first open one."""
        self.lag = 0
        self.is_sent = True
        """Whether what the keeper sends is mined at once."""
        self.closed: set[Call] = set()
        self.agreed: set[Intent] = set()
        self.signed: set[Intent] = set()
        self.lost: set[Intent] = set()
        """Alternatives of a nonce that was final. Who executes one after a deep reorg may double a call (ADR 14)."""
        self.made: set[Call] = set()
        """What the service was told of as made, and not as missed later."""

    @initialize(goes_ahead=st.booleans(), begun=st.integers(0, 6))
    def begin(self, goes_ahead: bool, begun: int) -> None:
        self.table = settle.ahead if goes_ahead else settle.transitions
        self.chain, self.deep = [STRANGERS] * begun, begun

    # what an act asks of the chain

    @property
    def settler(self) -> SettlingStates:
        return self

    async def sleep(self, seconds: float) -> None:
        raise Waits

    async def next_nonce(self) -> tuple[int, int]:
        nonce, block = await self.newest()
        if self.deep < nonce:
            raise ChainError(f"the nonce {nonce} is young")
        return nonce, block

    async def newest(self) -> tuple[int, int]:
        return max(len(self.chain) - self.lag, 0), 100

    async def can_succeed(self, intent: Intent, block: int | None = None) -> bool:
        return self.closed.isdisjoint(intent.calls)

    async def sign(self, intent: Intent) -> SafeSignature:
        return signed(self.me, intent)

    async def is_owner(self) -> bool:
        return True

    async def push(self, intent: Intent, signatures: Mapping[Address, SafeSignature]) -> None:
        assert {one.digest for one in signatures.values()} == {signed(self.me, intent).digest}
        if self.is_sent:
            self.execute(intent)

    async def outcome(self, unsettled: tuple[Intent, ...], *, final: bool = False) -> Settlement | None:
        nonce, (seen, _) = unsettled[0].nonce, await self.newest()
        if nonce >= (min(self.deep, seen) if final else seen):
            return None
        which = unsettled.index(self.chain[nonce]) if self.chain[nonce] in unsettled else -1
        return Settlement(which, Hash(f"0x{nonce:064x}"), 100, 80_000, True, AGENTS[0])

    def execute(self, intent: Intent) -> None:
        if intent.nonce == len(self.chain) and self.closed.isdisjoint(intent.calls) and intent not in self.lost:
            self.chain.append(intent)

    # what agents do

    @rule(
        numbers=st.lists(st.integers(0, 3), min_size=1, max_size=6),
        lag=st.sampled_from((0, 0, 0, 1)),
        is_sent=st.sampled_from((True, True, False)),
        is_final=st.booleans(),
    )
    def rounds_end(self, numbers: list[int], lag: int, is_sent: bool, is_final: bool) -> None:
        """Some rounds, one after another; where a payment is to be planned, those of these numbers are wanted."""
        self.is_sent = is_sent
        for number in numbers:
            if is_final:
                self.deep = len(self.chain)
            self.lag = lag
            self.end_round(pay(number))
            self.lag = 0

    def end_round(self, wanted: Call) -> None:
        """All agents see the same, or nothing until the round's time is over."""
        if self.round is PLAN:
            self.plan(wanted)
            return
        payloads = {}
        for me in (self.state.keeper or AGENTS[0], *AGENTS[:3]):
            self.me = me
            try:
                payloads[me] = run(self.round.act(self, self.state))
            except (Waits, ChainError):  # the host repeats it
                continue
        votes = Votes.of(payloads.items(), n=4, quorum=3)
        ended = len(votes) >= 3 and self.round.settle(self.state, votes)
        outcome = ended or self.round.at_deadline(self.state, votes)
        self.follow(outcome.event if outcome else "ROUND_TIMEOUT", outcome.state if outcome else self.state)

    def plan(self, wanted: Call) -> None:
        """Agree on a payment that is not made and not in flight; where there is none, see what became of what is."""
        flying = {call for one in settle.in_flight(self.state) for call in one.calls}
        if wanted in self.made | flying | self.closed:
            self.round = settle.confirm if flying else PLAN
            return
        try:
            intent = run(settle.intend(self, self.state, wanted))  # type: ignore[arg-type]  # as much as it uses
        except ChainError:
            return
        self.state = settle.with_intent(self.state, intent)
        self.round = settle.sign

    def follow(self, event: str, state: Settling) -> None:
        if self.round is settle.sign and event == "DONE":
            assert state.intent is not None
            self.signed.add(state.intent)
        oldest = self.state.unsettled[0].nonce if self.state.unsettled else 0
        of_oldest = {one for one in self.state.unsettled if one.nonce == oldest}
        was = (self.state.reached, self.state.used)
        self.state = state
        assert state.reached >= was[0], "what was reached is never forgotten"
        assert state.used >= was[1] or event in ("REOPENED", "UNSIGNED"), "used goes back with a reorg alone"
        if event in ("DONE", "FAILED") and self.round in (settle.confirm, settle.collect):
            self.told(event, oldest, of_oldest)
            self.round, self.state = PLAN, state.next_period()
        else:
            self.round = self.table.get((self.round, event), PLAN)
            self.state = state.next_period() if self.round is PLAN and event != "AHEAD" else state

    def told(self, event: str, nonce: int, alternatives: set[Intent]) -> None:
        """What the agents agree on is what is final on the chain, at the nonce whose turn it was."""
        state, executed = self.state, self.chain[nonce]
        assert nonce < self.deep
        assert state.intent == (None if executed == STRANGERS else executed)
        assert (event == "FAILED") == (state.missed is not None or executed.calls == () or executed == STRANGERS)
        assert executed == STRANGERS or executed in alternatives
        self.made |= set(executed.calls) - set(STRANGERS.calls)
        self.made -= set(state.missed.calls if state.missed else ())
        self.lost |= {one for one in alternatives if one.calls and one != executed}

    @precondition(lambda self: self.round is settle.sign)
    @rule()
    def signatures_come_too_late(self) -> None:
        """The round ends without them; whoever has them may use them."""
        self.signed.add(self.state.intent)  # type: ignore[arg-type]  # `sign` has one
        self.follow("ROUND_TIMEOUT", self.state)

    @rule()
    def the_period_ends(self) -> None:
        self.round, self.state = PLAN, self.state.next_period()

    # what the chain does

    @rule(data=st.data())
    def somebody_sends_what_was_signed(self, data: st.DataObject) -> None:
        there = sorted((one for one in self.signed if one.nonce == len(self.chain)), key=repr)
        if there:
            self.execute(data.draw(st.sampled_from(there)))

    @precondition(lambda self: len(self.chain) >= self.state.reached)
    @rule()
    def a_stranger_uses_the_nonce(self) -> None:
        self.chain.append(STRANGERS)

    @rule(some=st.integers(1, 6))
    def a_reorg_takes_nonces_away(self, some: int) -> None:
        """Also final ones, as far as the agents have to remember them."""
        del self.chain[max(len(self.chain) - some, self.floor) :]
        self.deep = min(self.deep, len(self.chain))

    @rule(number=st.integers(0, 3))
    def a_payment_can_succeed_no_more(self, number: int) -> None:
        if len(self.closed) < 2:
            self.closed.add(pay(number))

    # what must hold

    @invariant()
    def each_nonce_is_known_once_as_far_as_a_reorg_may_reach(self) -> None:
        state, open_ = self.state, [one.nonce for one in self.state.unsettled]
        assert open_ == sorted(open_)
        assert len(set(state.unsettled)) == len(open_)
        assert all(one.nonce == among.nonce for among in state.remembered for one in among.intents)
        known = [*(one.nonce for one in state.remembered), *sorted(set(open_))]
        self.floor = max(self.floor, (open_[0] if open_ else state.reached) - REMEMBERED)
        assert known == list(range(known[0] if known else 0, state.reached)) + [
            one for one in known if one >= state.reached
        ], "each once, none left out"
        assert not known or known[0] <= self.floor
        assert known[-1:] <= [state.reached], "nothing is agreed on behind a nonce that nobody saw used"
        assert state.used <= state.reached

    @invariant()
    def it_is_bounded(self) -> None:
        assert len(self.state.remembered) <= REMEMBERED
        open_ = [one.nonce for one in self.state.unsettled]
        assert len(set(open_)) <= MAX_AHEAD + REMEMBERED
        assert all(open_.count(nonce) <= MAX_UNSETTLED + 1 for nonce in open_)

    @invariant()
    def nothing_agreed_is_forgotten(self) -> None:
        """Before its nonce is more final than what is mended after a deep reorg."""
        self.agreed |= set(self.state.unsettled)
        known = {*self.state.unsettled, *(one for final in self.state.remembered for one in final.intents)}
        assert {one for one in self.agreed if one.nonce >= self.floor} <= known

    @invariant()
    def no_call_is_open_at_two_nonces(self) -> None:
        where: dict[Call, int] = {}
        for one in self.state.unsettled:
            for call in one.calls if one not in self.lost else ():
                assert where.setdefault(call, one.nonce) == one.nonce

    @invariant()
    def nothing_happens_twice(self) -> None:
        calls = [call for one in self.chain if one != STRANGERS for call in one.calls]
        assert len(set(calls)) == len(calls)

    def teardown(self) -> None:
        """The chain calms down: all that is open comes to an end, and the books say what is on the chain."""
        if not self.table:
            return
        self.is_sent = True
        for number in range(100, 250):
            self.deep = len(self.chain)
            if self.round is PLAN and settle.in_flight(self.state):
                self.round = settle.confirm
            if self.round is PLAN and not self.state.unsettled and self.state.reached <= len(self.chain):
                break
            self.end_round(pay(number))
        else:
            raise AssertionError(f"it does not end: {self.round} {self.state}")
        made = {call for one in self.chain if one != STRANGERS for call in one.calls}
        assert self.made == made, "the service's books are not what is on the chain"


def run(act: Any) -> Any:
    """What waits for nothing."""
    try:
        act.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waits for something else than a sleep")


is_nightly = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
TestSettlingStates = SettlingStates.TestCase
TestSettlingStates.settings = settings(
    deadline=None, max_examples=2_000 if is_nightly else 20, stateful_step_count=60 if is_nightly else 30
)
