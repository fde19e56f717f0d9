"""An agent that kills itself (or its node) at a chosen point, and what must be true when it is back."""

from __future__ import annotations

import time

from tests.chain_of_agents.watched import BLOCK_POINTS
from tests.fault.chain import PATIENCE_S, Chain

__all__ = ["NODE_CRASHES", "crash_at", "crash_node_at"]

_AHEAD = 30  # blocks from the start of the armed agent: it has caught up by then, and passes the steps of a live round
_SAVED = BLOCK_POINTS[BLOCK_POINTS.index("after_save") :]
NODE_CRASHES = 11
"""CometBFT's own crash points (`libs/fail`) that one block passes: after each of its two votes, three before the block
is executed, four around FinalizeBlock's result, Commit and its own state, two after."""


async def crash_at(chain: Chain, victim: int, point: str) -> float:
    """Let the agent live with a bomb at `point` until that goes off, and return how many seconds it then needs.

    The agent is back with the block where the crash came after the write, without it where it came before, and goes on
    to the same state as all others.
    """
    chain.victims.add(victim)
    at = chain.judge.last + _AHEAD
    if victim in chain.processes:
        await chain.end(victim)
    chain.configure(victim, crash_in=point, crash_at=at)
    chain.start(victim)
    code = await chain.gone(victim)
    assert code != 0
    fell_at = chain.judge.height(victim)
    chain.configure(victim, crash_in="", crash_at=0)
    since = time.time()
    chain.start(victim)
    chain.victims.discard(victim)
    took = await chain.level(range(chain.n), since)
    if point in BLOCK_POINTS:
        loaded = int(chain.last(victim, "loaded")["height"])
        assert loaded == (at if point in _SAVED else at - 1), f"{point} of {at}: back at {loaded}"
        assert fell_at <= loaded, f"it had told of block {fell_at}, and is back at {loaded}"
    await chain.goes_on()
    await chain.agree_with_headers()
    chain.judge.at_the_end()
    return took


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
