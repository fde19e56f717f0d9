"""The simulator: that it repeats itself, that what it looks for is there to be found, and that it finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quorate.errors import ConfigError
from quorate.testing import campaign
from quorate.testing.campaign import load_subject, plan_of, run_campaign, run_workers, shrink, worker
from quorate.testing.consensus import EPOCH_S
from quorate.testing.faults import FAULTS, Plan
from quorate.testing.loop import Stuck, run_virtual
from quorate.testing.oracles import INVARIANTS
from quorate.testing.planted import BUGS, Verdict, hunt, look, trial_subject
from quorate.testing.simulation import CRASH_POINTS, simulate

SERVICES = Path(__file__).parents[2] / "services"
HELLO, DELEGATE = SERVICES / "hello_world", SERVICES / "delegate"


@pytest.mark.integration
@pytest.mark.needs("python")
def test_the_same_seed_leaves_the_same_trace_in_processes_with_other_hash_seeds() -> None:
    request = {"folder": str(HELLO), "seeds": [1, 5]}
    heard: list[int] = []
    first, second = (list(run_workers([request], seed, heard.append)) for seed in (11, 4242))
    assert sum(heard) == 4, "each line is heard of when it comes"
    assert [line["trace"] for line in first] == [line["trace"] for line in second]
    assert len({line["trace"] for line in first}) == 2, "and another seed another one"


def test_hello_world_holds_under_the_faults_of_some_seeds() -> None:
    subject = load_subject(HELLO)
    for seed in range(4):
        report = simulate(subject, plan_of(subject, seed))
        assert not report.violations, "\n".join(report.story)
        assert report.periods >= 1


def test_the_delegate_holds_under_the_faults_of_some_seeds() -> None:
    subject = load_subject(DELEGATE)
    for seed in range(2):
        report = simulate(subject, plan_of(subject, seed))
        assert not report.violations, "\n".join(report.story)


def test_a_fork_by_more_than_a_third_of_liars_is_detected() -> None:
    """The negative control: with two of four lying, nothing may look fine."""
    subject = load_subject(HELLO)
    plan = Plan(1, 4, ("equivocating proposer", "partition"), (0, 1), 10.0)
    found = {one.invariant for one in simulate(subject, plan).violations}
    assert "agreement" in found
    alone = Plan(1, 4, ("equivocating proposer", "partition"), (0,), 10.0)
    assert not simulate(subject, alone).violations, "one of four does no harm"


def test_a_lie_that_three_of_four_agree_on_is_detected() -> None:
    subject = load_subject(HELLO)
    broken = [simulate(subject, Plan(seed, 4, ("lying payload",), (0, 1, 2), 10.0)) for seed in range(4)]
    assert any(report.violations for report in broken)


@pytest.mark.parametrize(
    "name",
    [
        "a block's time is the machine's own",
        "the next round does not count up",
        "Commit writes every other block",
        "every transaction is let into the mempool",
    ],
)
def test_a_planted_bug_is_caught(name: str) -> None:
    assert hunt(name, most=12)["seeds"] > 0


def test_the_seeds_that_catch_bugs_show_nothing_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SERVICES.parent)
    assert [look(seed) for seed in range(3)] == [""] * 3
    assert look(0, is_abroad=True) == ""


def test_a_seed_that_looks_broken_without_a_bug_makes_the_figure_worthless() -> None:
    bugs = (("one", "", 1, "agreement"), ("two", "5", 0, ""), ("three", "", 7, "(ValueError)"))
    silent = Verdict(bugs, ((0, False, ""), (1, False, "")), 1.0)
    assert (silent.planted, silent.caught, silent.median_seeds, silent.false_catches) == (3, 2, 4.0, 0)
    assert silent.figures()["by_error"] == 1
    noisy = Verdict(bugs, ((0, False, ""), (1, False, "agreement")), 1.0)
    assert (noisy.caught, noisy.false_catches) == (0, 1)


def test_there_is_a_planted_bug_for_each_requirement_of_abci() -> None:
    assert len(BUGS) >= 40
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {bug.requirement for bug in BUGS} >= {str(number) for number in range(1, 14)}


def test_faults_crash_points_and_invariants_are_as_many_as_promised() -> None:
    assert len(FAULTS) >= 25
    assert len(INVARIANTS) >= 25
    assert len(CRASH_POINTS) >= 12


def test_no_invariant_is_only_promised() -> None:
    hello = load_subject(HELLO)
    plans = [
        (hello, Plan(3, 4, ("wiped agent", "garbage snapshot"), (0,), 12.0)),
        (hello, Plan(1, 4, ("bit flip",), (), 8.0)),
        (trial_subject(), Plan(1, 4, ("clock", "rolling upgrade"), (), 8.0)),
        (load_subject(DELEGATE), Plan(0, 4, ("EVM reorg",), (), 10.0)),
    ]
    looked_at = {name for subject, plan in plans for name, times in simulate(subject, plan).checks.items() if times}
    assert looked_at == set(INVARIANTS)


def test_a_failing_seed_is_made_small_and_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = next(one for one in BUGS if one.name == "a round's clock starts with the block that opened it")
    subject = load_subject(HELLO)
    with bug.plant():
        failure = shrink(subject, HELLO, seed=1)
    assert set(failure.without) == set(plan_of(subject, 1).faults), "it fails without any fault"
    assert failure.invariants[0] == "clock starts fresh"
    assert failure.command.startswith("./quorate simulate services/hello_world --seed 1 --seeds 1 --without")
    assert any("BROKEN" in line for line in failure.story)


def test_a_campaign_sums_up_its_seeds() -> None:
    found = run_campaign(HELLO, range(1), workers=1)
    assert (found.seeds, found.violations) == (1, 0)
    assert found.periods >= 1
    assert set(found.faults) <= set(FAULTS)


def test_a_kind_of_fault_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no kind of fault named 'reorgs'") as refused:
        run_campaign(HELLO, (0,), without=("reorgs",))
    assert refused.value.fix == "Did you mean 'EVM reorg'?"


def test_a_campaign_that_runs_each_seed_twice_names_those_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(requests: Sequence[Mapping[str, Any]], hash_seed: int, on_lines: object) -> Iterator[dict[str, Any]]:
        for line in worker({**requests[0], "seeds": [0, 2]}):
            yield {**line, "trace": f"{line['trace']} {hash_seed}"} if line["seed"] else line

    monkeypatch.setattr(campaign, "run_workers", run)
    assert run_campaign(HELLO, (0, 2), workers=1, twice=True).differing == (2,)
    assert run_campaign(HELLO, (0, 2), workers=1).differing == ()


def test_faults_go_on_until_as_many_rounds_have_ended_as_were_asked_for() -> None:
    subject = load_subject(HELLO)
    assert simulate(subject, plan_of(subject, 2)).rounds < 40
    assert simulate(subject, plan_of(subject, 2, rounds=45)).rounds >= 45


def test_an_agent_that_lost_everything_takes_a_snapshot_and_believes_no_liar() -> None:
    subject = load_subject(HELLO)
    reports = [simulate(subject, Plan(seed, 4, ("wiped agent", "garbage snapshot"), (0,), 12.0)) for seed in (3, 5)]
    assert not [one.violations for one in reports if one.violations]
    assert any("takes the snapshot" in line for one in reports for line in one.story)


def test_virtual_time_costs_nothing_and_keeps_its_order() -> None:
    woken = []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(seconds)

    async def race() -> float:
        await asyncio.gather(sleep(3600), sleep(0.5), sleep(86400))
        return asyncio.get_running_loop().time()

    assert run_virtual(race()) == 86400
    assert woken == [0.5, 3600, 86400]
    assert EPOCH_S > 86400


def test_timers_of_one_moment_run_in_the_order_in_which_they_were_set() -> None:
    rang: list[int] = []

    async def wait() -> None:
        for number in range(20):
            asyncio.get_running_loop().call_at(7.0, rang.append, number)
        await asyncio.sleep(8)

    run_virtual(wait())
    assert rang == list(range(20))


def test_timers_that_are_always_due_do_not_hold_a_run_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.testing.loop._SPIN_LIMIT", 100)

    async def ring() -> None:
        loop = asyncio.get_running_loop()
        while True:
            woken = loop.create_future()
            loop.call_at(loop.time(), woken.set_result, None)
            await woken

    with pytest.raises(Stuck, match="time stands still"):
        run_virtual(ring())


def test_a_run_in_which_nothing_can_happen_ends() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(Stuck, match="nothing can happen"):
        run_virtual(wait_for_ever())
    with pytest.raises(Stuck, match="time stands still"):
        run_virtual(spin())
