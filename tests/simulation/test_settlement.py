"""Settlement as a whole: four agents pay a list of payments through a Safe, on a chain on which everything goes wrong.

The rounds and `SafeSettler` are the real ones, and so are the owners' signatures. Agreement itself is `quorate.fsm`'s:
here one state stands for all agents, each agent's act runs by itself, and the clock is virtual. A world that goes
`ahead` has up to four intents in flight; a `deep` one has reorgs deeper than the confirmations. What must hold at the
end of every seed: each payment is on the canonical chain exactly once (one that can never succeed not at all), the
agreed outcomes say the same, and no fee went over the ceiling.
"""

from __future__ import annotations

import heapq
import os
import random
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest.mock import AsyncMock

import pytest
from coincurve import PrivateKey

from quorate.chain import CallReverted, Fees, SafeTransaction, Wallet
from quorate.errors import ChainError
from quorate.fsm import AnyRound, Outcome, Votes, agree, keep
from quorate.host.decision_maker import ExecutionRequest, IntentRequest
from quorate.host.settler import SafeSettler
from quorate.rounds import settle as rounds_settle
from quorate.rounds.settle import (
    MAX_AHEAD,
    REMEMBERED,
    Intent,
    Report,
    SafeSignature,
    Settlement,
    Settling,
    ahead,
    collect,
    confirm,
    in_flight,
    intend,
    keep_settlement,
    middle_block,
    review,
    send,
    sign,
    transitions,
    with_intent,
)
from quorate.units import Address, Hash, Wei
from tests.evm_world import CHAIN_ID, GENESIS, GWEI, SAFE, Evm, Node, number_of, payment, signed_tx

CEILING = Wei(100 * GWEI)
KEYS = {Wallet.from_key(bytes([n]) * 32).address: PrivateKey(bytes([n]) * 32) for n in range(1, 5)}
AGENTS = tuple(sorted(KEYS))
QUORUM = 3
LIMIT_S = 1_500  # of virtual time; the slowest honest seed takes half of it


@dataclass(frozen=True)
class Paying(Settling):
    todo: tuple[tuple[int, ...], ...] = keep(())
    """Payments still to be made; those of one entry together."""
    made: tuple[int, ...] = keep(())
    given_up: tuple[int, ...] = keep(())


def keep_plan(
    state: Paying, votes: Votes[Intent | None]
) -> Outcome[Literal["DONE", "NOTHING", "NO_MAJORITY"], Paying] | None:
    plain = Votes(tuple((who, one and replace(one, block=0)) for who, one in votes.items()), votes.n, votes.quorum)
    for same in plain.agreed():
        if same is None:
            return Outcome("NOTHING", state)
        block = middle_block(one for one in votes.values() if one == same and one is not None)
        return Outcome("DONE", with_intent(state, replace(same, block=block)))
    return Outcome("NO_MAJORITY", state) if plain.split() else None


@agree(keep_plan, timeout_s=30)
async def plan(ctx: Any, state: Any) -> Intent | None:
    """The first payment that is not in flight; None where all are."""
    flying = {call for one in in_flight(state) for call in one.calls}
    free = [some for some in state.todo if flying.isdisjoint(map(payment, some))]
    return await intend(ctx, state, *map(payment, free[0])) if free else None


def digest_of(intent: Intent) -> bytes:
    return SafeTransaction(intent.calls, intent.nonce).digest(CHAIN_ID, SAFE)


class Crashed(BaseException):
    """The agent's process is gone."""


@dataclass
class Pause:
    seconds: float

    def __await__(self) -> Generator[float, None, None]:
        yield self.seconds


class Journal:
    def emit(self, kind: str, **fields: Any) -> None: ...
    def waiting(self, what: str, why: object) -> None: ...


