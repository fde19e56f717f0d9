"""What runs an agent's acts: repeated when the world fails, ended with their round, never a vote in another's place."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quorate.abci import Plan, SignedPayload, Target, UnsignedPayload, opening_of, payload_for
from quorate.abci.machine import tick_for
from quorate.chain import Wallet
from quorate.errors import ChainError, ConfigError, ModelError, ServiceError, TimedOut, Unreachable
from quorate.fsm import BACK, Interrupt, Period, Service, Settled, State, agree
from quorate.host.agreed import Agreed
from quorate.host.decision_maker import AlreadySigned, Limits, NotAgreed, OverLimit, SigningRequest
from quorate.host.journal import Journal
from quorate.host.runner import Runner
from quorate.offences import Offence
from quorate.rounds import same
from quorate.units import Address, Hash, Height, PeriodNumber, RoundNumber

WALLET = Wallet.from_key(bytes([7]) * 32)
OTHERS = [Wallet.from_key(bytes([n]) * 32).address for n in range(1, 4)]
CHAIN = "test-1"


@dataclass(frozen=True)
class Guess(State):
    answer: int = 0
    hint: int = 0


@agree(same("answer"))
async def guess(ctx: Any, state: Guess) -> int:
    return int(await ctx.script(state))


@agree(same("answer"))
async def again(ctx: Any, state: Guess) -> int:
    return int(await ctx.script(state))


SERVICE = Service(
    "guessing", state=Guess, start=guess, transitions={(guess, "DONE"): again, (again, "DONE"): guess}, otherwise=guess
)


def period(sequence: int = 1, **state: Any) -> Period:
    return replace(Period.start(SERVICE, [WALLET.address, *OTHERS], Guess(**state)), sequence=sequence)


class ScriptedSigner:
    """Signs like the decision maker, with its rule about far rounds."""

    address = WALLET.address

    def __init__(self, agreed: Agreed) -> None:
        self._agreed = agreed

    async def sign(self, request: SigningRequest) -> bytes:
        assert isinstance(request, UnsignedPayload)
        now = self._agreed.period
        if now is not None and not now.sequence <= request.sequence <= now.sequence + 2:
            raise NotAgreed("a far round")
        return WALLET.sign_digest(request.digest())


class Ctx:
    def __init__(self, script: Callable[[Guess], Awaitable[int]]) -> None:
        self.script = script


class Stage:
    """A runner whose acts do what the test says, and what came of them."""

    def __init__(self, folder: Path) -> None:
        self.agreed = Agreed()
        self.script: Callable[[Guess], Awaitable[int]] = self._answer
        self.offered: list[SignedPayload] = []
        self.asked: list[SignedPayload] = []
        self.acts = 0
        self._events = folder / "events.jsonl"
        self.journal = Journal(self._events, "agent-1")
        self.runner = Runner(
            chain_id=CHAIN,
            signer=ScriptedSigner(self.agreed),  # type: ignore[arg-type]
            agreed=self.agreed,
            journal=self.journal,
            context_of=lambda _: Ctx(self._run),  # type: ignore[arg-type,return-value]
        )
        self.runner.connect(self)

    def offer(self, payload: SignedPayload) -> None:
        self.offered.append(payload)

    def ask(self, request: SignedPayload) -> None:
        self.asked.append(request)

    def ask_upgrade(self, ask: SignedPayload) -> None:
        self.offered.append(ask)

    async def _run(self, state: Guess) -> int:
        self.acts += 1
        return await self.script(state)

    async def _answer(self, state: Guess) -> int:
        return 40 + state.hint

    def events(self, kind: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self._events.read_text().splitlines()]
        return [event for event in events if event["kind"] == kind]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    yield made
    await made.runner.close()
    made.journal.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the runner wanted to sleep; it does not really."""
    wanted: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        wanted.append(seconds)
        await sleep(0)

    monkeypatch.setattr("asyncio.sleep", at_once)
    return wanted


