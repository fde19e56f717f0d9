"""Members come and go on real CometBFT nodes, while rounds go on."""

from __future__ import annotations

import pytest

from quorate.members import Change
from tests.chain_of_agents.network import ChainOfAgents

pytestmark = pytest.mark.integration
PATIENCE_S = 150  # nothing here leans on speed; a busy machine is slow


async def _until_members(chain: ChainOfAgents, wanted: set[int], seen_by: int) -> None:
    addresses = sorted(chain.member(index).address for index in wanted)
    await chain.until(lambda: chain.members(seen_by) == addresses, PATIENCE_S, f"the members are {sorted(wanted)}")


async def _until_all_act(chain: ChainOfAgents, *indexes: int) -> None:
    """Until each of these agents has acted in rounds that are still to come, and seen them settle."""
    goal = max(chain.settled(index) for index in chain.processes) + 3
    for index in indexes:
        await chain.until(
            lambda i=index: goal <= chain.last(i, "ready").get("sequence", 0) <= chain.settled(i),  # type: ignore[misc]
            PATIENCE_S,
            f"agent {index} acts in round {goal}",
        )


async def _until_left(chain: ChainOfAgents, index: int) -> None:
    chain.leaving.add(index)
    process = chain.processes[index]
    await chain.until(lambda: process.poll() is not None, PATIENCE_S, f"agent {index} ends")
    assert chain.processes.pop(index).returncode == 0
    assert chain.last(index, "left")


async def _validators(chain: ChainOfAgents, index: int) -> set[int]:
    """Whose validators this agent's node goes by (one that was long absent has little power, and is one still)."""
    node = chain.node(index)
    try:
        powers = await node.powers()
    finally:
        await node.close_client()
    known = {chain.member(i).validator_address: i for i in range(chain.n)}
    assert all(power in (2, 20) for power in powers.values())
    return {known[address] for address in powers}


async def test_a_fifth_joins_one_leaves_and_one_is_replaced_while_rounds_go_on() -> None:
    async with ChainOfAgents("moving", act_s=0.2) as chain:
        chain.start()
        await chain.until_settled(10, timeout_s=PATIENCE_S)
        join = chain.add()
        chain.start(4)
        chain.approve(join, 0, 1, 2)
        await _until_members(chain, {0, 1, 2, 3, 4}, 0)
        await _until_all_act(chain, 4, 0)
        assert await _validators(chain, 1) == {0, 1, 2, 3, 4}

        chain.approve(Change(leave=chain.member(1).address), 0, 2, 3, 4)
        await _until_left(chain, 1)
        await _until_members(chain, {0, 2, 3, 4}, 0)
        await _until_all_act(chain, 0, 2, 3, 4)

        replaced = chain.add()
        chain.start(5)
        chain.approve(Change(replaced.join, chain.member(3).address), 0, 2, 4)
        await _until_left(chain, 3)
        await _until_members(chain, {0, 2, 4, 5}, 0)
        await _until_all_act(chain, 0, 2, 4, 5)
        assert await _validators(chain, 5) == {0, 2, 4, 5}
        assert chain.assert_equal_digests() > 100


async def test_one_agent_takes_a_second_one_in_and_leaves_the_service_to_it() -> None:
    """The hardest turn of a lone agent's: its last vote is needed for the block after the one that lets it go."""
    async with ChainOfAgents("moving", n=1, act_s=0.2) as chain:
        chain.start()
        await chain.until_settled(5, timeout_s=PATIENCE_S)
        join = chain.add()
        chain.start(1)
        chain.approve(join, 0)
        await _until_members(chain, {0, 1}, 1)
        await _until_all_act(chain, 0, 1)
        chain.approve(Change(leave=chain.member(0).address), 0, 1)
        await _until_left(chain, 0)
        await _until_members(chain, {1}, 1)
        await _until_all_act(chain, 1)
        assert chain.assert_equal_digests() > 10


async def test_one_joins_while_another_is_down_which_hears_of_it_when_it_returns() -> None:
    async with ChainOfAgents("moving", act_s=0.2) as chain:
        chain.start()
        await chain.until_settled(5, timeout_s=PATIENCE_S)
        await chain.kill(2)
        join = chain.add()
        chain.start(4)
        chain.approve(join, 0, 1, 3)
        await _until_members(chain, {0, 1, 2, 3, 4}, 4)
        await _until_all_act(chain, 0, 1, 3, 4)
        chain.start(2)
        await _until_members(chain, {0, 1, 2, 3, 4}, 2)
        await _until_all_act(chain, 2)
        assert chain.assert_equal_digests() > 50


async def test_one_that_was_thrown_out_while_it_was_down_says_so_and_ends() -> None:
    async with ChainOfAgents("moving", act_s=0.2) as chain:
        chain.start()
        await chain.until_settled(5, timeout_s=PATIENCE_S)
        await chain.kill(3)
        chain.approve(Change(leave=chain.member(3).address), 0, 1, 2)
        await _until_members(chain, {0, 1, 2}, 0)
        await _until_all_act(chain, 0, 1, 2)
        chain.start(3)
        await _until_left(chain, 3)
        assert chain.assert_equal_digests() > 30


async def test_who_joins_takes_a_snapshot_where_the_chain_is_long() -> None:
    async with ChainOfAgents("moving", act_s=0.02, snapshot_every=20, snapshots=2, blocks=100) as chain:
        chain.start()
        await chain.until(lambda: chain.height(0) > 150, PATIENCE_S, "a chain of 150 blocks")
        join = chain.add()
        chain.start(4)
        chain.approve(join, 0, 1, 2, 3)
        await _until_members(chain, {0, 1, 2, 3, 4}, 0)
        await _until_all_act(chain, 4)
        assert chain.events(4, "commit")[0]["height"] > 20, "it began with a snapshot, not with the first block"
        assert chain.assert_equal_digests() > 50
