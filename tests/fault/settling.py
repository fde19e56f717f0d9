"""Real agents with a Safe on a real EVM: each period has an effect there, and each effect must happen once.

Each agent reaches the EVM by a link of its own, as it reaches the other agents; so its RPC can be slow, cut or dead.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from quorate.chain import Safe
from quorate.host.agent_file import AgentFile as HostFile
from quorate.host.agent_file import EvmSettings
from quorate.units import Address, Wei
from tests.chain_of_agents.hosted import HOME
from tests.chain_of_agents.keys import keys
from tests.fault.chain import PATIENCE_S, Chain, Tail
from tests.fault.links import Links
from tests.fault.perturbations import Perturbation
from tests.integration.evm_chain import LocalChain, local_chain, rich_wallet

__all__ = ["DeadRpc", "SettlingChain", "StartWithoutEvm", "settling_chain"]

CONTRACT = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
CODE = "0x60043580546001019055" + "00"
"""storage[first argument] += 1, whatever the function is called."""


class SettlingChain(Chain):
    def __init__(self, local: LocalChain, safe: Address) -> None:
        self.local, self._safe = local, safe
        port = int(local.node.url.rpartition(":")[2])

        def network(ports: Sequence[int]) -> Links:
            return Links([*ports, port])

        super().__init__("paying", network=network, hosted={"governor": CONTRACT})

    def lead(self, index: int) -> None:
        super().lead(index)
        home = self.homes[index] / HOME
        host, port = self.links.way(index, self.n)
        evm = EvmSettings(
            url=f"http://{host}:{port}",
            chain_id=self.local.node.chain_id,
            safe=self._safe,
            governor=CONTRACT,
            token=CONTRACT,
            timelock=CONTRACT,
            registry=CONTRACT,
            confirmations=0,
        )
        replace(HostFile.load(home), evm=evm).save()

    @property
    def paid(self) -> int:
        """The last number that the agents know to be noted."""
        self.hear()
        return max((tail.last.get("settled", {}).get("paid") or 0 for tail in self._tails.values()), default=0)

    async def pays_on(self, numbers: int = 2) -> None:
        """Wait until so many more numbers are noted, and see that no number was left out or noted twice."""
        target = self.paid + numbers
        await self.until(lambda: self.paid >= target, PATIENCE_S, f"number {target} is noted")
        await self.check_effects()

    async def check_effects(self) -> None:
        known = self.paid  # before the chain is asked: what the agents know is no newer than what it says
        times = [
            int(await self.local.node.rpc("eth_getStorageAt", CONTRACT, hex(number), "latest"), 16)
            for number in range(1, known + 20)
        ]
        noted = sum(times)
        assert times == [1] * noted + [0] * (len(times) - noted), f"how often each number is noted: {times}"
        assert noted >= known, f"the agents believe {known} numbers to be noted; {noted} are"


@asynccontextmanager
async def settling_chain(folder: Path) -> AsyncIterator[SettlingChain]:
    """An anvil, a Safe that four agents own, and these agents; all gone at the end of the block."""
    async with local_chain(folder) as local:
        owners = [key.address for key in keys(4)]
        for owner in owners:
            await local.node.set_balance(owner, Wei(10**20))
        await local.node.rpc("anvil_setCode", CONTRACT, CODE)
        safe = await Safe.deploy(local.chain, rich_wallet(5), owners, 3)
        async with SettlingChain(local, safe.address) as chain:
            yield chain


class DeadRpc(Perturbation):
    """The agent's EVM node answers nobody any more, and later again."""

    name: ClassVar[str] = "dead EVM RPC"
    hold_s = 5.0
    may_end = False

    async def begin(self, chain: Chain, victim: int) -> None:
        chain.proxies.refuse(victim, chain.n)

    async def end(self, chain: Chain, victim: int) -> None:
        chain.proxies.admit(victim, chain.n)


class StartWithoutEvm(DeadRpc):
    """... and the agent is killed and started meanwhile. It hands in a payload again, in a round that needs no EVM."""

    name: ClassVar[str] = "start without EVM RPC"
    hold_s = 0.5

    async def begin(self, chain: Chain, victim: int) -> None:
        await super().begin(chain, victim)
        await chain.kill(victim)
        since = time.time()
        chain.start(victim)
        told = Tail(chain.homes[victim] / HOME / "events.jsonl")

        def has_handed_in() -> bool:
            told.read()
            return float(told.last.get("payload", {}).get("t", 0)) > since

        await chain.expect(has_handed_in, f"agent {victim} takes part")
