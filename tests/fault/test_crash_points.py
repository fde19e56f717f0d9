"""kill -9 at each point from FinalizeBlock's start to Commit's end, and at a few more (all: `tests.fault crashes`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chain_of_agents.watched import BLOCK_POINTS
from tests.fault.chain import Chain
from tests.fault.crashes import crash_at

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("cometbft"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain() -> AsyncIterator[Chain]:
    async with Chain(snapshot_every=10, snapshots=3) as chain:
        yield chain


async def test_an_agent_killed_within_a_block_is_back_with_it_or_without_it_and_never_with_half(chain: Chain) -> None:
    _show(await crash_at(chain, 3, *BLOCK_POINTS, "torn_snapshot"))


async def test_an_agent_that_dies_within_a_round_takes_part_in_the_next_ones(chain: Chain) -> None:
    _show(await crash_at(chain, 3, "node_before_save", "extended"))


def _show(took: dict[str, float]) -> None:
    for point, seconds in took.items():
        print(f"{point}: level after {seconds:.1f} s")


async def test_all_crash_in_the_same_block_and_agree_on_it_afterwards() -> None:
    chain = Chain(act_s=0.05, crash_in="after_save", crash_at=8)
    chain.victims = set(range(chain.n))
    async with chain:
        deaths = 0
        while deaths < chain.n:  # without the first two there is no quorum; the others come to that block later
            await chain.until(lambda: bool(_dead(chain)), 60, "the next one kills itself")
            await asyncio.sleep(0.5)
            deaths += len(dead := _dead(chain))
            for index in dead:
                chain.processes.pop(index)
            chain.start(*dead)
        chain.victims.clear()
        await chain.goes_on(10)
        assert chain.judge.compared > 20


def _dead(chain: Chain) -> list[int]:
    return [index for index, process in chain.processes.items() if process.poll() is not None]