class Agent:
    """One agent: its node, its settler, and its key, which signs what the agreed state says and nothing else."""

    def __init__(self, world: World, me: Address) -> None:
        self.world, self.me, self.address = world, me, me
        self.down_until = 0.0
        self.point = 0
        """How many requests its node has had since it began to act as keeper."""
        self.node = Node(world.evm, lambda: world.state.intent, self.crash_here)
        self.settler = self.fresh()

    def fresh(self) -> SafeSettler:
        node: Any = self.node  # as much of a Chain, a Signer and a Journal as is used
        signer: Any = self
        journal: Any = Journal()
        return SafeSettler(
            node,
            SAFE,
            signer,
            journal,
            confirmations=self.world.depth,
            ceiling=CEILING,
            reprice_s=5,
            clock=lambda: self.world.now,
        )

    def crash_here(self, what: str) -> None:
        if self.world.round is send and self.world.state.keeper == self.me:
            self.point += 1
            if self.world.crash_points.get(self.me) == self.point:
                self.world.crashed_at.append(what)
                raise Crashed(what)

    async def sleep(self, seconds: float) -> None:
        await Pause(seconds)

    async def sign(self, request: Any) -> bytes:
        state = self.world.state
        assert state.intent is not None
        digest = digest_of(state.intent)
        if isinstance(request, IntentRequest):
            assert request.intent == state.intent
            raw = KEYS[self.me].sign_recoverable(digest, hasher=None)
            return raw[:64] + bytes([raw[64] + 27])
        assert isinstance(request, ExecutionRequest)
        self.crash_here("sign")
        self.world.attempts += 1
        assert request.max_fee_per_gas <= CEILING
        assert len(state.signatures) >= QUORUM
        assert all(one.digest == "0x" + digest.hex() for _, one in state.signatures)
        return signed_tx(self.world.evm, self.me, request, state.intent, digest)