async def calm(times: int = 20) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(times):
        passed = loop.create_future()
        loop.call_soon(passed.set_result, None)
        await passed


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await calm(1)


def failing(*errors: Exception) -> Callable[[Guess], Awaitable[int]]:
    """An act that fails so, one error after the other, then answers 42."""
    left = iter(errors)

    async def act(state: Guess) -> int:
        if (error := next(left, None)) is not None:
            raise error
        return 42

    return act


async def forever(state: Guess) -> int:
    await asyncio.Event().wait()
    return 0


async def test_an_act_is_signed_for_its_round_and_offered_once(stage: Stage) -> None:
    now = period()
    for committed in (False, True, True, False):
        stage.runner.opened(now, committed)
    await until(lambda: bool(stage.offered))
    await calm()
    assert stage.acts == 1
    (payload,) = stage.offered
    assert payload.is_signed_by_sender(CHAIN)
    assert (payload.sender, payload.sequence, payload.round) == (WALLET.address, 1, "GuessRound")
    assert (payload.body, payload.opening) == (b"40", opening_of(now))


async def test_votes_that_come_in_do_not_start_the_act_again(stage: Stage) -> None:
    stage.runner.opened(period(), True)
    stage.runner.opened(period().deliver(OTHERS[0], 1, b"3"), True)
    await until(lambda: bool(stage.offered))
    await calm()
    assert stage.acts == 1


async def test_an_act_is_repeated_with_growing_pauses_while_chain_or_operators_fail(
    stage: Stage, pauses: list[float]
) -> None:
    errors = [Unreachable("no node"), TimedOut("no answer"), ChainError("x"), ModelError("y"), *[ChainError("z")] * 3]
    stage.script = failing(*errors)
    stage.runner.opened(period(), True)
    await until(lambda: bool(stage.offered))
    assert stage.offered[0].body == b"42"
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    told = stage.events("waiting")
    assert [event["reason"] for event in told] == [error.args[0] for error in errors]
    assert {event["for"] for event in told} == {"GuessRound"}
    assert not stage.runner.failure.done()


async def test_an_act_is_cancelled_when_its_round_is_over(stage: Stage) -> None:
    stage.script = forever
    stage.runner.opened(period(1), True)
    await until(lambda: stage.acts == 1)
    (task,) = stage.runner._acts.values()
    stage.script = stage._answer
    stage.runner.opened(period(2), True)
    await until(lambda: bool(stage.offered))
    assert task.cancelled()
    assert [payload.sequence for payload in stage.offered] == [2]
    assert not stage.runner.failure.done()


async def test_an_act_that_pauses_after_an_error_is_cancelled_with_its_round(stage: Stage) -> None:
    stage.script = failing(*[ChainError("down")] * 1000)
    stage.runner.opened(period(1), True)
    await until(lambda: bool(stage.events("waiting")))
    (task,) = stage.runner._acts.values()
    stage.runner.opened(period(2), True)
    await calm()
    assert task.cancelled()


async def test_an_answer_that_comes_after_the_round_is_not_offered(stage: Stage) -> None:
    """The quorum went on between the act's end and its signature."""
    stage.runner.opened(period(1), False)
    stage.agreed.commit(period(2))
    await until(lambda: stage.acts == 1)
    await calm()
    assert not stage.offered
    assert not stage.runner.failure.done()


@pytest.mark.parametrize("error", [ValueError("a bug"), ServiceError("a bug"), OSError("disk full"), KeyError("a bug")])
async def test_a_fault_of_the_services_own_stops_the_agent(stage: Stage, error: Exception) -> None:
    stage.script = failing(error)
    stage.runner.opened(period(), True)
    assert await asyncio.wait_for(asyncio.shield(stage.runner.failure), 5) is error
    assert not stage.offered
    (told,) = stage.events("error")
    assert told["message"] == f"GuessRound#1: {error!r}"


