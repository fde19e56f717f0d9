"""A fixed sample of what befalls real nodes. All of it, alone and in pairs, for as long as one likes: `tests.fault`."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fault.chain import Chain
from tests.fault.crashes import crash_at
from tests.fault.namespaces import Namespaces, can_make_namespaces
from tests.fault.perturbations import ALL, can_mount
from tests.fault.settling import DeadRpc, settling_chain
from tests.fault.trial import perturb

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("cometbft"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosted() -> AsyncIterator[Chain]:
    """Four real agents of hello_world, in open-aea."""
    async with Chain("hello_world", hosted={"pause_s": 0.2}) as chain:
        yield chain


@pytest.mark.parametrize("name", ["app-only kill", "pause", "disconnect"])
async def test_real_agents_outlive(hosted: Chain, name: str) -> None:
    result = await perturb(hosted, [(ALL[name](random.Random(name)), 2)])
    print(f"{name}: level after {result.recovery_s:.1f} s, {result.rounds} rounds meanwhile")


async def test_a_real_agent_that_dies_while_it_writes_is_back_without_that_block(hosted: Chain) -> None:
    print(f"torn_save: level after {await crash_at(hosted, 1, 'torn_save'):.1f} s")


@pytest.mark.needs("cometbft", "evm")
async def test_agents_whose_evm_is_gone_wait_for_it_and_no_effect_is_lost_or_doubled(tmp_path: Path) -> None:
    """First one agent's RPC, then everybody's while effects are on their way."""
    async with settling_chain(tmp_path) as chain:
        await chain.pays_on()
        rng = random.Random(7)
        await perturb(chain, [(DeadRpc(rng), 1)])
        await chain.pays_on()
        result = await perturb(chain, [(DeadRpc(rng), victim) for victim in range(chain.n)])
        await chain.pays_on()
        print(f"{DeadRpc.name}: level after {result.recovery_s:.1f} s, {chain.paid} effects")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain() -> AsyncIterator[Chain]:
    """Four agents of a service that counts its rounds, without open-aea around them."""
    async with Chain() as chain:
        yield chain


@pytest.mark.parametrize(
    "name", ["kill", "clock skew", "disk full", "truncated log", "slow link", "double signer", "wiped"]
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


@pytest.mark.skipif(not can_make_namespaces(), reason="network namespaces have to be made, and this process may not")
async def test_an_agent_whose_packets_are_lost_is_level_again_when_they_are_not() -> None:
    async with Chain(network=Namespaces) as chain:
        for name in ("disconnect", "kill"):
            result = await perturb(chain, [(ALL[name](random.Random(name)), 1)])
            print(f"{name}, by network namespaces: level after {result.recovery_s:.1f} s")
