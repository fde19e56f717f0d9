"""One trial: some perturbations on a running chain, one after another without waiting, then what must hold and how long
it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fault.chain import Chain
from tests.fault.perturbations import Perturbation

__all__ = ["Result", "perturb"]


@dataclass(frozen=True)
class Result:
    """What came of a trial that held."""

    names: tuple[str, ...]
    victims: tuple[int, ...]
    recovery_s: float
    """From the end of the last cause until each agent has committed a block that nobody had then."""
    rounds: int
    """How many rounds ended while the perturbations lasted."""


async def perturb(chain: Chain, faults: Sequence[tuple[Perturbation, int]]) -> Result:
    """Begin all, end all in the same order; while fewer than a third are victims the others must go on meanwhile."""
    victims = {victim for _, victim in faults}
    standing = [index for index in range(chain.n) if index not in victims]
    before, chain.troubled = chain.judge.rounds, victims
    chain.victims |= {victim for fault, victim in faults if fault.may_end}
    for fault, victim in faults:
        await fault.begin(chain, victim)
    await chain.hold(max(fault.hold_s for fault, _ in faults))
    if 3 * len(victims) < chain.n:
        await chain.goes_on(2, standing)
    rounds = chain.judge.rounds - before
    for fault, victim in faults:
        since = time.time()
        await fault.end(chain, victim)
    chain.troubled = set()
    chain.victims -= victims  # from here on nobody may end by itself
    took = await chain.level(range(chain.n), since)
    await chain.goes_on()
    await chain.agree_with_headers()
    chain.judge.at_the_end()
    return Result(tuple(fault.name for fault, _ in faults), tuple(victim for _, victim in faults), took, rounds)