async def test_the_first_of_several_failures_is_kept(stage: Stage) -> None:
    stage.script = failing(ValueError("first"), ValueError("second"))
    stage.runner.opened(period(1), True)
    await until(stage.runner.failure.done)
    stage.runner.opened(period(2), True)
    await until(lambda: len(stage.events("error")) == 2)
    assert str(stage.runner.failure.result()) == "first"


async def test_an_act_that_answers_another_type_than_it_says_stops_the_agent(stage: Stage) -> None:
    broken = replace(guess, act=lambda ctx, state: _text())
    stage.runner.opened(replace(period(), round=broken), True)
    assert isinstance(await asyncio.wait_for(asyncio.shield(stage.runner.failure), 5), ServiceError)


async def _text() -> Any:
    return "forty"


async def test_what_the_owner_forbids_costs_the_round_and_not_the_agent(stage: Stage) -> None:
    stage.script = failing(OverLimit("the owner does not allow it"))
    stage.runner.opened(period(1), True)
    await until(lambda: bool(stage.events("error")))
    stage.runner.opened(period(2), True)
    await until(lambda: bool(stage.offered))
    assert [payload.sequence for payload in stage.offered] == [2]
    assert not stage.runner.failure.done()


# ---- blocks that are proposed and not decided


async def test_a_speculated_opening_that_is_not_decided_does_not_vote_in_the_decided_ones_place(stage: Stage) -> None:
    proposed, decided = period(2, hint=1), period(2, hint=2)
    assert opening_of(proposed) != opening_of(decided)
    stage.runner.opened(period(1), True)
    stage.runner.opened(proposed, False)
    await until(lambda: len(stage.offered) == 2)
    stage.runner.opened(decided, True)
    await until(lambda: len(stage.offered) == 3)
    by_opening = {payload.opening: payload.body for payload in stage.offered[1:]}
    assert by_opening == {opening_of(proposed): b"41", opening_of(decided): b"42"}


async def test_the_act_of_an_opening_that_was_proposed_in_vain_is_cancelled(stage: Stage) -> None:
    """Else it would go on asking models, and a keeper would send twice."""
    stage.script = forever
    stage.runner.opened(period(1), True)
    stage.runner.opened(period(2, hint=1), False)
    await until(lambda: stage.acts == 2)
    stage.runner.opened(period(2, hint=2), True)
    await until(lambda: stage.acts == 3)
    assert list(stage.runner._acts) == [(2, opening_of(period(2, hint=2)))]


async def test_an_early_act_that_needs_the_decision_goes_on_at_the_commit_without_a_pause(
    stage: Stage, pauses: list[float]
) -> None:
    async def wants_commit(state: Guess) -> int:
        now = stage.agreed.period
        if now is None or now.sequence < 2:
            raise NotAgreed("no quorum stands behind it yet")
        return 42

    stage.runner.opened(period(1), True)
    await until(lambda: bool(stage.offered))
    stage.script = wants_commit
    stage.runner.opened(period(2), False)
    await calm()
    assert len(stage.offered) == 1
    stage.runner.opened(period(2), True)
    await until(lambda: len(stage.offered) == 2)
    assert not pauses
    assert not stage.events("waiting")


async def test_what_is_refused_though_it_was_decided_is_told_and_tried_again(stage: Stage, pauses: list[float]) -> None:
    stage.script = failing(NotAgreed("another intent"))
    stage.runner.opened(period(1), True)
    await until(lambda: bool(stage.offered))
    assert pauses == [0.5]
    assert [event["reason"] for event in stage.events("waiting")] == ["another intent"]


async def test_a_round_that_is_over_is_not_acted_in(stage: Stage) -> None:
    stage.runner.opened(period(5), True)
    stage.runner.opened(period(4), False)
    await until(lambda: bool(stage.offered))
    await calm()
    assert stage.acts == 1


