"""The in-memory network itself: what it simulates, and that it sees the bugs that it is there for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from quorate import Address, Bps, Context, Outcome, Service, ServiceError, State, Votes, agree, each, same
from quorate.fsm import Settled, codec
from quorate.rounds import pause, register
from quorate.testing import Diverged, Network, Stalled, agent_address


@dataclass(frozen=True)
class Survey(State):
    estimates: tuple[tuple[Address, Bps], ...] = ()
    median: Bps = Bps(0)


def settle_median(state: Survey, votes: Votes[Bps]) -> Outcome[Literal["DONE"], Survey] | None:
    if len(votes) < votes.quorum:
        return None
    ranked = sorted(votes.values())
    return Outcome("DONE", replace(state, estimates=votes.items(), median=ranked[(len(ranked) - 1) // 2]))


@agree(settle_median, timeout_s=30)
async def estimate(ctx: Any, state: Survey) -> Bps:
    await ctx.sleep(ctx.config.get("think_s", 0.1))
    return Bps(5_000 + int(ctx.me, 16))


@agree(same("median"), timeout_s=30)
async def confirm(ctx: Context, state: Survey) -> Bps:
    return state.median


SURVEY = Service("survey", state=Survey, start=register, otherwise=register, transitions={
    (register, "DONE"): estimate, (estimate, "DONE"): confirm, (confirm, "DONE"): pause, (pause, "DONE"): estimate,
})  # fmt: skip


def survey(**changes: Any) -> Network:
    return Network(SURVEY, **{"config": {}, **changes})


async def history(seed: int) -> tuple[list[Settled], bytes, int]:
    async with survey(seed=seed) as net:
        await net.run_until(period=3)
        return net.rounds, net.period.digest(), net.clock.now_ms


async def test_a_seed_replays_exactly() -> None:
    assert await history(7) == await history(7)


async def test_every_seed_orders_otherwise_and_all_agents_agree_in_each() -> None:
    ends = set()
    for seed in range(20):
        async with survey(seed=seed) as net:
            await net.run_until(round="confirm")
            assert len(set(net.digests().values())) == 1
            ends.add(tuple(sender for sender, _ in net.state.estimates))
            await net.run_until(period=2)
            assert not net.violations
    assert len(ends) > 1  # the seeds do lead to different quorums


async def test_one_liar_cannot_leave_the_honest_range() -> None:
    for lie, seed in itertools.product((0, 10_000), range(5)):
        async with survey(seed=seed) as net:
            await net.run_until(round="estimate")
            net.lie(2, lambda period, lie=lie: [codec.encode(lie)])  # type: ignore[misc]
            await net.run_until(round="confirm", timeout_s=90)
            assert 5_001 <= net.state.median <= 5_004
            assert not net.violations


async def test_garbage_and_second_payloads_harm_nobody() -> None:
    async with survey() as net:
        await net.run_until(round="estimate")
        net.lie(3, lambda period: [b"\xff", b"[" * 5_000, b"1.5", codec.encode(1), codec.encode(2)])
        await net.run_until(period=3)
        assert not net.violations
        assert {one.event for one in net.rounds} == {"DONE"}


async def test_an_honest_agent_that_returns_is_heard_again() -> None:
    async with survey() as net:
        net.lie(3, lambda period: [])
        with pytest.raises(Stalled, match=r"not heard of: \[3\]"):
            await net.run_until(round="estimate", timeout_s=100)
        net.lie(3, None)
        await net.run_until(period=1)


async def test_a_crashed_agent_replays_what_it_missed_from_its_disk() -> None:
    async with survey() as net:
        await net.run_until(round="estimate")
        net.crash(1)
        await net.run_until(period=3)
        net.restart(1)
        assert len(net.digests()) == 4
        assert len(set(net.digests().values())) == 1
        await net.run_until(period=5)
        assert net.crashed == []


async def test_a_round_can_be_crashed_in_and_returned_to() -> None:
    async with survey(config={"think_s": 5}) as net:
        await net.run_until(round="estimate")
        for agent in range(4):
            net.crash(agent)
            net.restart(agent)
        await net.run_until(period=1)
        assert {one.event for one in net.rounds} == {"DONE"}


async def test_without_a_quorum_nothing_happens_until_one_returns() -> None:
    async with survey() as net:
        await net.run_until(round="estimate")
        net.crash(0)
        net.crash(net.agents[3])
        height = net.height
        with pytest.raises(Stalled, match=r"nothing can happen.*down: \[0, 3\] \(a quorum is 3 of 4\)"):
            await net.run_until(period=1)
        assert net.height == height
        net.restart(3)
        await net.run_until(period=2)


async def test_the_last_state_can_be_read_when_all_are_down() -> None:
    async with survey() as net:
        await net.run_until(round="estimate")
        for agent in range(4):
            net.crash(agent)
        assert net.period.round is estimate
        assert net.digests() == {}


async def test_deadlines_run_in_virtual_time() -> None:
    async with survey(config={"think_s": 10**6}) as net:
        await net.run_until(settled=("estimate", "ROUND_TIMEOUT"))
        assert 30 <= net.time_s < 31


async def test_the_chain_sleeps_when_there_is_no_news() -> None:
    async with survey(config={"think_s": 20}) as net:
        await net.run_until(round="estimate")
        before = net.height
        await net.run_until(round="confirm")
        assert net.height - before <= 6  # a block each 30 ms would be over 600


async def test_a_crash_or_restart_out_of_turn_is_the_tests_error() -> None:
    async with survey() as net:
        with pytest.raises(ServiceError, match="not down"):
            net.restart(0)
        net.crash(0)
        with pytest.raises(ServiceError, match="already down"):
            net.crash(0)


async def test_contexts_can_be_given_to_all_or_to_each() -> None:
    @agree(each("estimates"), timeout_s=5)
    async def read(ctx: Any, state: Survey) -> Bps:
        return Bps(await ctx.chain(ctx.me))

    service = Service("reader", state=Survey, start=read, transitions={(read, "DONE"): read}, otherwise=read)

    async def ask(me: Address) -> int:
        return int(me, 16)

    for context in ({"chain": ask}, lambda me: {"chain": ask}):
        async with Network(service, context=context) as net:
            await net.run_until(when=lambda net: len(net.state.estimates) >= 3)
            assert all(bps == int(sender, 16) for sender, bps in net.state.estimates)
    async with Network(service) as net:
        with pytest.raises(Stalled, match=r"this act wants ctx\.chain; pass Network\(..., context="):
            await net.run_until(settled=("read", "DONE"), timeout_s=20)


async def test_a_scripted_beacon_replaces_the_real_one() -> None:
    seen = []

    @agree(same("median"))
    async def roll(ctx: Context, state: Survey) -> Bps:
        seen.append(await ctx.beacon())
        return Bps(seen[-1])

    service = Service("roller", state=Survey, start=roll, transitions={(roll, "DONE"): roll}, otherwise=roll)
    async with Network(service, beacon=lambda period: 7) as net:
        await net.run_until(settled=(roll, "DONE"))
        assert net.state.median == 7
    assert set(seen) == {7}


async def test_an_act_that_fails_is_silence_and_is_told() -> None:
    @agree(same("median"), timeout_s=5)
    async def fail(ctx: Context, state: Survey) -> Bps:
        if ctx.me == agent_address(0):
            raise OSError("no route to host")
        return Bps(1)

    service = Service("failing", state=Survey, start=fail, transitions={(fail, "DONE"): fail}, otherwise=fail)
    async with Network(service) as net:
        await net.run_until(settled=("fail", "DONE"))
        assert net.failures[0][:2] == (net.agents[0], "FailRound")
        with pytest.raises(Stalled, match=r"agent 0 failed in FailRound: OSError\('no route to host'\)"):
            await net.run_until(settled=("fail", "ROUND_TIMEOUT"), timeout_s=5)


async def test_an_act_that_breaks_its_type_ends_the_test_at_once() -> None:
    @agree(same("median"))
    async def cheat(ctx: Context, state: Survey) -> Bps:
        return 1.5  # type: ignore[return-value]

    service = Service("cheating", state=Survey, start=cheat, transitions={(cheat, "DONE"): cheat}, otherwise=cheat)
    async with Network(service) as net:
        with pytest.raises(ServiceError, match=r"CheatRound .* act returned .*1\.5"):
            await net.run_until(settled=("cheat", "DONE"))


# Planted bugs: each must be seen.


async def test_a_rule_with_a_memory_is_seen() -> None:
    calls = itertools.count()

    def settle(state: Survey, votes: Votes[Bps]) -> Outcome[Literal["DONE"], Survey] | None:
        return Outcome("DONE", replace(state, median=Bps(next(calls)))) if len(votes) >= votes.quorum else None

    bad = agree(settle)(confirm.act)
    service = Service("impure", state=Survey, start=bad, transitions={(bad, "DONE"): bad}, otherwise=bad)
    async with Network(service) as net:
        with pytest.raises(Diverged, match="honest agents differ"):
            await net.run_until(settled=("confirm", "DONE"))
        assert len(net.violations) == 1


async def test_a_rule_that_asks_the_machine_is_seen_after_a_restart() -> None:
    """The kind of bug that only replay shows: the rule reads something that was true only then."""
    weather = {"sunny": True}

    def settle(state: Survey, votes: Votes[Bps]) -> Outcome[Literal["DONE"], Survey] | None:
        return Outcome("DONE", replace(state, median=Bps(weather["sunny"] + 0))) if len(votes) >= votes.quorum else None

    bad = agree(settle)(confirm.act)
    service = Service("weather", state=Survey, start=bad, transitions={(bad, "DONE"): bad}, otherwise=bad)
    async with Network(service) as net:
        net.crash(0)
        await net.run_until(settled=("confirm", "DONE"))
        weather["sunny"] = False
        with pytest.raises(Diverged):
            net.restart(0)


async def test_a_state_that_is_not_read_back_as_it_was_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from quorate.fsm import Period

    real = Period.decode
    monkeypatch.setattr(Period, "decode", staticmethod(lambda service, data: replace(real(service, data), clock_ms=0)))
    async with survey() as net:
        with pytest.raises(Diverged, match="not read back"):
            await net.run_until(period=1)
