"""The kinds of fault, and which of them a seed has drawn.

Faults happen in the first phase of a run; in the second everything heals but the liars, who stay (fewer than a third).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

__all__ = ["FAULTS", "Plan"]

FAULTS: Mapping[str, str] = MappingProxyType({
    "loss": "a message is lost on its way (a tenth to a third of them)",
    "duplicate": "a transaction arrives twice",
    "reorder": "transactions overtake each other",
    "delay": "links of up to 0.4 s",
    "one-way partition": "one agent is heard, and hears nobody (or the other way round)",
    "partition": "two groups do not hear each other",
    "staggered clog": "links clog one by one and are freed in another order",
    "crash": "kill -9 at any moment",
    "long absence": "one agent is away for most of the first phase",
    "blackout": "all agents die at once, when the first phase ends",
    "crash in a handler": "kill -9 before, inside or after an ABCI call, FinalizeBlock and Commit above all",
    "torn write": "a power cut takes the last writes back",
    "truncated log": "a node loses its last blocks and its agent's state",
    "wiped agent": "an agent loses its state, its node's blocks and its snapshots, and takes a snapshot of its peers'",
    "bit flip": "one bit of the stored state turns over while the agent is down",
    "full disk": "a state cannot be written",
    "clock": "a wall clock jumps by up to 20 s or drifts by 5 %",
    "equivocating proposer": "a liar proposes different blocks to different agents",
    "garbage proposal": "a liar proposes junk, stale, foreign or forged payloads",
    "garbage extension": "a liar's vote extension is junk, another's, stale, too long, or states a wrong app hash",
    "mempool flood": "a liar fills the mempools with junk, stale and future payloads",
    "lying payload": "a liar sends another payload than its act gave, or two",
    "garbage snapshot": "a liar offers damaged, older or forged states as snapshots",
    "omission": "a liar's proposals leave payloads out",
    "interrupt": "some agents, a quorum or fewer, ask for one of the service's interrupts",
    "rolling upgrade": "the agents change to another version of the code, at a block that they agree on",
    "EVM reorg": "the EVM chain forgets 1 to 64 blocks",
    "dropped transaction": "a sent transaction disappears from the EVM's pool",
    "fee spike": "the EVM's base fee rises tenfold",
    "lying RPC": "an agent's EVM node answers with an old state, or not at all",
    "nonce taken": "the keeper's next nonce is used by a transaction of another kind",
    "model": "a model times out, answers garbage or differs in its last bits",
})  # fmt: skip
"""Every kind by name. The EVM's and the models' are drawn only where a service has a World with them."""

LIES = (
    *("equivocating proposer", "garbage proposal", "garbage extension", "mempool flood", "lying payload"),
    *("garbage snapshot", "omission"),
)
ABROAD = ("EVM reorg", "dropped transaction", "fee spike", "lying RPC", "nonce taken", "model")


@dataclass(frozen=True)
class Plan:
    """What a seed has drawn."""

    seed: int
    agents: int
    faults: tuple[str, ...]
    liars: tuple[int, ...]
    """Indices of the agents that lie (none unless a kind of lie was drawn)."""
    storm_s: float
    """Virtual seconds of the first phase."""
    laps: int = 1
    """Periods that the second phase must complete."""
    rounds: int = 0
    """Rounds that must have ended before the first phase does, however long that takes (at most 40 times `storm_s`)."""

    @staticmethod
    def draw(
        seed: int,
        *,
        agents: int | None = None,
        kinds: Collection[str] = (),
        liars: int | None = None,
        has_world: bool = False,
    ) -> Plan:
        """A plan from a seed. `kinds` narrows what is drawn from; `liars` over f are for negative controls."""
        rng = random.Random(f"plan {seed}")  # noqa: S311  # the seed is the point
        n = agents or rng.choice((4, 4, 4, 4, 5, 6, 7))
        open_to = [one for one in FAULTS if (not kinds or one in kinds) and (has_world or one not in ABROAD)]
        faults = tuple(one for one in open_to if rng.random() < rng.choice((0.1, 0.25, 0.5)))
        f = (n - 1) // 3
        count = liars if liars is not None else (f if any(one in LIES for one in faults) else 0)
        return Plan(seed, n, faults, tuple(sorted(rng.sample(range(n), count))), rng.uniform(4, 16))

    def without(self, fault: str) -> Plan:
        """This plan with one kind of fault less."""
        left = tuple(one for one in self.faults if one != fault)
        return replace(self, faults=left, liars=self.liars if any(one in LIES for one in left) else ())

    def has(self, fault: str) -> bool:
        """Whether this seed drew the fault."""
        return fault in self.faults
