"""An agent that kills itself (or its node) at a chosen point, and what must be true when it is back."""

from __future__ import annotations

import time
from itertools import zip_longest

from tests.chain_of_agents.watched import BLOCK_POINTS
from tests.fault.chain import PATIENCE_S, Chain

__all__ = ["NODE_CRASHES", "crash_at", "crash_node_at"]

_AHEAD = 30  # blocks from the start of the armed agent: it has caught up by then, and passes the steps of a live round
_SAVED = BLOCK_POINTS[BLOCK_POINTS.index("after_save") :]
NODE_CRASHES = 11
"""CometBFT's own crash points (`libs/fail`) that one block passes: after each of its two votes, three before the block
is executed, four around FinalizeBlock's result, Commit and its own state, two after."""


async def crash_at(chain: Chain, victim: int, *points: str) -> dict[str, float]:
    """Let the agent live with a bomb at the first of `points` until that goes off, then with one at the next, and so on
    to a life with none; returns how many seconds it needed after each to be level with the others.

    The agent is back with the block where the crash came after the write, without it where it came before, and goes on
    to the same state as all others.
    """
    chain.victims.add(victim)
    if victim in chain.processes:
        await chain.end(victim)
    took = {}
    at = _arm(chain, victim, points[0])
    chain.start(victim)
    for point, then in zip_longest(points, points[1:]):
        assert await chain.gone(victim) != 0
        fell_at, armed_at = chain.judge.height(victim), at
        since = time.time()
        at = _arm(chain, victim, then or "")
        chain.start(victim)
        took[point] = await chain.level(range(chain.n), since)
        if point in BLOCK_POINTS:
            loaded = int(chain.last(victim, "loaded")["height"])
            assert loaded == (armed_at if point in _SAVED else armed_at - 1), f"{point} of {armed_at}: back at {loaded}"
            assert fell_at <= loaded, f"it had told of block {fell_at}, and is back at {loaded}"
    chain.victims.discard(victim)
    await chain.goes_on()
    await chain.agree_with_headers()
    chain.judge.at_the_end()
    return took


def _arm(chain: Chain, victim: int, point: str) -> int:
    """Put a bomb into the agent's next life, or none; returns the block from which on it goes off."""
    chain.hear()
    at = chain.judge.last + _AHEAD if point else 0
    chain.configure(victim, crash_in=point, crash_at=at)
    return at


async def crash_node_at(chain: Chain, victim: int, index: int, allowed: int) -> float:
    """Let CometBFT end itself at its crash point `index`, counted from the first vote that it casts in its new life.

    For that the chain (of `on_demand`) must sleep while the node starts; then rounds up to `allowed` may end.
    """
    await chain.asleep()
    chain.victims.add(victim)
    await chain.end(victim)
    chain.configure(victim, environment={"FAIL_TEST_INDEX": str(index)})
    chain.start(victim)
    await chain.connected(victim)
    chain.allow(allowed)
    await chain.gone(victim)
    assert f"*** fail-test {index} ***" in (chain.homes[victim] / "node.log").read_text(errors="replace")
    chain.configure(victim, environment={})
    since = time.time()
    chain.start(victim)
    chain.victims.discard(victim)
    chain.allow(allowed + 2)
    took = await chain.level(range(chain.n), since)
    await chain.until(lambda: all(chain.settled(i) >= allowed + 2 for i in range(chain.n)), PATIENCE_S, "rounds go on")
    await chain.agree_with_headers()
    chain.judge.at_the_end()
    return took