async def test_while_blocks_are_caught_up_with_what_is_agreed_keeps_pace(stage: Stage) -> None:
    """`opened` pauses then; a tick for the new round was refused as one of a far round, and that ended the agent."""
    stage.runner.opened(period(1), True)
    for sequence in range(2, 9):
        stage.runner.settled(Settled("GuessRound", "DONE", sequence - 1), period(sequence), height=sequence)
    tick = tick_for(CHAIN, period(8), 0)
    assert tick.signed(WALLET.address, await stage.runner.sign_tick(tick)).is_signed_by_sender(CHAIN)


async def test_closing_ends_every_act(stage: Stage) -> None:
    stage.script = forever
    for sequence, committed in ((1, True), (2, False), (3, False)):
        stage.runner.opened(period(sequence), committed)
    await until(lambda: stage.acts == 3)
    tasks = list(stage.runner._acts.values())
    await stage.runner.close()
    assert all(task.cancelled() for task in tasks)


@pytest.mark.parametrize("order", list(itertools.permutations([(2, 1, False), (2, 2, False), (2, 2, True)])))
async def test_whatever_order_proposals_and_decision_come_in_the_decided_one_is_answered(
    stage: Stage, order: tuple[tuple[int, int, bool], ...]
) -> None:
    stage.runner.opened(period(1), True)
    for sequence, hint, committed in order:
        stage.runner.opened(period(sequence, hint=hint), committed)
        await calm()
    answered = {payload.opening: payload.body for payload in stage.offered}
    assert answered[opening_of(period(2, hint=2))] == b"42"


def test_limits_allow_nothing_unless_told() -> None:
    limits = Limits(safe=Address("0x" + "1" * 40), chain_id=1)
    assert (limits.calls, limits.max_value) == (frozenset(), 0)


@agree(same("answer"))
async def halted(ctx: Any, state: Guess) -> int:
    return int(await ctx.script(state))


HALTING = Service(
    "halting", state=Guess, start=guess, otherwise=guess, interrupts=(Interrupt("HALT", halted),),
    transitions={(guess, "DONE"): guess, (halted, "DONE"): BACK, (halted, "NO_MAJORITY"): halted,
                 (halted, "ROUND_TIMEOUT"): halted},
)  # fmt: skip


def halting() -> Period:
    return Period.start(HALTING, [WALLET.address, *OTHERS], Guess())


async def test_a_request_to_interrupt_goes_out_at_once_beside_the_agents_part(stage: Stage) -> None:
    stage.script = forever
    stage.runner.opened(halting(), committed=True)
    await until(lambda: stage.acts == 1)
    stage.runner.ask("HALT")
    await until(lambda: bool(stage.asked))
    assert stage.asked[0].body == b"!HALT"
    assert stage.asked[0].is_signed_by_sender(CHAIN)
    assert not stage.offered


async def test_what_is_asked_for_is_asked_for_again_in_each_round_in_which_it_does_not_stand(stage: Stage) -> None:
    first = halting()
    stage.runner.opened(first, committed=True)
    await until(lambda: bool(stage.offered))
    stage.runner.ask("HALT")
    await until(lambda: len(stage.asked) == 1)
    counted = replace(first.deliver(WALLET.address, 1, b"!HALT"), sequence=2)
    stage.runner.opened(counted, committed=True)
    await until(lambda: len(stage.offered) == 2)
    assert [one.sequence for one in stage.asked] == [1]
    stage.runner.opened(replace(first, sequence=3), committed=True)  # the period ended, and requests with it
    await until(lambda: len(stage.offered) == 3)
    assert [one.sequence for one in stage.asked] == [1, 3]
    assert stage.acts == 3


