"""What a service's agents act on outside of their own chain: `World`. Here it is empty; a service brings its own.

A folder services/NAME may hold simulation.py with a class `SimulatedWorld` (a `World`), a function `config()` that
gives the settings, and the number `AGENTS`; `./quorate simulate` uses it. Without one, acts see the settings of
service.yaml and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from quorate.chain import Chain
from quorate.fsm import Period
from quorate.host.decision_maker import Limits
from quorate.host.signer import Signer
from quorate.model import ModelClient
from quorate.units import Address

__all__ = ["Setting", "World"]


@dataclass(frozen=True)
class Setting:
    """What a World is made from: one seed's own random numbers, the virtual time and the agents."""

    random: random.Random
    now_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    members: tuple[Address, ...]
    honest: frozenset[Address]
    agreed: Callable[[], Period]
    """What the agents' chain has decided so far."""
    note: Callable[[str], None]
    """Puts a line into the story and the trace."""


class World:
    """Override what your service needs. One world is made for each seed; all agents live in it."""

    faults: frozenset[str] = frozenset()
    """Which of `quorate.testing.faults.ABROAD` this world can do."""
    promises: frozenset[str] = frozenset()
    """The invariants (`quorate.testing.oracles.INVARIANTS`) that `problems` looks at."""
    limits: Limits | None = None
    """What the agents' owners allow on-chain; None: nothing."""
    safe: Address | None = None
    """The agents' Safe, where they have one."""

    def __init__(self, setting: Setting, config: Any) -> None:
        self.setting = setting
        self.config = config

    def chain(self, me: Address) -> Chain | None:
        """This agent's EVM node."""
        return None

    def model(self, me: Address) -> ModelClient | None:
        """This agent's way to the operators."""
        return None

    def settler(self, me: Address, signer: Signer) -> Any:
        """This agent's way to the Safe (`quorate.rounds.settle.Settler`); the host's own where `safe` is told."""
        return None

    async def live(self) -> None:
        """What goes on by itself (blocks, proposals, users); cancelled at the end."""

    def disturb(self, fault: str) -> None:
        """One of `faults` happens now."""

    def heal(self) -> None:
        """The second phase begins: faults are over, effects stay."""

    def problems(self, at_end: bool) -> Iterable[tuple[str, str]]:
        """(invariant, message) for what is wrong now; the service's own promises go under "service's own"."""
        return ()
