"""How a delegate looks for proposals: the whole chain once, then what is new; what is handled is not asked again."""

from __future__ import annotations

from typing import Any

from skills.governance import Delegation, watch
from tests.delegate_world import AGENTS, CONFIG, ScriptedChain, World, pay


class Counting(ScriptedChain):
    def __init__(self, world: World) -> None:
        super().__init__(world, AGENTS[0])
        self.scanned: list[int] = []
        self.asked: list[Any] = []

    async def logs(self, *where: Any, **blocks: Any) -> Any:
        self.scanned.append(blocks["from_block"])
        return await super().logs(*where, **blocks)

    async def read(self, address: Any, abi: Any, function: str, *arguments: Any, block: Any = "latest") -> Any:
        self.asked.append((function, arguments[0]))
        return await super().read(address, abi, function, *arguments, block=block)


class Ctx:
    """After some sleeps a new proposal is there."""

    config = CONFIG

    def __init__(self, world: World, sleeps: int) -> None:
        self.world, self.left, self.chain = world, sleeps, Counting(world)
        self.slept: list[float] = []

    def emit(self, kind: str, **fields: Any) -> None: ...

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.left -= 1
        if self.left == 0:
            self.world.propose("Pay for the audit", pay(1))


async def test_only_new_blocks_are_scanned_and_closed_proposals_are_asked_about_once() -> None:
    world = World(block=1_000)
    world.closed = {world.propose("old", pay(1)), world.propose("older", pay(1))}
    ctx = Ctx(world, sleeps=50)
    found = await watch.act(ctx, Delegation())
    assert found not in world.closed
    assert ctx.chain.scanned == [CONFIG.from_block, 1_002 - 64]  # while no block comes, nothing is scanned
    assert [number for _, number in ctx.chain.asked].count(next(iter(world.closed))) == 1
    assert ctx.slept == [CONFIG.poll_ms / 1000] * 50
