"""A service's code is changed on real CometBFT nodes, at a block that its agents agreed on, and nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from quorate.abci import Plan, Target
from tests.chain_of_agents.network import ChainOfAgents
from tests.upgrades.v2.ledger.service import service as v2

pytestmark = pytest.mark.integration

LEAD = 12  # blocks from the ask to the upgrade
PATIENCE_S = 120.0


def _chain(n: int = 4) -> ChainOfAgents:
    return ChainOfAgents("ledger", n, snapshot_every=10, crash_at=1)  # so an end is no fault; no block is pruned


async def _upgrade(chain: ChainOfAgents, *members: int, away: tuple[int, ...] = ()) -> int:
    """Let `members` ask; returns the height of the new version's first block, when all but those away have stopped."""
    height = chain.height(members[0]) + LEAD
    chain.ask(Plan(Target.of(v2), height), *members)
    ended = await chain.until_ended(*(index for index in range(chain.n) if index not in away))
    assert set(ended.values()) == {3}
    for index in ended:
        assert chain.height(index) == height - 1, "no block of the new version, and no lack of one of the old"
        assert (
            f"agreed on version 2 ({v2.spec_hash[:12]}) from block {height} on" in chain.last(index, "failed")["error"]
        )
    return height


def _check_books(chain: ChainOfAgents) -> None:
    """Period p enters p + 1 coins, once: across the versions every entry is there and none twice."""
    for index in range(chain.n):
        for event in chain.events(index, "settled"):
            state, laps = event["state"], event["state"]["period"]
            entered = 100 * laps * (laps + 1) // 2
            assert entered == (state["cents"] if event["version"] == 2 else 100 * state["coins"])
            assert event["version"] == 1 or state["entries"] == laps


def _go_on_with_2(chain: ChainOfAgents, *indexes: int) -> None:
    for index in indexes:
        chain.configure(index, service="ledger_2")
    chain.start(*indexes)


async def test_four_agents_change_their_code_one_after_another_and_go_on_where_they_were() -> None:
    async with _chain() as chain:
        chain.start()
        await chain.until_settled(6, timeout_s=PATIENCE_S)
        height = await _upgrade(chain, 0, 1, 3)
        chain.start(0)
        assert await chain.until_ended(0) == {0: 4}, "the old code is started once more, and ends at once"
        assert chain.last(0, "refused")["is_due"]
        _go_on_with_2(chain, 0)
        await asyncio.sleep(0.7)
        _go_on_with_2(chain, 2)
        await asyncio.sleep(1.5)
        assert {chain.height(index) for index in range(4)} == {height - 1}, "two of four are no quorum"
        before = chain.settled(0)
        _go_on_with_2(chain, 1)
        await chain.until_settled(before + 6, 0, 1, 2, timeout_s=PATIENCE_S)
        _go_on_with_2(chain, 3)
        await chain.until_settled(chain.settled(0) + 4, 3, timeout_s=PATIENCE_S)
        assert all(chain.last(index, "loaded")["height"] == height - 1 for index in range(4))
        assert {chain.last(index, "settled")["version"] for index in range(4)} == {2}
        assert chain.assert_equal_digests() > 30
        assert sum(height in chain.digests(index) for index in range(4)) == 4
        _check_books(chain)


async def test_one_that_was_away_lets_the_old_code_catch_up_and_one_without_a_state_takes_a_snapshot() -> None:
    async with _chain() as chain:
        chain.start()
        await chain.until_settled(4, timeout_s=PATIENCE_S)
        await chain.kill(3)
        await chain.until_settled(chain.settled(0) + 4, 0, 1, 2, timeout_s=PATIENCE_S)
        height = await _upgrade(chain, 0, 1, 2, away=(3,))
        _go_on_with_2(chain, 0, 1, 2)
        await chain.until_settled(chain.settled(0) + 6, 0, 1, 2, timeout_s=PATIENCE_S)
        _go_on_with_2(chain, 3)
        assert await chain.until_ended(3) == {3: 4}
        refused = chain.last(3, "refused")
        assert "no other one; this is version 2" in refused["error"], refused
        assert "let the old version catch up until it stops" in refused["fix"]
        chain.configure(3, service="ledger")
        chain.start(3)
        assert await chain.until_ended(3) == {3: 3}, "by block sync up to its last block"
        assert chain.height(3) == height - 1
        _go_on_with_2(chain, 3)
        await chain.until_settled(chain.settled(0) + 4, 3, timeout_s=PATIENCE_S)
        await chain.kill(2)
        await asyncio.to_thread(_lose_state, chain.homes[2])
        chain.start(2)
        await chain.until_settled(chain.settled(0) + 4, 2, timeout_s=PATIENCE_S)
        born = [event["t"] for event in chain.events(2, "loaded")][-1]
        seen = [event["height"] for event in chain.events(2, "commit") if event["t"] > born]
        assert min(seen) > height, "it began with a snapshot of the new version"
        assert chain.assert_equal_digests() > 30
        _check_books(chain)


def _lose_state(home: Path) -> None:
    """All but keys and signing state."""
    for path in (*home.glob("app.db*"), *home.glob("data/*"), *home.glob("snapshots")):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "priv_validator_state.json":
            path.unlink()


async def test_all_killed_in_the_last_block_of_the_old_version_and_the_first_of_the_new_go_on() -> None:
    """Whatever of block H - 1 is durable when they die, the old code ends it, and the new one begins after it."""
    async with _chain() as chain:
        chain.start()
        await chain.until_settled(4, timeout_s=PATIENCE_S)
        await chain.kill(0, 1, 2, 3)
        height = max(map(chain.height, range(4))) + 5 * LEAD
        for index in range(4):
            chain.configure(index, crash_in=("finalize", "before_save", "after_save")[index % 3], crash_at=height - 1)
        chain.start()
        chain.ask(Plan(Target.of(v2), height), 0, 1, 2, 3)
        left = set(range(4))
        while left:
            for index, code in (await chain.until_ended(*left)).items():
                assert code in (-9, 3, 4)
                if code == -9:
                    chain.start(index)
                else:
                    left.remove(index)
        _go_on_with_2(chain, 0, 1, 2, 3)
        await chain.until_settled(chain.settled(0) + 6, timeout_s=PATIENCE_S)
        assert chain.assert_equal_digests() > 20
        _check_books(chain)
