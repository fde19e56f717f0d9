"""A fixed sample of what befalls real nodes. All of it, alone and in pairs, for as long as one likes: `tests.fault`."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chain_of_agents.hosted import HOME
from tests.fault.chain import Chain
from tests.fault.crashes import crash_at
from tests.fault.perturbations import ALL, AgentKill, can_mount
from tests.fault.settling import DeadRpc, SettlingChain, StartWithoutEvm, settling_chain
from tests.fault.trial import perturb

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("cometbft"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SettlingChain]:
    """Four real agents in open-aea, with a Safe on a real EVM and an effect there each period."""
    async with settling_chain(tmp_path_factory.mktemp("evm")) as chain:
        yield chain


@pytest.mark.needs("cometbft", "evm")
async def test_real_agents_outlive_the_death_of_one(settling: SettlingChain) -> None:
    result = await perturb(settling, [(AgentKill(random.Random(1)), 2)])
    await settling.pays_on(1)
    print(f"{AgentKill.name}: level after {result.recovery_s:.1f} s, {result.rounds} rounds meanwhile")


@pytest.mark.needs("cometbft", "evm")
async def test_a_real_agent_that_dies_while_it_writes_is_back_without_that_block(settling: SettlingChain) -> None:
    took = await crash_at(settling, 1, "torn_save")
    print(f"torn_save: level after {took['torn_save']:.1f} s")
    await settling.pays_on(1)


@pytest.mark.needs("cometbft", "evm")
async def test_agents_whose_evm_is_gone_wait_for_it_and_no_effect_is_lost_or_doubled(settling: SettlingChain) -> None:
    result = await perturb(settling, [(DeadRpc(random.Random(7)), victim) for victim in range(settling.n)])
    await settling.pays_on()
    print(f"{DeadRpc.name}: level after {result.recovery_s:.1f} s, {settling.paid} effects")


@pytest.mark.needs("cometbft", "evm")
async def test_an_agent_that_starts_while_its_evm_is_gone_takes_part_and_says_what_it_waits_for(
    settling: SettlingChain,
) -> None:
    result = await perturb(settling, [(StartWithoutEvm(random.Random(2)), 2)])
    await settling.pays_on(1)
    print(f"{StartWithoutEvm.name}: level after {result.recovery_s:.1f} s, {result.rounds} rounds meanwhile")
    assert "rounds that need it wait until it is back" in (settling.homes[2] / HOME / "events.jsonl").read_text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain() -> AsyncIterator[Chain]:
    """Four agents of a service that counts its rounds, without open-aea around them."""
    async with Chain() as chain:
        yield chain


@pytest.mark.parametrize(
    "name",
    ["kill", "pause", "disconnect", "clock skew", "disk full", "truncated log", "double signer", "slow link", "wiped"],
)
async def test_a_chain_outlives(plain: Chain, name: str) -> None:
    if name == "disk full" and not can_mount():
        pytest.skip("a small disk has to be mounted, and this process may not")
    result = await perturb(plain, [(ALL[name](random.Random(name)), 1)])
    print(f"{name}: level after {result.recovery_s:.1f} s, {result.rounds} rounds meanwhile")


async def test_two_of_four_decide_nothing_a_third_goes_on_with_them_and_the_fourth_catches_up(plain: Chain) -> None:
    await plain.kill(1, 2)
    await plain.hold(1)
    rounds = plain.judge.rounds
    await plain.hold(2)
    assert plain.judge.rounds == rounds
    since = time.time()
    plain.start(1)
    print(f"two of four: a quorum again after {await plain.level([0, 1, 3], since):.1f} s")
    await plain.goes_on(5, [0, 1, 3])
    since = time.time()
    plain.start(2)
    print(f"two of four: all level after {await plain.level(range(4), since):.1f} s")
    await plain.goes_on()
    plain.judge.at_the_end()