async def test_what_has_begun_or_is_withdrawn_is_asked_for_no_more(stage: Stage) -> None:
    first = halting()
    stage.runner.opened(first, committed=True)
    for end in ("begun", "withdrawn"):
        stage.runner.ask("HALT")
        assert stage.runner.asked("HALT", first).is_wanted
        if end == "begun":
            inside = replace(first, sequence=2, interrupted=(("HALT", "GuessRound"),))
            stage.runner.settled(Settled("GuessRound", "HALT", 1), inside, height=5)
            assert stage.runner.asked("HALT", inside).taken == 2
            stage.runner.ask("HALT")  # it is going on
            stage.runner.settled(Settled("HaltedRound", "DONE", 2), replace(first, sequence=3), height=6)
        else:
            stage.runner.withdraw("HALT")
        assert not stage.runner.asked("HALT", first).is_wanted


async def test_it_is_known_who_asks_and_how_many_are_needed(stage: Stage) -> None:
    first = halting()
    stage.runner.opened(first, committed=True)
    now = first.deliver(OTHERS[0], 1, b"!HALT")
    found = stage.runner.asked("HALT", now)
    assert (found.standing, found.quorum, found.members) == ((OTHERS[0],), 3, first.members)
    assert (found.is_wanted, found.is_going_on, found.taken, found.sequence) == (False, False, 0, 1)


async def test_what_nobody_can_ask_for_is_refused_with_what_can_be(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="has not seen a block yet"):
        stage.runner.ask("HALT")
    stage.runner.opened(halting(), committed=True)
    for say in (stage.runner.ask, stage.runner.withdraw, lambda event: stage.runner.asked(event, halting())):
        with pytest.raises(ConfigError, match="halting has no interrupt 'HLAT'") as refused:
            say("HLAT")
        assert refused.value.fix == "It has HALT."
    stage.runner.opened(period(2), committed=True)
    with pytest.raises(ConfigError, match="guessing has no interrupt 'HALT'"):
        stage.runner.ask("HALT")


async def test_an_operator_asks_for_another_version_in_the_agents_name(stage: Stage) -> None:
    plan = Plan(Target(2, "ab" * 32))
    with pytest.raises(ConfigError, match="no block yet"):
        await stage.runner.ask_upgrade(plan)
    stage.agreed.commit(period(sequence=5))
    await stage.runner.ask_upgrade(plan)
    (ask,) = stage.offered
    assert (ask.sender, ask.sequence, ask.is_signed_by_sender(CHAIN)) == (WALLET.address, 5, True)
    assert ask.opening.hex() == SERVICE.spec_hash, "it leaves this version, and no other one"
    with pytest.raises(ConfigError, match="over 1"):
        await stage.runner.ask_upgrade(Plan(Target(1, "ab" * 32)))


async def test_what_was_signed_in_a_former_life_goes_out_in_place_of_what_the_act_gives_now(stage: Stage) -> None:
    """Two payloads for one opening would be an equivocation, and on record for good."""
    now = period()
    before = payload_for(CHAIN, now, b"7")
    signed = before.signed(WALLET.address, WALLET.sign_digest(before.digest()))

    class Remembers(ScriptedSigner):
        async def sign(self, request: SigningRequest) -> bytes:
            raise AlreadySigned(signed)

    stage.runner._signer = Remembers(stage.agreed)  # type: ignore[assignment]
    stage.runner.opened(now, True)
    await asyncio.sleep(0.01)
    assert stage.offered == [signed]


async def test_an_offence_is_told_and_its_proof_kept(stage: Stage) -> None:
    kept: dict[str, bytes] = {}
    stage.runner._keep = kept.__setitem__
    evidence = Hash("0x" + "11" * 32)
    offence = Offence("equivocation", OTHERS[0], Height(9), RoundNumber(7), PeriodNumber(1), evidence)
    stage.runner.offended(offence, b"proof")
    (event,) = stage.events("offence")
    assert (event["what"], event["member"], event["sequence"]) == ("equivocation", OTHERS[0], 7)
    assert kept == {f"{evidence}.abi": b"proof"}
