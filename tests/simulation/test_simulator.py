"""The simulator: that it repeats itself, that what it looks for is there to be found, and that it finds it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from quorate.testing.campaign import load_subject, plan_of, run_campaign, run_workers, shrink
from quorate.testing.consensus import EPOCH_S
from quorate.testing.faults import FAULTS, Plan
from quorate.testing.loop import Stuck, run_virtual
from quorate.testing.oracles import INVARIANTS
from quorate.testing.planted import BUGS, hunt
from quorate.testing.simulation import CRASH_POINTS, simulate

SERVICES = Path(__file__).parents[2] / "services"
HELLO, DELEGATE = SERVICES / "hello_world", SERVICES / "delegate"


@pytest.mark.integration
@pytest.mark.needs("python")
def test_the_same_seed_leaves_the_same_trace_in_processes_with_other_hash_seeds() -> None:
    request = {"folder": str(HELLO), "seeds": [1, 5]}
    first, second = (list(run_workers([request], hash_seed=seed)) for seed in (11, 4242))
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
    plan = Plan(3, 4, ("equivocating proposer", "partition"), (0, 1), 10.0)
    found = {one.invariant for one in simulate(subject, plan).violations}
    assert "agreement" in found
    alone = Plan(3, 4, ("equivocating proposer", "partition"), (0,), 10.0)
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


def test_there_is_a_planted_bug_for_each_requirement_of_abci() -> None:
    assert len(BUGS) >= 40
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {bug.requirement for bug in BUGS} >= {str(number) for number in range(1, 14)}


def test_faults_crash_points_and_invariants_are_as_many_as_promised() -> None:
    assert len(FAULTS) >= 25
    assert len(INVARIANTS) >= 25
    assert len(CRASH_POINTS) >= 12


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