@dataclass
class World:
    """The agents, the chain, one agreed state, and the troubles that the seed chose."""

    seed: int
    payments: int = 10
    troubles: bool = True
    crash_points: dict[Address, int] = field(default_factory=dict)
    calm_depth: int = 3
    """Confirmations, where there are no troubles."""
    ahead: bool = False
    """Whether intents follow one that is not final yet."""
    deep: bool = False
    """Whether reorgs are deeper than the confirmations, too; none takes more settlements away than are remembered."""

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.evm = Evm(rng)
        self.evm.owners = AGENTS
        self.now = 0.0
        self.depth = rng.choice((1, 3, 7, 64)) if self.troubles else self.calm_depth
        self.block_s = rng.choice((0.25, 0.5)) if self.depth > 7 else rng.choice((0.5, 2.0))
        self.loss = rng.choice((0.0, 0.1, 0.3)) if self.troubles else 0.0
        self.reorgs = rng.choice((0.0, 0.02, 0.1)) if self.troubles else 0.0
        self.spikes = rng.choice((0.0, 0.02)) if self.troubles else 0.0
        self.crashes = rng.choice((0.0, 0.1)) if self.troubles else 0.0
        self.liar = rng.choice((*AGENTS, *[Address("")] * 4)) if self.troubles and not self.crashes else Address("")
        self.withheld = rng.choice((0.0, 0.05)) if self.troubles else 0.0
        if self.deep:  # whoever holds an old alternative's signatures could double it then (docs/adr/0014)
            self.depth, self.withheld = rng.choice((1, 3, 7)), 0.0
        self.leaks: list[tuple[float, Intent]] = []
        self.next_block_s = self.block_s
        numbers = iter(range(1, 3 * self.payments + 1))
        todo = tuple(
            tuple(next(numbers) for _ in range(rng.choice((1, 1, 1, 3)))) for _ in range(self.payments)
        )  # some are batches
        self.state = Paying(participants=AGENTS, todo=todo)
        self.all = {number for some in todo for number in some}
        self.round: AnyRound = plan
        self.agents = [Agent(self, me) for me in AGENTS]
        self.events: list[tuple[str, str]] = []
        self.settled, self.attempts, self.most_in_flight = 0, 0, 0
        self.finals: list[int] = []
        """The nonces that a service should remember as final."""
        self.undone: set[int] = set()
        """Payments that a reorg deeper than the depth has taken away for good."""
        self.crashed_at: list[str] = []

    # the service's table

    def next(self, event: str) -> None:
        self.events.append((self.round.name, event))
        self.most_in_flight = max(self.most_in_flight, len(in_flight(self.state)))
        table = ahead if self.ahead else transitions
        following = table.get((self.round, event))
        if self.round is plan:
            following = sign if event == "DONE" else confirm if event == "NOTHING" else plan
        elif self.round is collect and event == "AHEAD":
            following = plan
        elif self.round is sign and event != "DONE":  # refused, or nobody was there: another payment, at the same nonce
            following, self.state = plan, self.put_off(self.state)
        elif self.round in (confirm, collect) and event in ("DONE", "FAILED"):
            self.settled += 1
            self.check_settlement(self.state)
            following, self.state = plan, self.book(self.state, event)
        assert following is not None, (self.round, event)
        self.round = following

    def put_off(self, state: Paying) -> Paying:
        assert state.intent is not None
        those = tuple(number_of(call) for call in state.intent.calls)
        later = tuple(some for some in state.todo if some != those)
        if those not in state.todo:  # a no-op, or what is restored
            return state.next_period()
        if set(those) & self.evm.closed:
            return replace(state, todo=later, given_up=(*state.given_up, *those)).next_period()
        return replace(state, todo=(*later, those)).next_period()

    def book(self, state: Paying, event: str) -> Paying:
        made = () if state.intent is None else tuple(number_of(call) for call in state.intent.calls)
        assert event == "FAILED" or made in state.todo or set(made) <= set(state.made)
        missed = () if state.missed is None else tuple(number_of(call) for call in state.missed.calls)
        todo, kept = state.todo, state.made
        if set(missed) & set(kept):  # it was made, and a reorg deeper than the depth took it away
            self.undone |= set(missed)
            todo, kept = (*todo, missed), tuple(number for number in kept if number not in missed)
        waiting = {number_of(call) for one in state.unsettled for call in one.calls}
        lost = [some for some in todo if some != made and set(some) & self.evm.closed and not set(some) & waiting]
        return replace(
            state,
            todo=tuple(some for some in todo if some != made and some not in lost),
            made=(*kept, *(number for number in made if number not in kept)),
            given_up=(*state.given_up, *(number for some in lost for number in some)),
        ).next_period()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Until every payment is made or given up and the last outcome is deep, or until the test says so."""
        while self.state.todo and not until():
            assert self.now < LIMIT_S, f"seed {self.seed} does not end: {self.events[-12:]}"
            self.run_round()

    # one round: the acts step by step, blocks between them

    def run_round(self) -> None:
        began, round, state, rng = self.now, self.round, self.state, self.rng
        votes: dict[Address, Any] = {}
        queue: list[tuple[float, int, Agent, Coroutine[Any, Any, Any] | None]] = []
        for number, agent in enumerate(self.agents):
            agent.point = 0
            heapq.heappush(queue, (max(self.now, agent.down_until) + 0.01 * number, number, agent, None))
        count = len(queue)
        while True:
            at = queue[0][0] if queue else began + round.timeout_ms / 1000
            while self.next_block_s <= at:
                self.now = self.next_block_s
                self.next_block_s += self.block_s
                self.live()
            if at >= began + round.timeout_ms / 1000:
                self.now = began + round.timeout_ms / 1000
                outcome = round.at_deadline(state, self.ballot(votes))
                break
            self.now = at
            _, _, agent, act = heapq.heappop(queue)
            wake = self.step(agent, round, state, act, votes)
            if wake is not None:
                count += 1
                heapq.heappush(queue, (self.now + wake[0], count, agent, wake[1]))
            elif len(votes) >= QUORUM and (outcome := round.settle(state, self.ballot(votes))) is not None:
                break
        for *_, act in queue:
            if act is not None:
                act.close()
        if outcome is not None and round is sign and outcome.event == "DONE" and rng.random() < self.withheld:
            outcome = None  # the signatures came too late for the round, and somebody has them
            self.now = began + round.timeout_ms / 1000
            assert state.intent is not None
            self.leaks.append((self.now + rng.uniform(0, 60), state.intent))
        if outcome is not None:
            self.state = outcome.state
        self.now += 0.03
        self.next("ROUND_TIMEOUT" if outcome is None else outcome.event)

    def step(
        self, agent: Agent, round: AnyRound, state: Paying, act: Any, votes: dict[Address, Any]
    ) -> tuple[float, Any] | None:
        """Let the act go on to its next sleep; None when it has voted."""
        if agent.me == self.liar:
            votes[agent.me] = self.lie(round, state)
            return None
        try:
            act = act or round.act(agent, state)
            return act.send(None), act
        except StopIteration as ended:
            votes[agent.me] = ended.value
            return None
        except ChainError:  # the host repeats it
            return 0.5, None
        except Crashed:
            agent.settler = agent.fresh()  # all that it remembered is gone
            self.crash_points.pop(agent.me, None)
            agent.down_until = self.now + self.rng.choice((0.5, 5, 20))
            return agent.down_until - self.now, None

    def ballot(self, votes: dict[Address, Any]) -> Votes[Any]:
        return Votes.of(votes.items(), n=len(AGENTS), quorum=QUORUM)

    def lie(self, round: AnyRound, state: Paying) -> Any:
        junk = Hash("0x" + "66" * 32)
        if round is collect:
            return Report(self.rng.random() < 0.5, self.rng.choice((None, Settlement(0, junk, 1, 1, True, self.liar))))
        if round is plan:
            return Intent((payment(666),), self.rng.randint(0, 9), self.rng.randint(0, 10**9))
        if round is sign:
            return SafeSignature(junk, "0x" + "66" * 65)
        if round is send:
            return junk
        if round is review:
            return self.rng.choice(("FAILS", "GONE"))
        return self.rng.choice((None, Settlement(0, junk, 1, 1, True, self.liar)))

    # what goes wrong

    def live(self) -> None:
        """A block later."""
        rng, evm = self.rng, self.evm
        evm.mine()
        if rng.random() < self.reorgs:
            evm.reorg(rng.randint(1, self.depth), keeps=rng.choice((0.0, 0.7, 1.0)))
        if self.deep and rng.random() < 0.01:
            evm.reorg(rng.randint(1, self.deepest()), keeps=rng.choice((0.0, 0.7, 1.0)))
        if rng.random() < self.spikes:
            evm.base_fee = rng.choice((GWEI, 10 * GWEI, 40 * GWEI))
        if self.spikes and rng.random() < 0.002 and len(evm.closed) < 3 and self.state.todo:
            evm.closed.add(rng.choice(rng.choice(self.state.todo)))
        if self.crashes and rng.random() < self.crashes and not self.crash_points:
            self.crash_points[self.state.keeper] = rng.randint(1, 30)
        for due, intent in [leak for leak in self.leaks if leak[0] <= self.now]:
            self.leaks.remove((due, intent))
            evm.publish(intent, digest_of(intent))
        for agent in self.agents:
            agent.node.loss = self.loss if rng.random() < 0.5 else 0.0
            agent.node.lag = rng.choice((0, 0, 0, 1, 2)) if self.troubles else 0

    def deepest(self) -> int:
        """How many blocks may go so that no more settlements go than are remembered."""
        known = [*self.finals, *(one.nonce for one in self.state.unsettled)]
        least = min(known, default=self.evm.blocks[-1].safe_nonce) + (len(self.finals) == REMEMBERED)
        return max(depth for depth in range(1, 65) if depth == 1 or self.evm.blocks[-1 - depth].safe_nonce >= least)

    # what must hold

    def check_settlement(self, state: Paying) -> None:
        """What the agents agreed on is on the chain."""
        assert state.settlement is not None
        found = self.evm.find(state.settlement.tx)
        assert found is not None, f"seed {self.seed}: {state.settlement} is not on the chain"
        self.finals = sorted({*self.finals, found[1].intent.nonce})[-REMEMBERED:]
        assert (found[0], found[1].sender, found[2]) == (state.settlement.block, state.settlement.sender, True)

    def check(self) -> None:
        paid, state = self.evm.paid, self.state
        assert len(set(paid)) == len(paid), f"seed {self.seed}: paid twice: {paid}"
        assert set(state.made) == set(paid), f"seed {self.seed}: the agents say {state.made}, the chain {paid}"
        assert not set(state.given_up) & set(paid)
        assert set(paid) | set(state.given_up) == self.all
        assert self.evm.highest_fee <= CEILING


def settle(seed: int, **options: Any) -> World:
    world = World(seed, **options)
    world.run()
    world.check()
    return world


SEEDS = int(os.environ.get("QUORATE_SETTLEMENTS", "1040")) // 10


def test_a_thousand_settlements_are_neither_lost_nor_doubled() -> None:
    worlds = [settle(seed) for seed in range(SEEDS)]
    assert sum(world.settled for world in worlds) >= 9.5 * SEEDS
    assert sum(len(world.evm.reorgs) for world in worlds) > SEEDS
    assert sum(len(world.crashed_at) for world in worlds) > SEEDS // 4


def test_a_thousand_settlements_up_to_four_in_flight_are_neither_lost_nor_doubled() -> None:
    worlds = [settle(seed, ahead=True) for seed in range(10_000, 10_000 + SEEDS)]
    assert sum(world.settled for world in worlds) >= 9.5 * SEEDS
    assert sum(len(world.evm.reorgs) for world in worlds) > SEEDS
    assert max(world.most_in_flight for world in worlds) == MAX_AHEAD


@pytest.mark.parametrize("goes_ahead", [False, True])
def test_settlements_under_reorgs_deeper_than_the_confirmations_are_neither_lost_nor_doubled(goes_ahead: bool) -> None:
    worlds = [settle(seed, ahead=goes_ahead, deep=True) for seed in range(SEEDS // 2)]
    assert sum(depth > world.depth for world in worlds for depth in world.evm.reorgs) > SEEDS // 8
    assert sum(world.settled for world in worlds) > 10 * len(worlds), "nothing was told again"


def test_the_same_seed_gives_the_same_story() -> None:
    one, two = settle(5), settle(5)
    assert (one.events, one.now, one.evm.paid) == (two.events, two.now, two.evm.paid)


# ---- single troubles


@pytest.mark.parametrize("depth", range(1, 65))
def test_a_payment_that_a_reorg_took_away_and_lost_is_made_again(depth: int) -> None:
    world = World(depth, payments=1, troubles=False, calm_depth=64)
    world.run(until=lambda: world.round is confirm)
    assert world.evm.paid
    for _ in range(64 - depth):  # so that it is the last block but `depth`: a moment before it counts
        world.live() if world.evm.head < GENESIS + 62 else None
    world.evm.reorg(min(depth + world.evm.head - GENESIS, 64) if depth % 2 else depth, keeps=0.0)
    world.run()
    world.check()


@pytest.mark.parametrize("goes_ahead", [False, True])
def test_a_keeper_may_crash_at_any_of_its_steps(goes_ahead: bool) -> None:
    points: list[str] = []
    for point in range(1, 31):
        world = settle(1, payments=3, troubles=False, crash_points={AGENTS[0]: point}, ahead=goes_ahead)
        points += world.crashed_at
    assert len(points) >= 12, "fewer than 12 of its steps were tried"
    assert {"transaction_count", "estimate", "fees", "sign", "send_raw", "send_raw done", "nonce"} <= set(points)


@pytest.mark.parametrize("goes_ahead", [False, True])
@pytest.mark.parametrize("spike", [2, 5, 10, 40])
def test_after_a_fee_spike_a_stuck_transaction_is_free_in_three_attempts(spike: int, goes_ahead: bool) -> None:
    world = World(3, payments=2, troubles=False, ahead=goes_ahead, calm_depth=20)
    world.run(until=lambda: world.round is send and world.state.intent == Intent((payment(2),), 1))
    assert len(world.state.unsettled) == 1 + goes_ahead
    world.attempts = 0
    world.live = lambda mine=world.live: mine() if world.attempts else None  # type: ignore[method-assign,misc]
    world.evm.base_fee = spike * GWEI  # after the fee was chosen
    for agent in world.agents:
        agent.node.fees = lagging_fees(world, agent.node)  # type: ignore[method-assign]
    world.run()
    world.check()
    assert world.attempts <= 3
    assert ("SendRound", "ROTATE") not in world.events


def lagging_fees(world: World, node: Node) -> Any:
    """The first answer is from before the spike."""
    truth = node.fees

    async def fees() -> Fees:
        return await truth() if world.attempts else Fees(Wei(3 * GWEI // 2), Wei(GWEI // 2))

    return fees


def test_above_the_ceiling_nothing_is_sent_and_it_goes_on_when_fees_fall() -> None:
    world = World(3, payments=1, troubles=False)
    world.evm.base_fee = 200 * GWEI
    world.run(until=lambda: ("ReviewRound", "AGAIN") in world.events)
    assert world.attempts == 0
    world.evm.base_fee = GWEI
    world.run()
    world.check()


def test_a_nonce_that_another_took_ends_the_intent_and_the_payment_is_made_at_the_next() -> None:
    world = World(3, payments=1, troubles=False)
    world.run(until=lambda: world.round is send)
    world.evm.take_nonce()
    world.run(until=lambda: world.settled > 0)
    assert world.events[-1] == ("ConfirmRound", "FAILED")
    assert world.state.made == ()
    world.run()
    world.check()
    assert world.evm.blocks[-1].safe_nonce == 2


@pytest.mark.parametrize("goes_ahead", [False, True])
def test_a_nonce_that_another_took_and_a_deep_reorg_gave_back_does_not_stop_the_payments_behind_it(
    goes_ahead: bool,
) -> None:
    world = World(3, payments=2, troubles=False, calm_depth=2, ahead=goes_ahead)
    world.evm.take_nonce()
    for _ in range(2):
        world.evm.mine()
    world.run(until=lambda: world.round is send)
    assert world.state.unsettled[0].nonce == 1
    world.evm.reorg(world.evm.head - GENESIS + 1, keeps=0.0)
    assert world.evm.blocks[-1].safe_nonce == 0
    world.run()
    world.check()
    assert ("ReviewRound", "UNSIGNED") in world.events


def test_a_payment_that_can_no_longer_succeed_is_cancelled_at_its_own_nonce() -> None:
    world = World(3, payments=2, troubles=False)
    world.run(until=lambda: world.round is send)
    world.evm.closed |= set(world.state.todo[0])
    world.run()
    world.check()
    assert ("ReviewRound", "CANCEL") in world.events
    assert world.state.given_up


def test_a_payment_whose_signatures_came_too_late_and_leaked_is_made_once() -> None:
    world = World(3, payments=2, troubles=False)
    world.withheld = 1.0
    world.run(until=lambda: bool(world.leaks))
    world.withheld = 0.0
    _, leaked = world.leaks.pop()
    world.run(until=lambda: world.round is send)
    assert world.state.intent is not None
    assert world.state.intent.calls != leaked.calls
    assert world.state.intent.nonce == leaked.nonce
    world.evm.publish(leaked, digest_of(leaked))
    world.evm.mine()
    world.run()
    world.check()
    assert ("ConfirmRound", "FAILED") in world.events  # the older one happened in place of the newer


def test_payments_that_were_final_and_are_gone_are_made_again_before_anything_new() -> None:
    world = World(3, payments=4, troubles=False, calm_depth=2)
    world.run(until=lambda: world.settled == 2)
    world.evm.reorg(world.evm.head - GENESIS + 1, keeps=0.0)
    assert world.evm.paid == ()
    world.run()
    world.check()
    assert world.settled == 6


def test_what_a_deep_reorg_took_with_the_change_of_owners_behind_it_is_signed_by_the_old_owners() -> None:
    """The first agent came with the second settlement: it is a member, and once more no owner."""
    world = World(3, payments=4, troubles=False, calm_depth=2)
    world.run(until=lambda: world.settled == 2)
    world.evm.reorg(world.evm.head - GENESIS + 1, keeps=0.0)
    for agent in world.agents:
        agent.node.estimate = as_the_safe(world, agent.node)  # type: ignore[method-assign]
    live = world.live

    def live_on() -> None:
        live()
        world.evm.owners = AGENTS if world.evm.blocks[-1].safe_nonce >= 2 else AGENTS[1:]

    world.live = live_on  # type: ignore[method-assign]
    live_on()
    world.run()
    world.check()
    assert world.settled == 6


def as_the_safe(world: World, node: Node) -> Any:
    """A signature of somebody who is no owner is refused."""
    truth = node.estimate

    async def estimate(call: Any, sender: Address) -> int:
        if not {who for who, _ in world.state.signatures} <= set(world.evm.owners):
            raise CallReverted("GS026")
        return await truth(call, sender)

    return estimate


def test_one_account_has_one_transaction_in_flight_whatever_send_raw_says() -> None:
    for seed in range(12):
        world = World(seed, payments=3)
        world.loss = 0.9
        world.run()
        world.check()
        by_account = {(tx.sender, tx.nonce) for block in world.evm.blocks for tx, _ in block.included}
        for agent in AGENTS:
            used = sorted(nonce for sender, nonce in by_account if sender == agent)
            assert used == list(range(len(used)))


# ---- negative controls: a settlement with a piece left out must be caught


def _forget_unsettled(state: Any, intent: Intent) -> Any:
    return replace(state, intent=intent, unsettled=(intent,), signatures=(), settlement=None)


async def _push_once(self: SafeSettler, intent: Intent, call: Any) -> None:
    if not self._sent:
        await self._send_new(intent, call, await self._chain.transaction_count(self._signer.address, "latest"), None)


async def _push_blindly(self: SafeSettler, intent: Intent, call: Any) -> None:
    """At a nonce of its own each time, never looking for what was sent."""
    nonce = await self._chain.transaction_count(self._signer.address, "latest") + len(self._sent)
    await self._send_new(intent, call, nonce, None)


def _no_review(state: Any, votes: Votes[Any]) -> Any:
    return Outcome("AGAIN", state) if len(votes) >= QUORUM else None


def _believe_one(state: Any, votes: Votes[Any]) -> Any:
    return keep_settlement(state, Votes.of(sorted(votes.items(), key=lambda pair: repr(pair[1]))[-1:], n=1))


async def _wait_for_nothing(ctx: Any, state: Any) -> Report:
    return Report(True, await ctx.settler.outcome(state.unsettled[:1]))


async def _intend_anything(ctx: Any, state: Any, *calls: Any) -> Intent:
    """At the next nonce, whatever a reorg took away."""
    if not state.unsettled:
        return Intent(calls, *await ctx.settler.next_nonce())
    return Intent(calls, max(state.reached, state.unsettled[0].nonce), (await ctx.settler.newest())[1])


_settled, _intend = rounds_settle._settled, intend  # before a test replaces them


async def _intend_twice(ctx: Any, state: Any, *calls: Any) -> Intent:
    """Calls that may still happen at another nonce are no matter."""
    intent = await _intend(ctx, state, *calls)
    is_other = state.unsettled and intent.nonce < state.used and bool(intent.calls)
    return Intent(calls, state.reached, intent.block) if is_other else intent


async def _never_gone(ctx: Any, state: Any) -> str:
    return "SOUND" if await ctx.settler.can_succeed(state.intent) else "FAILS"


def _forget_what_was_final(state: Any, settlement: Settlement) -> Any:
    outcome = _settled(state, settlement)
    return Outcome(outcome.event, replace(outcome.state, remembered=()))


MOST_SEEDS = 60
HOST = "quorate.host.settler.SafeSettler"
MUTANTS: dict[str, tuple[str, Any]] = {
    "an outcome counts before its depth": (f"{HOST}._deep", lambda self, head: head),
    "what was dropped is not sent again": (f"{HOST}._push", _push_once),
    "a new nonce for every try": (f"{HOST}._push", _push_blindly),
    "one agent's word for the outcome is enough": ("confirm.settle", _believe_one),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_settlement_with_a_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, fault = MUTANTS[name]
    if where == "confirm.settle":
        monkeypatch.setitem(confirm.__dict__, "settle", fault)
    else:
        monkeypatch.setattr(where, fault)
    monkeypatch.setattr("tests.simulation.test_settlement.LIMIT_S", 700)
    assert_caught()


AHEAD, DEEP_AHEAD = {"ahead": True}, {"ahead": True, "deep": True}
MUTANTS_AHEAD: dict[str, tuple[dict[str, bool], str, Any]] = {
    "what is mined counts as final": (AHEAD, "collect.act", _wait_for_nothing),
    "a nonce that a reorg took is not restored": (AHEAD, "intend", _intend_anything),
    "calls that may still happen are agreed on again": (AHEAD, "intend", _intend_twice),
    "nobody looks whether the nonce before is gone": (AHEAD, "review.act", _never_gone),
    "what was final is not remembered": (DEEP_AHEAD, "_settled", _forget_what_was_final),
}


@pytest.mark.parametrize("name", MUTANTS_AHEAD)
def test_a_pipeline_with_a_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, where, fault = MUTANTS_AHEAD[name]
    if where.endswith(".act"):
        monkeypatch.setitem({"collect.act": collect, "review.act": review}[where].__dict__, "act", fault)
    elif where == "_settled":
        monkeypatch.setattr("quorate.rounds.settle._settled", fault)
    else:
        monkeypatch.setattr("tests.simulation.test_settlement.intend", fault)
    monkeypatch.setattr("tests.simulation.test_settlement.LIMIT_S", 700)
    assert_caught(**options)


def assert_caught(**options: Any) -> None:
    for seed in range(MOST_SEEDS):
        try:
            settle(seed, **options)
        except (AssertionError, ChainError):
            return
    pytest.fail(f"{MOST_SEEDS} seeds did not show it")


def test_a_fee_that_is_never_raised_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{HOST}._replace", AsyncMock(return_value=False))
    with pytest.raises(AssertionError):
        test_after_a_fee_spike_a_stuck_transaction_is_free_in_three_attempts(10, goes_ahead=False)


def test_what_fails_for_ever_and_is_never_cancelled_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(review.__dict__, "settle", _no_review)
    with pytest.raises(AssertionError, match="does not end"):
        test_a_payment_that_can_no_longer_succeed_is_cancelled_at_its_own_nonce()


def test_a_service_that_forgets_older_intents_of_a_nonce_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.test_settlement.with_intent", _forget_unsettled)
    with pytest.raises(AssertionError, match="paid twice"):
        test_a_payment_whose_signatures_came_too_late_and_leaked_is_made_once()


def test_a_service_that_does_not_restore_what_was_final_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.test_settlement.intend", _intend_anything)
    with pytest.raises(AssertionError, match="the agents say"):
        test_payments_that_were_final_and_are_gone_are_made_again_before_anything_new()
